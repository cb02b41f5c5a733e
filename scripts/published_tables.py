"""Rewrite the generated tables of docs/published.md: each published row beside the configuration that stands for it.

    python scripts/published_tables.py              # rewrite
    python scripts/published_tables.py check=true   # say whether it would change, exit code 1 if so

A table stands between `<!-- table: <sweep> -->` and `<!-- end -->`; the text around the tables is written by hand.
Figures come from `conf/sweep` and from the models that `conf/experiment` describes, counted at published size.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from generated_page import PageOptions, rewrite

from nmt.arguments import exit_code, parse
from sweeps.counts import RowCount, count_rows
from sweeps.spec import RowSpec, SweepSpec, load_spec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "published.md"
_TABLE = re.compile(r"(<!-- table: (?P<sweep>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """The page with every generated table as the configurations are now."""
    return _TABLE.sub(lambda match: f"{match[1]}{published_table(load_spec(match['sweep']))}{match[3]}", text)


def published_table(spec: SweepSpec) -> str:
    """Rows of a sweep as a Markdown table: what was printed, what stands for it, and how large that is."""
    lines = [
        "| row | experiment | printed BLEU | parameters | printed M | difference M |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row, count in zip(spec.rows, count_rows(spec.rows), strict=True):
        lines.append(f"| {row.label} | {_experiment(row)} | {_bleu(row)} | {_parameters(count)} |")
    for system in spec.systems:
        for test, bleu in system.published.items():
            source = system.source + (" (unconfirmed)" if system.unconfirmed else "")
            lines.append(f"| {system.label.replace('*', chr(92) + '*')}, {test} | {source} | {bleu:.2f} | – | – | – |")
    return "\n".join(lines) + "\n"


def _experiment(row: RowSpec) -> str:
    overrides = " ".join(override.removeprefix("search.") for override in row.overrides)
    return f"`{row.experiment}`" + (f" {overrides}" if overrides else "")


def _bleu(row: RowSpec) -> str:
    published = row.published
    if published is None or published.mean is None:
        return "–"
    if published.std is None or published.max is None:
        return f"{published.mean:.2f}"
    return f"{published.mean:.2f} ± {published.std:.2f} ({published.max:.2f})"


def _parameters(count: RowCount | None) -> str:
    if count is None or count.difference_M is None:
        return f"{count.parameters:,} | – | –" if count else "– | – | –"
    excused = "" if count.agrees else " (documented)"
    return f"{count.parameters:,} | {count.published_M:.2f} | {count.difference_M:+.4f}{excused}"


def main(argv: Sequence[str]) -> int:
    """Rewrite or check the page; returns the exit code."""
    options = parse(
        PageOptions,
        argv,
        verb="python scripts/published_tables.py",
        summary="Rewrite the generated tables of docs/published.md.",
    )
    return rewrite(options, PAGE, rewritten, "published_tables.py")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
