"""What a strategy reports beside its steps, as metrics of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "distribution"


def report_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report, and of the mappings in it, by path: `distribution/idle/worker0`.

    These are drawn as curves. What lies deeper, or is no number, is left to the run's result; energy has an account
    of its own (`nmt.training.energy`).
    """
    found = dict(_numbers(report, PREFIX))
    for name, values in report.items():
        if isinstance(values, Mapping) and name != "energy":
            found |= dict(_numbers(values, f"{PREFIX}/{name}"))
    return found


def _numbers(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}/{name}", value
