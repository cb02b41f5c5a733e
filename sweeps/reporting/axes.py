"""Scales of pictures: from values to places, round ticks, and their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # round distances between ticks, times a power of ten


@dataclass(frozen=True)
class Scale:
    """Takes values from `low` to `high` to places from `start` to `end`; `high` is above `low`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """At most `most` round values on the scale, at equal distances; at least one."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / max(1, most)))
        for step in (factor * power for factor in (*STEPS, *(10 * factor for factor in STEPS[1:]))):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first + 1 <= most:
                break
        return [number * step for number in range(first, last + 1)] or [self.low]


def spanning(
    values: Iterable[float], start: float, end: float, margin: float = 0.05, around: float | None = None
) -> Scale:
    """A scale on which all finite values have room, with a margin as a share of their span; `around` lies on it too."""
    known = [value for value in values if math.isfinite(value)] + ([] if around is None else [around])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = (high - low) * margin or max(abs(high) * margin, 0.5)
    return Scale(low - room, high + room, start, end)


def tick_labels(ticks: list[float]) -> list[str]:
    """Ticks in as few characters as tell them apart: thousands and millions as k and M, decimals only where needed."""
    largest = max(map(abs, ticks), default=0.0)
    unit, ending = next(
        ((size, sign) for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * size), (1.0, "")
    )
    scaled = [tick / unit for tick in ticks]
    decimals = next((n for n in range(4) if all(abs(value - round(value, n)) < 1e-6 for value in scaled)), 4)
    return [
        f"{value:,.{decimals}f}{ending if value else ''}".replace("-", "−") if round(value, decimals) else "0"
        for value in scaled
    ]
