"""What a report says, found out once: every format sets this, and none computes a number of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nmt.evaluation.catalogue import METRICS
from sweeps.aggregate import RowResult, Statistics
from sweeps.imported.rows import imported_rows
from sweeps.plan import SweepPlan
from sweeps.reporting.curves import Curve, make_curves
from sweeps.reporting.differences import Difference, differences
from sweeps.reporting.listing import Listing, list_runs
from sweeps.reporting.provenance import Provenance, trace
from sweeps.reporting.samples import Samples, choose_samples
from sweeps.reporting.table import Table, make_table
from sweeps.significance import Significance, significance

DEEP = 4  # decoder layers from which Figure 2 of the paper calls a decoder deep


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A row's test scores: each replicate's with its run, their statistics, replicates complete and asked for.

    `published` is the published mean where it was obtained under the same conditions, else None; `imported` says that
    it is another system's row.
    """

    label: str
    values: tuple[tuple[str, float], ...]
    statistics: Statistics | None
    published: float | None
    complete: int
    requested: int
    imported: bool = False


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A sweep as far as its runs are there.

    `runs` counts trainings that are complete, and those that were asked for; rows of a common training count it once,
    and what was imported is not among them. `curves` are by (quantity, axis), see `sweeps.reporting.curves`. `deep` are
    labels of rows with deep decoders, with and without residual connections: those whose log-perplexity the paper's
    Figure 2 shows, empty where the sweep does not have both kinds.
    """

    title: str
    name: str
    metric: str
    baseline: str
    published_source: str
    table: Table
    labels: tuple[str, ...]
    scores: tuple[Scores, ...]
    tests: Significance
    differences: tuple[Difference, ...]
    curves: Mapping[tuple[str, str], Sequence[Curve]]
    deep: tuple[str, ...]
    samples: Samples
    listing: Listing
    provenance: Provenance
    runs: tuple[int, int]

    @property
    def metric_title(self) -> str:
        """The metric as figures call it."""
        return METRICS[self.metric].title

    def number(self, label: str) -> int:
        """The row's number: its place in the table, and its colour in all pictures."""
        return self.labels.index(label)


def find(plan: SweepPlan, results: Sequence[RowResult], columns: Sequence[str] = ()) -> Findings:
    """Gather everything: statistics of `results`, curves, texts and environments from the runs' directories.

    `columns` are those of the table, by name; without any the usual ones.
    """
    metric = plan.config.validation.metric
    ours, results = results, [*results, *imported_rows(plan)]
    tests = significance(results, plan.spec.baseline, metric)
    return Findings(
        title=plan.spec.title,
        name=f"{plan.name}@{plan.config.scale.name}",
        metric=metric,
        baseline=plan.spec.baseline or "",
        published_source=plan.spec.published_source,
        table=make_table(plan, ours, columns, tests),
        labels=tuple(row.label for row in results),
        scores=tuple(_scores(row, metric) for row in results),
        tests=tests,
        differences=tuple(differences(results, plan.spec.baseline, tests)),
        curves=make_curves(results, metric),
        deep=_deep(plan),
        samples=choose_samples(plan, results),
        listing=list_runs(results, metric),
        provenance=trace(plan, ours),
        runs=_trainings(plan, ours),
    )


def _trainings(plan: SweepPlan, results: Sequence[RowResult]) -> tuple[int, int]:
    """How many are complete, with all decodings that rows ask for, and how many there are to be."""
    asked = {(row.label, run.run_id) for row in plan.rows for run in row.runs}
    missing = asked - {(row.label, one.run_id) for row in results for one in row.complete}
    trainings = {run_id for _, run_id in asked}
    return len(trainings - {run_id for _, run_id in missing}), len(trainings)


def _scores(row: RowResult, metric: str) -> Scores:
    return Scores(
        label=row.label,
        values=tuple((one.run_id, one.metrics[metric]) for one in row.complete if metric in one.metrics),
        statistics=row.metrics.get(metric),
        published=row.published.mean if row.published and not row.differs else None,
        complete=len(row.complete),
        requested=row.requested,
        imported=bool(row.imported),
    )


def _deep(plan: SweepPlan) -> tuple[str, ...]:
    decoders = [(row.label, row.config.model.decoder) for row in plan.rows]
    deep = [(label, decoder.residual.combiner) for label, decoder in decoders if decoder.layers >= DEEP]
    kinds = {combiner == "none" for _, combiner in deep}
    return tuple(label for label, _ in deep) if len(kinds) == 2 else ()
