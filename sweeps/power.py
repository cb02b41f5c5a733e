"""`nmt power`: how many replicates it takes to see a difference, at the spread that a sweep has measured."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.strict_json import strict_json
from sweeps.wording import NOTHING

if TYPE_CHECKING:
    from sweeps.aggregate import RowResult

EXAMPLES = """
Power is the probability that a test finds a difference that is there, at the level 0.05, two-sided, for one contrast
that was planned: a correction over many rows takes more. Scores are taken as normal.

Examples:
  nmt power sweep=table5_attention delta=0.5 scale=cpu_table results=docs/results
  nmt power sd=0.3 delta=0.5
  nmt power sd=0.3,0.9 delta=0.5
"""
REPLICATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24)


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """What `nmt power` takes beside config overrides."""

    sweep: str = option("", "measure the spread in this sweep's replicates")
    delta: float | None = option(None, "the difference to be seen, in the metric's points")
    sd: list[str] = option(list, "instead of a sweep: the sd over replicates, or both sides' as a,b")
    metric: str = option("", "test metric; unset: the one that chose the sweep's checkpoints")
    results: str = option("", RESULTS_HELP)
    json: bool = option(False, "as one JSON object")


@dataclass(frozen=True, kw_only=True)
class RowSpread:
    """A row's spread, and what it takes to see `delta` between it and the baseline (itself, for the baseline).

    sd_interval: 95 %, from the chi-squared distribution: of 4 replicates it reaches from 0.57 to 3.7 times the sd.
    detectable: the smallest difference that 4 against 4 find with a power of 0.8.
    needed_welch, needed_exact: replicates a side for this power; None: more than 1000.
    """

    label: str
    n: int
    sd: float
    sd_interval: tuple[float, float]
    detectable: float | None
    needed_welch: int | None
    needed_exact: int | None


@dataclass(frozen=True, kw_only=True)
class PowerAt:
    """Power of `replicates` against as many; `welch_at_high_sd` where sds are at the upper end of their interval."""

    replicates: int
    welch: float
    exact: float
    p_smallest: float
    detectable: float | None
    welch_at_high_sd: float | None = None


def main(argv: Sequence[str]) -> int:
    """Print the table that the command line asks for; returns 0."""
    options, words = parse(
        PowerOptions,
        argv,
        verb="nmt power",
        summary="How many replicates it takes to see a difference delta between two configurations, by Welch's test "
        "and by the exact permutation test.",
        epilog=EXAMPLES,
        rest=True,
    )
    if options.delta is None or options.delta <= 0:
        raise UserError("give the difference that is to be seen", where="delta", hint="such as delta=0.5")
    if bool(options.sweep) == bool(options.sd):
        raise UserError("give sweep=... or sd=...", where="nmt power", hint="one says where the spread comes from")
    rows: list[RowSpread] = []
    metric, high = options.metric, None
    if options.sweep:
        rows, metric, freedom = _measure(options, words)
        sd_a = sd_b = math.sqrt(sum(row.sd**2 * (row.n - 1) for row in rows) / freedom)
        high = _sd_interval(sd_a, freedom)[1]
    else:
        if words:
            raise UserError("goes with a sweep only", where=words[0])
        sd_a, sd_b = _given(options.sd)
    table = power_table(options.delta, sd_a, sd_b, high)
    if options.json:
        found = {"delta": options.delta, "metric": metric, "sd_a": sd_a, "sd_b": sd_b, "sd_high": high}
        plain = {"rows": list(map(dataclasses.asdict, rows)), "table": list(map(dataclasses.asdict, table))}
        sys.stdout.write(strict_json(found | plain, indent=1) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(options.delta, metric, rows, sd_a, sd_b, high, table)))
    return 0


def power_table(delta: float, sd_a: float, sd_b: float, high: float | None = None) -> list[PowerAt]:
    """Power to see `delta` at growing numbers of replicates; `high` is the largest sd that is still likely."""
    from sweeps.statistics.contrasts import smallest_p
    from sweeps.statistics.power import detectable_difference, power_of

    return [
        PowerAt(
            replicates=n,
            welch=power_of(n, n, delta, sd_a, sd_b),
            exact=power_of(n, n, delta, sd_a, sd_b, test="exact"),
            p_smallest=smallest_p(n, n),
            detectable=detectable_difference(n, n, sd_a, sd_b),
            welch_at_high_sd=None if high is None else power_of(n, n, delta, high, high),
        )
        for n in REPLICATES
    ]


def spread_of(row: RowResult, baseline: RowResult | None, metric: str, delta: float) -> RowSpread | None:
    """The row's spread beside the baseline's, or its own where there is none; None of fewer than two scores."""
    from sweeps.statistics.power import detectable_difference, replicates_needed

    values, others = row.metrics.get(metric), (baseline or row).metrics.get(metric)
    if values is None or values.sd is None or not math.isfinite(values.sd):
        return None
    other = values.sd if others is None or others.sd is None or not math.isfinite(others.sd) else others.sd
    return RowSpread(
        label=row.label,
        n=values.n,
        sd=values.sd,
        sd_interval=_sd_interval(values.sd, values.n - 1),
        detectable=detectable_difference(4, 4, values.sd, other),
        needed_welch=replicates_needed(delta, values.sd, other),
        needed_exact=replicates_needed(delta, values.sd, other, test="exact"),
    )


def _measure(options: PowerOptions, words: Sequence[str]) -> tuple[list[RowSpread], str, int]:
    """The spread of each row, the metric, and the degrees of freedom of all rows together."""
    from sweeps.aggregate import aggregate
    from sweeps.plan import make_plan
    from sweeps.spec import load_spec

    plan = make_plan(load_spec(options.sweep), words, archives=archive_directories(options.results))
    results = aggregate(plan)
    metric = options.metric or plan.config.validation.metric
    baseline = next((row for row in results if row.label == plan.spec.baseline), None)
    assert options.delta is not None
    spreads = [spread_of(row, baseline, metric, options.delta) for row in results]
    rows = [row for row in spreads if row is not None]
    if not any(row.sd > 0 for row in rows):
        raise UserError(
            f"no row of it has two replicates with a {metric}",
            where=f"sweep={options.sweep}",
            hint="train it, say scale=... or results=<archive>, or give sd=... instead",
        )
    return rows, metric, sum(row.n - 1 for row in rows)


def _given(words: Sequence[str]) -> tuple[float, float]:
    try:
        sds = [float(word) for word in words]
    except ValueError:
        sds = []
    if len(sds) not in (1, 2) or not all(math.isfinite(sd) and sd > 0 for sd in sds):
        raise UserError("must be one sd above 0, or two", where="sd", hint="such as sd=0.3 or sd=0.3,0.5")
    return sds[0], sds[-1]


def _sd_interval(sd: float, freedom: int) -> tuple[float, float]:
    """95 %, of the true sd of normal scores; a pooled sd has the degrees of freedom of all its samples."""
    from sweeps.statistics.components import sd_factors

    low, high = sd_factors(freedom + 1)
    return low * sd, high * sd


def _lines(
    delta: float, metric: str, rows: Sequence[RowSpread], sd_a: float, sd_b: float, high: float | None,
    table: Sequence[PowerAt],
) -> Iterator[str]:  # fmt: skip
    points = f"{delta:g} {metric}" if metric else f"{delta:g}"
    if rows:
        yield f"Measured over replicates, and what it takes to see {points} against the baseline with a power of 0.8"
        yield ""
        width = max(len("row"), *(len(row.label) for row in rows))
        yield f"  {'row':<{width}}   n     sd   95 % of the sd   seen by 4 v 4   needed, Welch   needed, exact"
        for row in rows:
            interval = f"{row.sd_interval[0]:.2f} to {row.sd_interval[1]:.2f}"
            measured = f"{row.label:<{width}}  {row.n:>2}  {row.sd:>5.2f}   {interval:>14}"
            needed = f"{_number(row.needed_welch):>13}   {_number(row.needed_exact):>13}"
            yield f"  {measured}   {_points(row.detectable):>13}   {needed}"
        yield ""
        sds = f"the rows' pooled sd {sd_a:.2f}"
    else:
        sds = f"sd {sd_a:g}" if sd_a == sd_b else f"sds {sd_a:g} and {sd_b:g}"
    yield f"Power to see {points} at {sds}, level 0.05, two-sided"
    yield ""
    last = "" if high is None else f"   Welch at sd {high:.2f}"
    yield f"  replicates a side   Welch   exact   smallest exact p   seen with power 0.8{last}"
    for one in table:
        end = "" if one.welch_at_high_sd is None else f"   {one.welch_at_high_sd:>{len(last) - 3}.2f}"
        smallest = "< 0.0001" if one.p_smallest < 0.0001 else f"{one.p_smallest:.4f}"
        yield (
            f"  {one.replicates:>17}   {one.welch:>5.2f}   {one.exact:>5.2f}   {smallest:>16}   "
            f"{_points(one.detectable):>19}{end}"
        )
    yield ""
    hopeless = [str(one.replicates) for one in table if one.p_smallest > 0.05]
    yield f"With {' or '.join(hopeless)} replicates a side no exact two-sided test can reach 0.05, whatever the scores."
    if high is not None:
        yield f"The last column is for the upper end of the pooled sd's 95 % interval, {high:.2f}."


def _points(difference: float | None) -> str:
    return NOTHING if difference is None else f"{difference:.2f}"


def _number(needed: int | None) -> str:
    return "> 1000" if needed is None else str(needed)
