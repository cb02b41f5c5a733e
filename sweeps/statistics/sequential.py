"""Adding replicates until an interval is narrow enough, and what looking again and again costs.

A rule looks at the first n scores for n in `looks`, and stops at the first look whose interval has a half-width of at
most d, or at the last. With ordinary 95 % intervals it would stop too early: an interval is narrow when the sd happens
to come out small, and then it misses more often than it says. So every look uses one common higher level, chosen such
that the interval which is reported at the end holds the true value at least 95 times of 100, whatever the true sd
(a constant level over all looks, as in S. J. Pocock, "Group sequential methods in the design and analysis of clinical
trials", Biometrika 64, 1977).

How often it holds can be computed: of normal scores the mean of the first n is independent of all sds up to there, and
the rule stops by sds alone. So given the stop, the mean is as it ever was, and only the sds are drawn (H. Robbins,
"Sequential estimation of the mean of a normal population", 1959; N. Starr, "The performance of a sequential procedure
for the fixed-width interval estimation of the mean", Annals of Mathematical Statistics 37, 1966). The same goes for
a difference of two means with Welch's interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sweeps.statistics.contrasts import LEVEL, SEED, student_quantile, welch_error

EXPERIMENTS = 12_000  # drawn: the coverage is known to within 0.002
SPREADS = 24  # true sds, from one that stops at the first look to one that never does
RATIOS = {1: (0.0,), 2: (0.0, 0.25, 1.0)}  # variance of the second sample over that of the first, by number of samples
_LOWEST = 0.001  # of the error of a look


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The error (1 - level) that each look may have, and the coverage of the reported interval at the worst true sd."""

    error: float
    coverage: float


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the rule comes to at one true sd: how often its interval holds, replicates on average, and how often the
    half-width is reached before the replicates run out."""

    coverage: float
    replicates: float
    reached: float


def half_width(a: Sequence[float], b: Sequence[float] | None, error: float) -> float:
    """Half-width of the interval of the mean of `a`, or of its difference to the mean of `b`, at the level 1 - error.

    Student's and Welch's; 0 where neither sample has spread. Raises ValueError for fewer than two scores.
    """
    one, other = np.asarray(a, dtype=np.float64), np.asarray(a if b is None else b, dtype=np.float64)
    if min(len(one), len(other)) < 2:
        raise ValueError("one score has no spread")
    if b is None:
        if (one == one[0]).all():
            return 0.0
        return float(student_quantile(1 - error / 2, len(one) - 1) * one.std(ddof=1) / np.sqrt(len(one)))
    _, standard_error, freedom = welch_error(one, other)
    return float(student_quantile(1 - error / 2, freedom) * standard_error) if freedom > 0 else 0.0


@lru_cache
def calibrate(looks: tuple[int, ...], samples: int = 1) -> Calibration:
    """The largest error of each look with which the reported interval holds at the level at any true sd.

    `samples` is 1 for a mean, 2 for a difference of two means of n scores each. One look has the whole error. The same
    looks give the same answer: what is drawn depends on nothing else.
    """
    if len(looks) == 1:
        return Calibration(error=1 - LEVEL, coverage=LEVEL)
    low, high = _LOWEST, 1 - LEVEL
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if _worst(looks, samples, middle) >= LEVEL else (low, middle)
    return Calibration(error=low, coverage=_worst(looks, samples, low))


def outlook(looks: tuple[int, ...], samples: int, error: float, spread: float, ratio: float = 0.0) -> Outlook:
    """What comes of the rule where the first sample's true sd is `spread` times the half-width that is asked for.

    `ratio` is the second sample's variance over the first's, 0 for a mean.
    """
    return _simulate(looks, samples, error, spread, ratio)


@lru_cache
def welch_size(looks: tuple[int, ...], samples: int, error: float) -> float:
    """How often Welch's test at 0.05, which takes the numbers of replicates as fixed, marks two rows that are alike.

    Either row stopped by the rule for itself (`samples` 1), or both by the interval of their difference (2); at the
    worst true sd, the same in both.
    """
    from scipy.special import ndtr

    n, drawn, worst = np.asarray(looks), _variances(looks), 0.0
    for spread in _spreads(looks, error):
        stops = [_stop(_widths(looks, 2, error, 1.0)[0] * spread)] * 2
        if samples == 1:
            stops = [_stop(student_quantile(1 - error / 2, n - 1) * np.sqrt(side / n) * spread) for side in drawn]
        used = [n[stop] for stop in stops]
        shares = [side[np.arange(len(stop)), stop] / m for side, stop, m in zip(drawn, stops, used, strict=True)]
        freedom = sum(shares) ** 2 / sum(share**2 / (m - 1) for share, m in zip(shares, used, strict=True))
        half = student_quantile(0.5 + LEVEL / 2, freedom) * np.sqrt(sum(shares))
        worst = max(worst, float(2 * ndtr(-half / np.sqrt(sum(1 / m for m in used))).mean()))
    return worst


def _stop(widths: np.ndarray) -> np.ndarray:
    """The place of the look at which each experiment stops: the first with a width of at most 1, or the last."""
    narrow = widths <= 1.0
    return np.where(narrow.any(axis=1), narrow.argmax(axis=1), widths.shape[1] - 1)


def _spreads(looks: tuple[int, ...], error: float) -> np.ndarray:
    """True sds, in half-widths asked for, between one that stops at the first look and one that hardly ever does."""
    spreads = np.geomspace(0.1 * np.sqrt(looks[0]), 2 * np.sqrt(looks[-1]), SPREADS)
    return spreads / np.sqrt(student_quantile(1 - error / 2, looks[0] - 1))


def _worst(looks: tuple[int, ...], samples: int, error: float) -> float:
    return min(
        _simulate(looks, samples, error, float(spread), ratio).coverage
        for ratio in RATIOS[samples]
        for spread in _spreads(looks, error)
    )


def _simulate(looks: tuple[int, ...], samples: int, error: float, spread: float, ratio: float) -> Outlook:
    from scipy.special import ndtr

    widths, scales = _widths(looks, samples, error, ratio)
    stop = _stop(widths * spread)
    chosen = (np.arange(len(stop)), stop)
    # Given the stop, the error of the mean is normal with its true standard error, and the half-width is known.
    inside = 2 * ndtr(scales[chosen]) - 1
    return Outlook(
        coverage=float(inside.mean()),
        replicates=float(np.asarray(looks)[stop].mean()),
        reached=float((widths[chosen] * spread <= 1.0).mean()),
    )


@lru_cache(maxsize=64)
def _widths(looks: tuple[int, ...], samples: int, error: float, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Half-widths at each look in units of the first sample's true sd, and in true standard errors.

    Both [experiments, looks].
    """
    first, second = _variances(looks)
    n = np.asarray(looks)
    joint = first + ratio * second
    if ratio:
        freedom = (n - 1) * joint**2 / (first**2 + (ratio * second) ** 2)
    else:
        freedom = np.broadcast_to(n - 1.0, joint.shape)
    # Quantiles are smooth in 1 / freedom, and interpolating them there is a hundred times faster than computing each.
    places = np.linspace(1 / (2.001 * n[-1]), 1 / (0.999 * (n[0] - 1)), 400)
    quantiles = np.interp(1 / freedom, places, student_quantile(1 - error / 2, 1 / places))
    widths = quantiles * np.sqrt(joint / n)
    return widths, quantiles * np.sqrt(joint / (1 + ratio))


@lru_cache(maxsize=8)
def _variances(looks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Sample variances at each look of two independent samples of true variance 1, [experiments, looks].

    A sum of squares grows by independent chi-square steps (Helmert).
    """
    random = np.random.default_rng(SEED)
    steps = np.diff([1, *looks])
    drawn = random.chisquare(steps, (2, EXPERIMENTS, len(steps))).cumsum(axis=2) / (np.asarray(looks) - 1)
    return drawn[0], drawn[1]
