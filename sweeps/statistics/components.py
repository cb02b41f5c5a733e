"""Where the spread of replicates comes from: standard deviations by source, with intervals, and what they add up to.

Each part is a sample of replicates in which one source alone varies while the others are held; the whole is one in
which all of them vary. If sources only add, the parts' variances sum to that of the whole. If they interact, each part
that takes part in an interaction has it in its own variance, so the sum is larger: the parts are what Sobol calls total
effects (I. M. Sobol, "Global sensitivity indices for nonlinear mathematical models", Mathematics and Computers in
Simulation 55, 2001), here around the one point at which the others are held.

Intervals assume normal scores, and nothing else: chi-square for a variance, F for a ratio of two, and for sums of
variances generalised pivotal quantities (S. Weerahandi, "Generalized confidence intervals", JASA 88, 1993): every
variance is drawn as s² (n - 1) / χ², again and again. Percentile intervals of resampled scores are no way here: of 4 or
8 replicates they hold the ratio 88 times of 100 (docs/variance.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.statistics.contrasts import LEVEL, SEED

DRAWS = 20_000  # of a pivotal quantity
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of n finite scores, two or more: their variance (n - 1 in the denominator), and sd with its 95 % interval.

    `interval` is None where all scores are equal: such a sample says nothing on how far others might lie.
    """

    n: int
    variance: float
    interval: Interval | None

    @property
    def sd(self) -> float:
        """Square root of the variance."""
        return math.sqrt(self.variance)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Variance of a part over that of the whole, with its 95 % interval."""

    share: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """What the parts' variances come to, beside that of the whole; intervals at 95 %.

    ratio: sum of the parts over the whole. 1 where sources add, above 1 where they interact.
    remainder: the whole minus the sum, in squared units of the score.
    """

    ratio: float
    ratio_interval: Interval
    remainder: float
    remainder_interval: Interval


def spread(scores: Sequence[float]) -> Spread | None:
    """The spread of a sample; None for fewer than two scores, and where one is not finite."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    variance = 0.0 if (values == values[0]).all() else float(values.var(ddof=1))
    low, high = sd_factors(len(values))
    sd = math.sqrt(variance)
    return Spread(n=len(values), variance=variance, interval=(low * sd, high * sd) if variance else None)


def sd_factors(n: int) -> Interval:
    """By what the sd of n normal scores is to be multiplied for the ends of its interval; 4 scores: 0.57 and 3.73."""
    from scipy.special import chdtri

    return math.sqrt((n - 1) / chdtri(n - 1, _TAILS[0])), math.sqrt((n - 1) / chdtri(n - 1, _TAILS[1]))


def share(part: Spread, whole: Spread) -> Share | None:
    """A part's share of the whole's variance; None where a sample has no spread."""
    from scipy.special import fdtri

    if not part.variance or not whole.variance:
        return None
    ratio = part.variance / whole.variance
    low, high = (float(fdtri(part.n - 1, whole.n - 1, tail)) for tail in _TAILS)
    return Share(share=ratio, interval=(ratio / high, ratio / low))


def decompose(whole: Spread, parts: Mapping[str, Spread]) -> Decomposition | None:
    """Sum the parts up and hold them against the whole; None without parts, or where the whole has no spread."""
    if not parts or not whole.variance:
        return None
    total = math.fsum(part.variance for part in parts.values())
    random = np.random.default_rng(SEED)
    sums = np.zeros(DRAWS)
    for part in parts.values():
        sums += _pivots(part.variance, part.n, DRAWS, random)
    wholes = _pivots(whole.variance, whole.n, DRAWS, random)
    return Decomposition(
        ratio=total / whole.variance,
        ratio_interval=_ends(sums / wholes),
        remainder=whole.variance - total,
        remainder_interval=_ends(wholes - sums),
    )


def ratio_coverage(whole: Spread, parts: Mapping[str, Spread], experiments: int = 1000, draws: int = 4000) -> float:
    """How often the interval of `decompose` holds the ratio, by simulation.

    True where scores are normal with the variances given, in as many replicates.
    """
    random = np.random.default_rng(SEED)
    sums, wholes = np.zeros((experiments, draws)), np.zeros((experiments, draws))
    for drawn, samples in ((sums, list(parts.values())), (wholes, [whole])):
        for sample in samples:
            estimates = sample.variance * random.chisquare(sample.n - 1, experiments) / (sample.n - 1)
            drawn += estimates[:, None] * ((sample.n - 1) / random.chisquare(sample.n - 1, draws))
    truth = math.fsum(part.variance for part in parts.values()) / whole.variance
    below = (sums < truth * wholes).mean(axis=1)  # where the truth lies among the draws of each experiment
    return float(((below >= _TAILS[0]) & (below <= _TAILS[1])).mean())


def _pivots(variance: float, n: int, draws: int, random: np.random.Generator) -> np.ndarray:
    return variance * (n - 1) / random.chisquare(n - 1, draws)


def _ends(draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, _TAILS)
    return float(low), float(high)
