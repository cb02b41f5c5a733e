"""`nmt variance`: which source of randomness makes the replicates of a configuration differ, and by how much."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.evaluation.catalogue import METRICS
from nmt.strict_json import strict_json
from sweeps.aggregate import RowResult, aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.screen import say, standard_output
from sweeps.spec import load_spec
from sweeps.statistics.components import sd_factors
from sweeps.variance_sources import LOG_PERPLEXITY, NAMES, Sources, find_sources, record
from sweeps.wording import NOTHING

if TYPE_CHECKING:
    from sweeps.reporting.table import Table

EXAMPLES = """\
Examples:
  nmt sweep sweep=variance_sources              # train what is missing of it
  nmt variance sweep=variance_sources
  nmt variance sweep=variance_sources metric=log_perplexity replicates=4
"""


@dataclass(frozen=True, kw_only=True)
class VarianceOptions:
    """What `nmt variance` takes beside config overrides."""

    sweep: str = option("variance_sources", "name of a sweep in conf/sweep, or a YAML file of your own")
    metric: str | None = option(
        None,
        "test metric, or log_perplexity of the validation split; unset: validation.metric",
        choices=(*METRICS, LOG_PERPLEXITY),
    )
    results: str = option("", RESULTS_HELP)
    json: bool = option(False, "as one JSON object, with every score and run id")


def main(argv: Sequence[str]) -> int:
    """Show the sources of a sweep's spread; returns 0, or 1 where replicates are missing."""
    options, overrides = parse(
        VarianceOptions,
        argv,
        verb="nmt variance",
        summary="Split the variance of replicates over its sources: initialisation, order of the data, dropout, "
        "hyperparameters that are not quite the same. Trains nothing; reads the runs of a sweep whose rows differ in "
        "their seeds section only. Other words are config overrides, as for nmt sweep.",
        epilog=EXAMPLES,
        rest=True,
    )
    plan = make_plan(load_spec(options.sweep), overrides, archives=archive_directories(options.results))
    found = find_sources(plan, aggregate(plan), options.metric or plan.config.validation.metric)
    if options.json:
        sys.stdout.write(strict_json(record(found)) + "\n")
    else:
        _show(plan, found, options.sweep)
    return 1 if found.missing else 0


def _show(plan: SweepPlan, found: Sources, name: str) -> None:
    from sweeps.reporting.table import to_markdown, to_screen

    console, table = standard_output(), lay_out(plan, found)
    if console.is_terminal:
        console.print(to_screen(table))
    else:
        say(console, to_markdown(table).rstrip())
    if found.missing:
        say(console, f"{found.missing} replicates are missing: nmt sweep sweep={name} trains them")


def lay_out(plan: SweepPlan, found: Sources) -> Table:
    """The table, with what its figures say and do not say below it."""
    from sweeps.reporting.table import Table, letter

    said = list(dict.fromkeys(mark for source in found.sources for mark in _marks(source.row)))
    shown = []
    for source in found.sources:
        row, of = source.row, source.spread
        mean = sum(source.scores) / len(source.scores) if source.scores else None
        shown.append(
            (
                row.label,
                ", ".join(NAMES[name] for name in NAMES if name in source.varies) or "nothing",
                str(len(source.scores)),
                NOTHING if mean is None else f"{mean:.3f}",
                NOTHING if of is None else f"{of.sd:.3f}",
                NOTHING if of is None or of.interval is None else _interval(of.interval, ".3f"),
                NOTHING if source.share is None else f"{100 * source.share.share:.0f} %",
                NOTHING if source.share is None else _interval([100 * end for end in source.share.interval], ".0f"),
                " ".join(letter(said.index(mark)) for mark in _marks(row)),
            )
        )
    what = "log-perplexity, validation" if found.metric == LOG_PERPLEXITY else f"test {found.metric}"
    return Table(
        title=plan.spec.title,
        conditions=f"{what}; {plan.config.scale.name} scale",
        columns=("row", "varies", "n", "mean", "sd", "95 %", "of the variance", "95 %", "marks"),
        rows=tuple(shown),
        numeric=(False, False, True, True, True, True, True, True, False),
        legend=tuple(f"{letter(number)}: {mark}" for number, mark in enumerate(said)),
        notes=tuple(_findings(found)),
    )


def _marks(row: RowResult) -> list[str]:
    """The row's marks but those on times, which this table has none of."""
    from sweeps.reporting.table import marks

    return [mark for mark in marks(row) if not mark.startswith("tok/s")]


def _findings(found: Sources) -> list[str]:
    lines = []
    if found.whole is not None and found.sum is not None and found.coverage is not None:
        label, total = found.whole.row.label, found.sum
        lines += [
            f"single sources add up to {total.ratio:.2f} times the variance of '{label}', 95 % "
            f"{_interval(total.ratio_interval, '.2f')} (simulated coverage {100 * found.coverage:.0f} %): "
            f"{_reading(total.ratio_interval)}",
            f"interaction remainder, '{label}' minus their sum: {total.remainder:.3g}, 95 % "
            f"{_interval(total.remainder_interval, '.3g')}, in squared units of the score",
        ]
    if found.equal.p is not None:
        verdict = "the sources differ" if found.equal.p < 0.05 else "no difference between sources is shown"
        lines.append(f"do single sources spread equally? Brown-Forsythe p = {found.equal.p:.3f}: {verdict}")
    for n in sorted({source.spread.n for source in found.sources if source.spread is not None}):
        low, high = sd_factors(n)
        lines.append(f"of {n} replicates an sd is known to within {low:.2f} to {high:.2f} times itself, 95 %")
    unusable = [one for one in found.sources if one.spread is None and len(one.scores) > 1]
    lines += [f"{one.row.label}: a score is not finite, so no spread is given" for one in unusable]
    lines.append("sd in the sample form (n - 1); intervals take scores as normal: chi-square, F, generalised pivots")
    lines.append("a source's spread is that around the one point at which the others are held")
    return [*lines, *found.shared_seeds]


def _reading(interval: tuple[float, float]) -> str:
    low, high = interval
    if low > 1:
        return "they interact, since sources that only add give 1"
    if high < 1:
        return "less than sources that only add would give, so the held point is unlike others"
    return "sources that only add give 1, which this neither shows nor refutes"


def _interval(ends: Sequence[float], form: str) -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}"
