"""Rewrite the generated list of docs/claims.md: every claim of conf/claims, and how it is tested.

    python scripts/claims_table.py              # rewrite
    python scripts/claims_table.py check=true   # say whether it would change, exit code 1 if so

The list stands between `<!-- claims -->` and `<!-- end -->`; the text around it is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from generated_page import PageOptions, rewrite

from nmt.arguments import exit_code, parse
from sweeps.claims.claim import Claim, load_claims, sweep_spec
from sweeps.claims.scoreboard import effect_text, planned_test
from sweeps.claims.sides import published_effect

PAGE = Path(__file__).resolve().parents[1] / "docs" / "claims.md"
_LIST = re.compile(r"(<!-- claims -->\n).*?(<!-- end -->)", re.DOTALL)


def updated(text: str) -> str:
    """The page with the list of claims as the files are now."""
    return _LIST.sub(lambda match: f"{match[1]}{claims_list(load_claims())}{match[2]}", text)


def claims_list(claims: Sequence[Claim]) -> str:
    """A section a table of the paper, a table row a claim, in Markdown."""
    sections = []
    for table, members in groupby(claims, key=lambda claim: claim.table):
        lines = [f"### Table {table}", "", "| claim | in print | planned contrast |", "|---|---:|---|"]
        lines += [_line(claim) for claim in members]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _line(claim: Claim) -> str:
    published = effect_text(claim.contrast, published_effect(claim.contrast, sweep_spec(claim.contrast.sweep)))
    reading = f" Read as: {claim.reading}." if claim.reading else ""
    otherwise = f" In print: {claim.printed_otherwise}." if claim.printed_otherwise else ""
    where = f"{claim.statement} ({claim.place})"
    return f"| `{claim.id}`<br>{where} | {published} | {planned_test(claim.contrast)}.{reading}{otherwise} |"


def main(argv: Sequence[str]) -> int:
    """Rewrite or check the page; returns the exit code."""
    options = parse(
        PageOptions,
        argv,
        verb="python scripts/claims_table.py",
        summary="Rewrite the generated list of docs/claims.md.",
    )
    return rewrite(options, PAGE, updated, "claims_table.py")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
