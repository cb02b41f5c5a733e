"""The two sides of a planned contrast, and what was published for them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

from sweeps.claims.claim import PlannedContrast
from sweeps.claims.judging import Comparison
from sweeps.spec import SweepSpec


def comparisons(contrast: PlannedContrast, values: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """The samples that are compared, from each row's values by replicate.

    `mean` averages the k-th replicates of a side's rows: whatever the rows are, under the null the averages of both
    sides have one distribution, so the permutation test stays exact.
    """
    if contrast.combine == "mean":
        name = f"{_joined(contrast.rows)} against {_joined(contrast.against)}"
        return [Comparison(name=name, a=_mean(contrast.rows, values), b=_mean(contrast.against, values))]
    pair = zip if contrast.combine == "pairs" else itertools.product
    return [
        Comparison(name=f"{one} against {other}", a=tuple(values[one]), b=tuple(values[other]))
        for one, other in pair(contrast.rows, contrast.against)
    ]


def published_effect(contrast: PlannedContrast, spec: SweepSpec) -> float | None:
    """The claim's effect in the printed numbers of the sweep's file, of the comparison that holds least.

    Worked out for scores, and for collapses where a printed mean is below the limit; for everything else what the
    paper's text names, if it does.
    """
    if contrast.measure not in ("score", "collapsed"):
        return contrast.published
    printed = {row.label: row.published.mean for row in spec.rows if row.published and row.published.mean is not None}
    values = {label: [mean] for label, mean in printed.items()}
    if contrast.below is not None:
        values = {label: [float(mean < contrast.below)] for label, mean in printed.items()}
    if not {*contrast.rows, *contrast.against} <= values.keys():
        return contrast.published
    differences = [one.a[0] - one.b[0] for one in comparisons(contrast, values)]
    return max(differences, key=abs) if contrast.expect == "equal" else min(differences)


def _mean(rows: Sequence[str], values: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(same) for same in zip(*(values[row] for row in rows), strict=True))


def _joined(rows: Sequence[str]) -> str:
    return rows[0] if len(rows) == 1 else f"the mean of {', '.join(rows[:-1])} and {rows[-1]}"
