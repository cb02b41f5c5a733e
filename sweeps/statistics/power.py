"""Planning replicates: how often a test finds a difference of a given size, and how many replicates it takes.

Scores are taken as normal with the sds given. The power of Welch's test is then an integral over both sample variances
(the usual noncentral t with the degrees of freedom of the true variances says 0.836 where it is 0.80, at 4 against 4);
that of the exact test is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sweeps.statistics.contrasts import SEED, permutation_p, smallest_p, student_quantile

ALPHA = 0.05
POWER = 0.8
TESTS = ("welch", "exact")
MOST_REPLICATES = 1000  # a side; what needs more is out of reach
EXPERIMENTS = 4000  # simulated for the exact test: power is then known to ± 0.013 at 0.8
_MOST_SPLITS = 2000  # of a simulated exact test; above, so many are drawn, with next to no loss
_FARTHEST = 1e4  # sds: a difference that no test of this size finds
_CERTAIN = 30.0  # standard errors
_NORMAL_SQUARE = 7.85  # (1.96 + 0.84)²: n of power 0.8 at the level 0.05 is about this times the squared spread
_NODES = 40  # of the quadrature, for either variance: power to 1e-4


def power_of(
    n_a: int,
    n_b: int,
    difference: float,
    sd_a: float,
    sd_b: float,
    *,
    alpha: float = ALPHA,
    alternative: str = "two-sided",
    test: str = "welch",
) -> float:
    """The probability that the test of n_a against n_b replicates is significant where `difference` is true.

    `greater` asks whether a is above b; `two-sided` counts a find in the true direction only.
    """
    if test not in TESTS:
        raise ValueError(f"test '{test}' is none of {', '.join(TESTS)}")
    effect = abs(difference) if alternative == "two-sided" else difference * (-1 if alternative == "less" else 1)
    level = alpha / 2 if alternative == "two-sided" else alpha
    return (_exact_power if test == "exact" else _welch_power)(n_a, n_b, effect, sd_a, sd_b, level)


def replicates_needed(
    difference: float,
    sd_a: float | None,
    sd_b: float | None,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    alternative: str = "two-sided",
    test: str = "welch",
) -> int | None:
    """The smallest number of replicates on each side with at least this power; None where no number up to 1000 has it.

    Also None where a figure is not known or not finite (a single replicate has no sd).
    """
    figures = (difference, sd_a, sd_b)
    if any(figure is None or not math.isfinite(figure) for figure in figures) or sd_a is None or sd_b is None:
        return None

    def reached(n: int) -> bool:
        return power_of(n, n, difference, sd_a, sd_b, alpha=alpha, alternative=alternative, test=test) >= power

    return _fewest(reached, math.hypot(sd_a, sd_b) / abs(difference) if difference else math.inf)


def pairs_needed(
    difference: float, sd_pairs: float | None, *, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """`replicates_needed` of the two-sided paired t test, whose pairs differ by `difference` with this sd."""
    from scipy.special import nctdtr

    if sd_pairs is None or not math.isfinite(sd_pairs) or not math.isfinite(difference):
        return None
    if sd_pairs == 0:
        return 2 if difference else None

    def reached(n: int) -> bool:
        noncentrality = math.sqrt(n) * abs(difference) / sd_pairs
        critical = float(student_quantile(1 - alpha / 2, n - 1))
        return noncentrality > critical + _CERTAIN or 1 - nctdtr(n - 1, noncentrality, critical) >= power

    return _fewest(reached, sd_pairs / abs(difference) if difference else math.inf)


def detectable_difference(
    n_a: int,
    n_b: int,
    sd_a: float,
    sd_b: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    alternative: str = "two-sided",
    test: str = "welch",
) -> float | None:
    """The smallest difference that n_a against n_b replicates find with this power; None where they never do.

    Given without a sign, to 0.1 % of itself.
    """
    spread = math.hypot(sd_a, sd_b)
    if spread == 0:
        return None

    def finds(difference: float) -> bool:
        signed = -difference if alternative == "less" else difference
        return power_of(n_a, n_b, signed, sd_a, sd_b, alpha=alpha, alternative=alternative, test=test) >= power

    low, high = 0.0, spread
    while not finds(high):
        low, high = high, 2 * high
        if high > _FARTHEST * spread:
            return None
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def _welch_power(n_a: int, n_b: int, effect: float, sd_a: float, sd_b: float, level: float) -> float:
    """`level` is of the one tail that counts.

    Given both sample variances, what is significant is a threshold for the difference of means, which is normal and
    independent of them. Its probability is averaged over the variances, chi-squared each, by quadrature.
    """
    from scipy.special import gammaincinv, ndtr

    if min(n_a, n_b) < 2:
        return 0.0
    true_square = sd_a**2 / n_a + sd_b**2 / n_b
    if true_square == 0:
        return float(effect > 0)
    shares, weights = _quadrature()
    share_a, share_b = (
        sd**2 / n * 2 * gammaincinv((n - 1) / 2, shares) / (n - 1) for n, sd in ((n_a, sd_a), (n_b, sd_b))
    )
    square = share_a[:, None] + share_b
    freedom = square**2 / (share_a[:, None] ** 2 / (n_a - 1) + share_b**2 / (n_b - 1))
    found = ndtr((effect - student_quantile(1 - level, freedom) * np.sqrt(square)) / math.sqrt(true_square))
    return float(weights @ found @ weights)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Legendre's places and weights between 0 and 1."""
    places, weights = np.polynomial.legendre.leggauss(_NODES)
    return (places + 1) / 2, weights / 2


def _exact_power(n_a: int, n_b: int, effect: float, sd_a: float, sd_b: float, level: float) -> float:
    if smallest_p(n_a, n_b, "greater") > level:
        return 0.0
    normal_a, normal_b = _normal(n_a, n_b)
    p = permutation_p(effect + sd_a * normal_a, sd_b * normal_b, "greater", most=_MOST_SPLITS)
    return float((p <= level + 1e-12).mean())


def _fewest(reached: Callable[[int], bool], spread: float) -> int | None:
    """The smallest number that has reached the power, sought around the normal approximation.

    `spread` is the sd of a single difference over the size of the difference.
    """
    if not math.isfinite(spread):
        return None
    low, high = 1, min(MOST_REPLICATES, 2 + math.ceil(_NORMAL_SQUARE * spread**2))
    while not reached(high):
        if high == MOST_REPLICATES:
            return None
        low, high = high, min(2 * high, MOST_REPLICATES)
    while high - low > 1:
        middle = max((low + high) // 2, high - 3)  # the approximation is mostly too small by one or two
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


@lru_cache(maxsize=32)
def _normal(n_a: int, n_b: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard scores of `EXPERIMENTS` experiments: [experiments, n_a] and [experiments, n_b]."""
    draws = np.random.default_rng([SEED, n_a, n_b])
    return draws.standard_normal((EXPERIMENTS, n_a)), draws.standard_normal((EXPERIMENTS, n_b))
