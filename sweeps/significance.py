"""Each row of a sweep against the baseline: is the difference more than another training would make?

The question is about "these configurations": replicates are what varies. A row is marked where Welch's t test,
two-sided and corrected by Holm over all rows, says so. Beside it stand the exact permutation test, uncorrected, with
the smallest p that so many replicates can reach, and Dunnett's test, where the rows' variances may be pooled.

Rows that decode the baseline's own runs in another way (the width of the beam) are paired with it, run by run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.aggregate import RowResult
from sweeps.apart import own_id
from sweeps.results import Replicate
from sweeps.statistics.contrasts import Contrast, contrast
from sweeps.statistics.families import VarianceCheck, dunnett, holm, variance_check
from sweeps.statistics.power import ALPHA, pairs_needed, replicates_needed

SIGNIFICANT = "*"
NOT_FINITE = "?"
MOST_DUNNETT = 16  # rows: 0.1 s for 8, a second for 20, 20 seconds for 60


@dataclass(frozen=True, kw_only=True)
class RowContrast:
    """A row minus the baseline.

    p_holm: `contrast.p_welch`, corrected over the family of all rows that could be tested; None where there is no p.
    p_dunnett: of Dunnett's test; None where the variances may not be pooled, the row is paired with the baseline, or
        there are more than `MOST_DUNNETT` rows (its integral has as many dimensions).
    replicates_needed: on each side, for a power of 0.8 at the level 0.05 of this contrast alone, if the true difference
        and sds were those observed; None where more than 1000.
    mark: `*` where p_holm is at most 0.05, `?` where a score is not finite, else empty.
    """

    contrast: Contrast
    p_holm: float | None = None
    p_dunnett: float | None = None
    replicates_needed: int | None = None
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Significance:
    """What can be said of a sweep's rows against its baseline, in one metric.

    rows: by label. The baseline is not among them, nor are rows that are its own runs decoded in the same way.
    family: the tests that Holm's correction is over; rows that share their runs and decodings are one test.
    variances: whether the variances of all rows, the baseline's among them, may be pooled; None without a baseline.
    """

    baseline: str = ""
    metric: str
    rows: dict[str, RowContrast] = field(default_factory=dict)
    family: tuple[Contrast, ...] = ()
    variances: VarianceCheck | None = None


def significance(results: Sequence[RowResult], baseline: str | None, metric: str) -> Significance:
    """Test every row that has scores against the row labelled `baseline`; empty where that has none.

    Rows scored on another test text than the baseline's, by its number of sentences, are left out: their scores are not
    on one scale. Diverged replicates count with their score. A single replicate, or one whose score is not finite,
    gives no p and is in no family.
    """
    control = next((row for row in results if row.label == baseline), None)
    base = scores_of(control.complete, metric) if control else {}
    if control is None or not base:
        return Significance(metric=metric)
    others = {
        row.label: found
        for row in results
        if (found := scores_of(row.complete, metric))
        and found.keys() != base.keys()
        and _sentences(row) == _sentences(control)
    }
    contrasts = {label: contrast_of(found, base) for label, found in others.items()}
    tested = {frozenset(others[label]): one for label, one in contrasts.items() if one.p_welch is not None}
    corrected = dict(
        zip(tested, holm([one.p_welch for one in tested.values() if one.p_welch is not None]), strict=True)
    )
    variances = variance_check([list(base.values()), *(list(found.values()) for found in others.values())])
    pooled = _pooled(base, others, contrasts) if variances.allows_pooling else {}
    return Significance(
        baseline=control.label,
        metric=metric,
        rows={
            label: _row(one, corrected.get(frozenset(others[label])), pooled.get(label))
            for label, one in contrasts.items()
        },
        family=tuple(tested.values()),
        variances=variances,
    )


Scores = Mapping[tuple[str, str], float]
"""A row's scores, by run id and decode id."""


def scores_of(replicates: Iterable[Replicate], metric: str) -> Scores:
    """The scores of the replicates that have this one."""
    return {(one.run_id, one.decode_id): one.metrics[metric] for one in replicates if metric in one.metrics}


def _sentences(row: RowResult) -> set[int]:
    return {one.sentences for one in row.complete if one.sentences is not None}


def contrast_of(row: Scores, base: Scores) -> Contrast:
    """Row minus baseline: of pairs, where both are decodings of one configuration's trainings."""
    if _train_ids(row) == _train_ids(base):
        by_run = {run_id: score for (run_id, _), score in base.items()}
        pairs = [(score, by_run[run_id]) for (run_id, _), score in row.items() if run_id in by_run]
        if pairs:
            return contrast(*map(list, zip(*pairs, strict=True)), paired=True)
    return contrast(list(row.values()), list(base.values()))


def _train_ids(scores: Scores) -> set[str]:
    return {own_id(run_id).partition("/")[0] for run_id, _ in scores}


def _pooled(base: Scores, others: dict[str, Scores], contrasts: dict[str, Contrast]) -> dict[str, float]:
    """Dunnett's p of the rows that are trainings of their own, with two replicates or more."""
    usable = [
        label
        for label, one in contrasts.items()
        if not one.paired and one.n_a > 1 and one.n_b > 1 and math.isfinite(one.difference)
    ]
    if not 0 < len(usable) <= MOST_DUNNETT:
        return {}
    p_values = dunnett([list(others[label].values()) for label in usable], list(base.values()))
    return dict(zip(usable, p_values, strict=True))


def _row(found: Contrast, p_holm: float | None, p_dunnett: float | None) -> RowContrast:
    if found.paired:
        needed = pairs_needed(found.difference, found.sd_pairs)
    else:
        needed = replicates_needed(found.difference, found.sd_a, found.sd_b)
    mark = SIGNIFICANT if p_holm is not None and p_holm <= ALPHA else ""
    return RowContrast(
        contrast=found,
        p_holm=p_holm,
        p_dunnett=p_dunnett,
        replicates_needed=needed,
        mark=mark if math.isfinite(found.difference) else NOT_FINITE,
    )
