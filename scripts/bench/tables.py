"""What a part found, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.machine import Spread


@dataclass(frozen=True)
class Part:
    """A part of the report.

    text: paragraphs and tables. figures: all that was measured, as JSON has it. ratios: dimensionless, by name.
    seconds: times that are figures of their own, by name.
    """

    title: str
    text: Sequence[str]
    figures: Any
    ratios: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def markdown(self) -> str:
        """Heading and text."""
        return "\n\n".join([f"## {self.title}", *self.text])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def giga(values: Spread) -> str:
    """A median with its spread, in billions."""
    return values.shown(lambda value: f"{value / 1e9:,.0f}")


def mega(size: float) -> str:
    """Bytes as MB."""
    return f"{size / 1e6:,.0f}"
