"""Do two experiments put the same rows in the same order? Spearman's rank correlation over rows of replicates.

The test permutes rows: under the null the order in one experiment says nothing about the order in the other. The
interval is about the replicates instead: with the same rows, how far would the correlation move if every row were
trained again? Each row's replicates are drawn with replacement, in both experiments, and the rows' means ranked anew.

Source: C. Spearman, "The proof and measurement of association between two things", Am. J. Psychology 15 (1904).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from sweeps.statistics.contrasts import LEVEL, SEED

MOST_ROWS = 8  # whose permutations are enumerated (40,320); of more rows, DRAWS are drawn
DRAWS = 100_000
RESAMPLES = 5_000


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rho of two experiments' row means, None where all rows of one are equal.

    p_positive, p_negative: one-sided, that rho is above or below 0; None as `rho` is.
    interval: 95 %, of replicates drawn anew; None where no row has two replicates.
    """

    rows: int
    rho: float | None
    p_positive: float | None
    p_negative: float | None
    interval: tuple[float, float] | None


def rank_correlation(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> RankCorrelation:
    """Compare the order of rows in two experiments; `a` and `b` hold each row's replicates, rows in the same order.

    Raises ValueError for unequal numbers of rows, fewer than three, or a row without replicates.
    """
    if len(a) != len(b) or len(a) < 3 or not all(len(row) for row in (*a, *b)):
        raise ValueError(f"{len(a)} and {len(b)} rows of replicates cannot be ranked side by side")
    means = [np.array([[np.mean(row) for row in side]]) for side in (a, b)]
    finite = all(np.isfinite(side).all() for side in means)
    rho = float(_rho(*means)[0]) if finite else float("nan")
    if np.isnan(rho):
        return RankCorrelation(rows=len(a), rho=None, p_positive=None, p_negative=None, interval=None)
    orders, drawn = _orders(len(a))
    permuted = _rho(np.broadcast_to(means[0], orders.shape), means[1][0][orders])
    total, slack = len(orders) + drawn, 1e-9
    return RankCorrelation(
        rows=len(a),
        rho=rho,
        p_positive=float(((permuted >= rho - slack).sum() + drawn) / total),
        p_negative=float(((permuted <= rho + slack).sum() + drawn) / total),
        interval=_interval(a, b),
    )


def _orders(rows: int) -> tuple[np.ndarray, int]:
    """Permutations of the rows [permutations, rows], and how many to add for the observed one where they are drawn."""
    if rows <= MOST_ROWS:
        return np.array(list(permutations(range(rows)))), 0
    draws = np.random.default_rng(SEED)
    return draws.random((DRAWS, rows)).argsort(axis=1), 1


def _interval(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    if all(len(row) < 2 for row in (*a, *b)):
        return None
    draws = np.random.default_rng(SEED)
    found = _rho(*(np.stack([_means(row, draws) for row in side], axis=1) for side in (a, b)))
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _means(row: Sequence[float], draws: np.random.Generator) -> np.ndarray:
    """Means of resampled replicates, [RESAMPLES]."""
    values = np.asarray(row, dtype=np.float64)
    return values[draws.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)


def _rho(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ranks, ties sharing their mean rank: [experiments, rows] twice to [experiments]."""
    from scipy.stats import rankdata

    one, other = (rankdata(side, axis=1) for side in (a, b))
    one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    spread = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((one * other).sum(axis=1) / spread)
