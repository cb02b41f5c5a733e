"""Several tests at once: Holm's correction, and Dunnett's test where the rows' variances may be pooled.

Sources: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
(1979); C. W. Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50
(1955); M. B. Brown and A. B. Forsythe, "Robust tests for the equality of variances", JASA 69 (1974).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.statistics.contrasts import SEED

POOLING_LEVEL = 0.10  # below it, variances are taken to differ: higher than 0.05, since few replicates show little


@dataclass(frozen=True, kw_only=True)
class VarianceCheck:
    """Whether samples may share one estimate of variance.

    `p` is that of Brown and Forsythe's test (Levene's with medians); None where it cannot be computed: it takes two
    samples of three finite values or more, since two values are always equally far from their median, and spread in
    each. `sd_ratio` is the largest sd over the smallest.
    """

    samples: int
    statistic: float | None
    p: float | None
    sd_ratio: float | None

    @property
    def allows_pooling(self) -> bool:
        """True where the test ran and did not reject. With few replicates it rejects rarely: see docs/statistics.md."""
        return self.p is not None and self.p >= POOLING_LEVEL


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the smallest times m, the next times m - 1, …, never falling.

    At a level α, marking those at or below it makes a false mark in the family at most α of the time, however the tests
    depend on each other. Raises ValueError for what is no probability.
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"p values lie between 0 and 1: {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = highest
    return adjusted


def variance_check(samples: Sequence[Sequence[float]]) -> VarianceCheck:
    """Brown and Forsythe's test over the samples that have three finite values or more."""
    usable = [list(map(float, one)) for one in samples if len(one) > 2 and all(map(math.isfinite, one))]
    sds = [_sd(one) for one in usable]
    if len(usable) < 2 or not all(sds):
        return VarianceCheck(samples=len(usable), statistic=None, p=None, sd_ratio=None)
    statistic, p = _brown_forsythe(usable)
    return VarianceCheck(
        samples=len(usable),
        statistic=statistic,
        p=p if math.isfinite(p) else None,
        sd_ratio=max(sds) / min(sds),
    )


def _brown_forsythe(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """F of a one-way analysis of variance over distances to each sample's median, and its p; NaN without distances.

    As scipy.stats.levene has it, whose package takes a second to load.
    """
    from scipy.special import fdtrc

    distances = [[abs(value - statistics.median(one)) for value in one] for one in samples]
    sizes, means = [len(one) for one in distances], [statistics.fmean(one) for one in distances]
    total = math.fsum(n * mean for n, mean in zip(sizes, means, strict=True)) / sum(sizes)
    between = math.fsum(n * (mean - total) ** 2 for n, mean in zip(sizes, means, strict=True))
    within = math.fsum((value - mean) ** 2 for one, mean in zip(distances, means, strict=True) for value in one)
    freedom = (len(sizes) - 1, sum(sizes) - len(sizes))
    if not within:
        return (math.inf, 0.0) if between else (math.nan, math.nan)
    statistic = between / freedom[0] / (within / freedom[1])
    return statistic, float(fdtrc(*freedom, statistic))


def dunnett(samples: Sequence[Sequence[float]], control: Sequence[float]) -> list[float]:
    """Two-sided p of each sample against the control, adjusted for all of them, one variance for all.

    scipy integrates by seeded quasi-Monte-Carlo: the same scores give the same p, exact to about three decimals. Raises
    ValueError for a sample of fewer than two values.
    """
    from scipy import stats

    if any(len(one) < 2 for one in (*samples, control)):
        raise ValueError("Dunnett's test needs two values or more in each sample")
    return [float(p) for p in stats.dunnett(*samples, control=control, rng=SEED).pvalue]


def _sd(values: Sequence[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))
