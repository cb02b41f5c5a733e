"""Rows of a sweep by the sources of randomness that vary in them, and the variance of replicates split over these."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nmt.config.identity import explain_difference, training_identity
from nmt.config.schema import RunConfig
from nmt.config.seeds import STREAMS
from nmt.errors import UserError
from sweeps.aggregate import RowResult
from sweeps.plan import SweepPlan
from sweeps.statistics.components import Decomposition, Share, Spread, decompose, ratio_coverage, share, spread
from sweeps.statistics.families import VarianceCheck, variance_check

NAMES = {  # of the sources, as a reader is told them
    "initialisation": "initialisation", "data": "data order", "dropout": "dropout", "hyperparameters": "hyperparameters"
}  # fmt: skip
LOG_PERPLEXITY = "log_perplexity"  # stands for no test metric, but for that of the validation split


@dataclass(frozen=True, kw_only=True)
class Source:
    """A row: what varies in it, its replicates' scores, and what their spread is of the whole's."""

    row: RowResult
    varies: frozenset[str]
    scores: tuple[float, ...]
    spread: Spread | None
    share: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The rows of a sweep by what varies in them.

    whole: the row in which most varies, if it is more than one source.
    sum: the rows with a single source against the whole; None unless they are all of its sources and all have scores.
    coverage: how often such an interval of their ratio holds it, simulated with these sds and replicates.
    equal: Brown and Forsythe's test of one variance for the rows with a single source.
    shared_seeds: held streams whose seed is a replicate's too, so that rows are not independent samples.
    """

    metric: str
    sources: tuple[Source, ...]
    whole: Source | None
    sum: Decomposition | None
    coverage: float | None
    equal: VarianceCheck
    shared_seeds: tuple[str, ...]

    @property
    def missing(self) -> int:
        """Replicates asked for that are not complete."""
        return sum(source.row.missing for source in self.sources)


def what_varies(config: RunConfig) -> frozenset[str]:
    """The sources of randomness in which replicates of a configuration differ: keys of `NAMES`."""
    streams = {stream for stream in STREAMS if not getattr(config.seeds, stream)}
    return frozenset(streams | ({"hyperparameters"} if config.seeds.jittered else set()))


def find_sources(plan: SweepPlan, results: Sequence[RowResult], metric: str) -> Sources:
    """Sort the rows by what varies in them, and split the variance.

    Raises UserError where rows differ in more than their section `seeds`, and where two rows vary the same.
    """
    for one, other in pairwise(plan.rows):
        differ = [name for name in _differences(one.config, other.config) if not name.startswith("seeds.")]
        if differ:
            raise UserError(
                f"rows '{one.label}' and '{other.label}' differ in {differ[0]}",
                where=f"sweep={plan.name}",
                hint="they may differ in their section seeds only, as in conf/sweep/variance_sources.yaml",
            )
    sources = [
        _source(row, what_varies(planned.config), metric) for planned, row in zip(plan.rows, results, strict=True)
    ]
    for number, source in enumerate(sources):
        twin = next((one for one in sources[:number] if one.varies == source.varies), None)
        if twin is not None:
            what = f"rows '{twin.row.label}' and '{source.row.label}' vary the same"
            raise UserError(what, where=f"sweep={plan.name}", hint="give each row other streams to vary")
    most = max(sources, key=lambda source: len(source.varies))
    whole = most if len(most.varies) > 1 and most.spread is not None else None
    singles = {name: one for one in sources if len(one.varies) == 1 for name in one.varies}
    total, coverage = None, None
    if whole is not None and whole.spread is not None:
        parts = {name: one.spread for name, one in singles.items() if name in whole.varies and one.spread is not None}
        if parts.keys() == whole.varies:
            total = decompose(whole.spread, parts)
            coverage = None if total is None else ratio_coverage(whole.spread, parts)
        of = whole.spread
        sources = [
            dataclasses.replace(one, share=share(one.spread, of) if one.spread and one is not most else None)
            for one in sources
        ]
    return Sources(
        metric=metric,
        sources=tuple(sources),
        whole=whole,
        sum=total,
        coverage=coverage,
        equal=variance_check([one.scores for one in singles.values()]),
        shared_seeds=tuple(_shared_seeds(plan)),
    )


def record(found: Sources) -> dict[str, Any]:
    """Plain data: scores and run ids of each row, and every figure."""
    return {
        "metric": found.metric,
        "rows": [
            {
                "label": one.row.label,
                "varies": [name for name in NAMES if name in one.varies],
                "scores": list(one.scores),
                "runs": [replicate.run_id for replicate in one.row.replicates],
                "spread": None if one.spread is None else dataclasses.asdict(one.spread) | {"sd": one.spread.sd},
                "share": None if one.share is None else dataclasses.asdict(one.share),
            }
            for one in found.sources
        ],
        "whole": None if found.whole is None else found.whole.row.label,
        "sum": None if found.sum is None else dataclasses.asdict(found.sum) | {"coverage": found.coverage},
        "brown_forsythe": dataclasses.asdict(found.equal),
        "shared_seeds": list(found.shared_seeds),
    }


def _differences(one: RunConfig, other: RunConfig) -> list[str]:
    decoding = [(config.search, config.data.test) for config in (one, other)]
    found = explain_difference(training_identity(one), training_identity(other))
    return found + (["search or test text"] if decoding[0] != decoding[1] else [])


def _source(row: RowResult, varies: frozenset[str], metric: str) -> Source:
    scores = tuple(
        float(score)
        for replicate in row.complete
        if (score := replicate.log_perplexity if metric == LOG_PERPLEXITY else replicate.metrics.get(metric))
        is not None
    )
    return Source(row=row, varies=varies, scores=scores, spread=spread(scores))


def _shared_seeds(plan: SweepPlan) -> list[str]:
    found = []
    for row in plan.rows:
        seeds = {run.config.seed for run in row.runs}
        for stream in STREAMS:
            held = getattr(row.config.seeds, stream)
            if held in seeds:
                found.append(f"{row.label} holds {NAMES[stream]} at seed {held}, which is a replicate's too")
    return found
