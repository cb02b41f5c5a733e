"""What a check found: figures, and demands that hold or do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_ON_CPU = "not on a cpu"  # stands for a figure that only a GPU has
PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


class Skipped(Exception):
    """A check cannot be made here; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    demands: in words, and whether each holds. A check without demands reports.
    figures: single values by name. rows: a table, one mapping a row with the same keys.
    note: what a reader should know beside the figures.
    """

    demands: Mapping[str, bool] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A check's verdict (`pass`, `fail` or `skipped`), the seconds that it took, and its outcome.

    reason: why it was skipped, or what broke it.
    """

    name: str
    verdict: str
    seconds: float
    outcome: Outcome
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def markdown(title: str, results: Sequence[Result]) -> str:
    """A report: the verdicts in one table, then what each check found."""
    lines = [f"# {title}", "", *_table([_summary(result) for result in results])]
    for result in results:
        outcome = result.outcome
        lines += ["", f"## {result.name}: {result.verdict}", ""]
        lines += [result.reason, ""] if result.reason else []
        lines += [f"- {'holds' if holds else 'DOES NOT HOLD'}: {demand}" for demand, holds in outcome.demands.items()]
        lines += [f"- {name}: {_cell(value)}" for name, value in outcome.figures.items()]
        if outcome.rows:
            lines += ["", *_table(outcome.rows)]
        if outcome.note:
            lines += ["", outcome.note]
    return "\n".join(lines) + "\n"


def _summary(result: Result) -> dict[str, Any]:
    broken = [demand for demand, holds in result.outcome.demands.items() if not holds]
    held = "demands nothing, reports" if not result.outcome.demands else f"{len(result.outcome.demands)} demands hold"
    why = result.reason or (f"broken: {'; '.join(broken)}" if broken else held)
    return {"check": result.name, "verdict": result.verdict, "seconds": round(result.seconds, 1), "why": why}


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"| {' | '.join(rows[0])} |"
    yield f"|{'---|' * len(rows[0])}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row.values()))} |"


def _cell(value: Any) -> str:
    """A figure as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items()) or "none"
    return str(value)
