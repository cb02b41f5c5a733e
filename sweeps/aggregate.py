"""Replicates to rows: means, standard deviations and extremes, with everything that limits what they say."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nmt.evaluation.catalogue import rank
from sweeps.plan import PlannedRow, SweepPlan
from sweeps.results import Replicate, read_replicate
from sweeps.spec import Published
from sweeps.undisturbed import compared

TIMINGS = ("exclusive", "shared")


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of `n` values; `sd` is the sample form (n - 1 in the denominator), None for one value."""

    n: int
    mean: float
    sd: float | None
    median: float
    min: float
    max: float

    @property
    def sd_over_n(self) -> float | None:
        """The population form of `sd` (n in the denominator), for publications that do not say which they print."""
        return None if self.sd is None else self.sd * math.sqrt((self.n - 1) / self.n)


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """A row of the table.

    `metrics` holds statistics over replicates of each test metric (`bleu`, …); a diverged replicate counts like any
    other, with the score of its best checkpoint. `tokens_per_second` and `convergence_seconds` are kept apart by
    timing, since a run that shared the machine was slower for no reason of its own. `processes` are the figures of
    `sweeps.process_figures`, and `refused` is why times are not among them. `other_code` names, for each
    complete replicate that other code than the present has trained, that code. `imported` says of a row that is another
    system's outputs where they come from (`sweeps.imported`), and is empty for our own.
    """

    label: str
    replicates: tuple[Replicate, ...]
    requested: int
    max_steps: int
    metrics: dict[str, Statistics] = field(default_factory=dict)
    log_perplexity: Statistics | None = None
    steps: Statistics | None = None
    convergence_steps: Statistics | None = None
    convergence_tokens: Statistics | None = None
    tokens_per_second: dict[str, Statistics] = field(default_factory=dict)
    convergence_seconds: dict[str, Statistics] = field(default_factory=dict)
    peak_memory_bytes: Statistics | None = None
    joules_per_1000_tokens: Statistics | None = None
    idle_workers: Statistics | None = None
    staleness: Statistics | None = None
    processes: dict[str, Statistics] = field(default_factory=dict)
    refused: str = ""
    parameters: int | None = None
    published: Published | None = None
    differs: tuple[str, ...] = ()
    same_runs_as: str | None = None
    other_code: tuple[str, ...] = ()
    imported: str = ""

    @property
    def complete(self) -> list[Replicate]:
        """The replicates that are in the statistics."""
        return [replicate for replicate in self.replicates if replicate.complete]

    @property
    def missing(self) -> int:
        """Replicates asked for that are not complete."""
        return self.requested - len(self.complete)

    @property
    def diverged(self) -> int:
        """Replicates that diverged; they are in the statistics."""
        return sum(replicate.state == "diverged" for replicate in self.complete)

    @property
    def still_improving(self) -> int:
        """Replicates that used the whole budget and were best at its end: more steps would have changed the number."""
        return sum(
            replicate.reason == "budget" and replicate.best_step == replicate.steps for replicate in self.complete
        )

    @property
    def timing(self) -> str:
        """The timing whose figures stand in the table: `exclusive` where there are any, else `shared`."""
        return next((timing for timing in TIMINGS if timing in self.tokens_per_second), "")

    def best_run(self, metric: str) -> Replicate | None:
        """The replicate that validation likes best; see `best_replicate`."""
        return best_replicate(self.replicates, metric)


def aggregate(plan: SweepPlan) -> list[RowResult]:
    """Read every replicate of the plan as it stands now, and sum up each row."""
    results = []
    for row in plan.rows:
        result = aggregate_row(row, [read_replicate(plan.store, run.config, run.run_id) for run in row.runs])
        others = (one.code for one in result.complete if one.code and not plan.code.made(one.code))
        results.append(dataclasses.replace(result, other_code=tuple(others)))
    return compared(plan, results) if plan.spec.apart else results


def aggregate_row(row: PlannedRow, replicates: Sequence[Replicate]) -> RowResult:
    """Sum up one row from what its replicates' directories say."""
    done = [replicate for replicate in replicates if replicate.complete]
    return RowResult(
        label=row.label,
        replicates=tuple(replicates),
        requested=len(row.runs),
        max_steps=row.config.training.max_steps,
        metrics=summarise(done),
        log_perplexity=describe(replicate.log_perplexity for replicate in done),
        steps=describe(replicate.steps for replicate in done),
        convergence_steps=describe(replicate.convergence_steps for replicate in done),
        convergence_tokens=describe(replicate.convergence_tokens for replicate in done),
        tokens_per_second=_by_timing(done, "tokens_per_second"),
        convergence_seconds=_by_timing(done, "convergence_seconds"),
        peak_memory_bytes=describe(replicate.peak_memory_bytes for replicate in done),
        joules_per_1000_tokens=describe(replicate.joules_per_1000_tokens for replicate in done),
        idle_workers=describe(replicate.idle_workers for replicate in done),
        staleness=describe(replicate.staleness for replicate in done),
        processes=_process_figures(done),
        refused=next((replicate.refused for replicate in done if replicate.refused), ""),
        parameters=next((replicate.parameters for replicate in done if replicate.parameters is not None), None),
        published=row.spec.published,
        differs=row.differs,
        same_runs_as=row.same_runs_as,
    )


def summarise(replicates: Sequence[Replicate]) -> dict[str, Statistics]:
    """Statistics of each test metric that one of the replicates has."""
    names = dict.fromkeys(name for replicate in replicates for name in replicate.metrics)
    described = {name: describe(replicate.metrics.get(name) for replicate in replicates) for name in names}
    return {name: values for name, values in described.items() if values is not None}


def _process_figures(replicates: Sequence[Replicate]) -> dict[str, Statistics]:
    names = dict.fromkeys(name for replicate in replicates for name in replicate.processes)
    described = {name: describe(replicate.processes.get(name) for replicate in replicates) for name in names}
    return {name: values for name, values in described.items() if values is not None}


def describe(values: Iterable[float | None]) -> Statistics | None:
    """Statistics of the values that are there; None where none is.

    A diverged replicate may bring a NaN or an infinity, and the figures then say so instead of leaving it out.
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    if any(map(math.isnan, known)):
        known = [math.nan] * len(known)
    spread = statistics.stdev(known) if all(map(math.isfinite, known)) and len(known) > 1 else math.nan
    return Statistics(
        n=len(known),
        mean=statistics.fmean(known),
        sd=spread if len(known) > 1 else None,
        median=statistics.median(known),
        min=min(known),
        max=max(known),
    )


def best_replicate(replicates: Iterable[Replicate], metric: str) -> Replicate | None:
    """The complete one with the best validation score: the test split judges, it does not choose.

    Among equals (rows that decode one training in several ways) the better test score wins, then the earlier seed.
    """
    scored = [one for one in replicates if one.complete and metric in one.metrics and metric in one.validation]
    return max(scored, key=lambda one: (*preference(metric, one), -one.seed), default=None)


def preference(metric: str, replicate: Replicate) -> tuple[float, float]:
    """What `best_replicate` compares: larger is better."""
    return rank(metric, replicate.validation[metric]), rank(metric, replicate.metrics[metric])


def _by_timing(replicates: Sequence[Replicate], name: str) -> dict[str, Statistics]:
    return {
        timing: described
        for timing in TIMINGS
        if (described := describe(getattr(r, name) for r in replicates if r.timing == timing)) is not None
    }
