"""How stale pushes are, counted as they are applied; and learning rates that answer to it.

The *version lag* of a push is the number of updates that a server has applied between the pull whose values the
gradient was computed from and the push itself; 0 for the gradient of the current values. The *clock gap* is how far the
workers' clocks lie apart at that moment, the *age* the seconds since the pull.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

RATE_SCALINGS = ("none", "workers", "staleness")

_STEPS_PER_OCTAVE = 4  # ages are counted in bins whose borders lie 2^(1/4) apart
_YOUNGEST = 1e-6  # seconds: the upper border of the first bin


def rate_factor(scaling: str, workers: int, lag: int) -> float:
    """What a push's learning rate is multiplied by.

    none: 1. workers: 1/W with the configured number of workers, so that W pushes move the parameters as far as their
    mean would. staleness: 1/(1 + lag) (Zhang et al. 2016). Raises ValueError for another word.
    """
    if scaling == "none":
        return 1.0
    if scaling == "workers":
        return 1.0 / workers
    if scaling == "staleness":
        return 1.0 / (1 + lag)
    raise ValueError(f"rate scaling {scaling!r} is none of {', '.join(RATE_SCALINGS)}")


class StalenessMeter:
    """The staleness of every push that one server has applied, in memory that does not grow with their number.

    Times are seconds of one monotonic clock, handed in.
    """

    def __init__(self) -> None:
        self.lags: Counter[int] = Counter()
        self.gaps: Counter[int] = Counter()
        self.ages: Counter[int] = Counter()  # by bin, see `_bin`
        self._age_sum = 0.0
        self._pulled: dict[int, tuple[int, float]] = {}

    def pulled(self, worker: int, version: int, now: float) -> None:
        """The worker was answered with the values of `version`."""
        self._pulled[worker] = (version, now)

    def lag(self, worker: int, version: int) -> int:
        """How stale a push of the worker is that would be applied to `version`."""
        return version - self._pulled[worker][0]

    def applied(self, worker: int, version: int, gap: int, now: float) -> int:
        """A push of the worker was applied to the values of `version`, the workers' clocks `gap` apart; its lag."""
        lag, age = self.lag(worker, version), now - self._pulled[worker][1]
        self.lags[lag] += 1
        self.gaps[gap] += 1
        self.ages[_bin(age)] += 1
        self._age_sum += age
        return lag

    def forget(self, worker: int) -> None:
        """The worker is lost."""
        self._pulled.pop(worker, None)

    def to_dict(self) -> dict[str, Any]:
        """All that was counted, as plain data that `add` takes back."""
        return {
            "version_lag": {str(value): count for value, count in sorted(self.lags.items())},
            "clock_gap": {str(value): count for value, count in sorted(self.gaps.items())},
            "age_bins": {str(value): count for value, count in sorted(self.ages.items())},
            "age_sum": self._age_sum,
        }

    def add(self, counted: Mapping[str, Any]) -> None:
        """Count what another meter has counted: that of another server, or of this one before a resume."""
        for own, name in ((self.lags, "version_lag"), (self.gaps, "clock_gap"), (self.ages, "age_bins")):
            for value, count in counted[name].items():
                own[int(value)] += count
        self._age_sum += counted["age_sum"]

    def summary(self) -> dict[str, Any]:
        """Plain data for metrics and results: `pushes`, and of each measure mean, p95, max and histogram.

        What is drawn as curves stands flat beside them: `mean`, `p95` and `max` of the version lag, the widest gap and
        the mean age.

        A p95 is the smallest value that 95 % of the pushes do not exceed. The age's p95 and max are the upper borders
        of their bins, at most 19 % above the exact value; its histogram is keyed by these borders, in seconds.
        """
        pushes = sum(self.lags.values())
        ages = Counter({_upper_border(index): count for index, count in self.ages.items()})
        age = summary_of(ages)
        if pushes:
            age["mean"] = self._age_sum / pushes
        lag, gap = summary_of(self.lags), summary_of(self.gaps)
        return {
            "pushes": pushes,
            "mean": lag["mean"],
            "p95": lag["p95"],
            "max": lag["max"],
            "clock_gap_max": gap["max"],
            "age_seconds_mean": age["mean"],
            "version_lag": lag,
            "clock_gap": gap,
            "age_seconds": age,
        }


def summary_of(counts: Mapping[Any, int]) -> dict[str, Any]:
    """Mean, p95, max and histogram of counted values; None where nothing was counted."""
    total = sum(counts.values())
    if not total:
        return {"mean": None, "p95": None, "max": None, "histogram": {}}
    reached, p95 = 0, None
    for value in sorted(counts):
        reached += counts[value]
        if p95 is None and reached >= 0.95 * total:
            p95 = value
    return {
        "mean": math.fsum(value * count for value, count in counts.items()) / total,
        "p95": p95,
        "max": max(counts),
        "histogram": {f"{value:g}": counts[value] for value in sorted(counts)},
    }


def _bin(age: float) -> int:
    return max(0, math.ceil(_STEPS_PER_OCTAVE * math.log2(age / _YOUNGEST))) if age > 0 else 0


def _upper_border(index: int) -> float:
    return float(f"{_YOUNGEST * 2 ** (index / _STEPS_PER_OCTAVE):.4g}")
