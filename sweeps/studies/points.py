"""What experiments find out: points, tables and pictures. Whatever a report says is made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sweeps.reporting.curves import Curve
from sweeps.reporting.table import Table

MEASURED, EMULATED, FORMULA = "measured", "emulated", "by formula"
KINDS = (MEASURED, EMULATED, FORMULA)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of a row, or why there is none.

    condition: what the value holds under beside its row, the weightiest part first (`100 Mbit/s`, `8 nodes`).
    kind: of `KINDS`; a value that was not measured is never without this word.
    refused: why there is no value, as a clause; empty where there is one.
    """

    row: str
    figure: str
    value: float | None = None
    condition: tuple[str, ...] = ()
    kind: str = MEASURED
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Curves of rows on common axes; `name` is the picture's file."""

    name: str
    title: str
    x_title: str
    y_title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an experiment, or a part of it, found: points, and tables, pictures and remarks that show them."""

    points: tuple[Point, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    remarks: tuple[str, ...] = field(default=())

    def __add__(self, other: Findings) -> Findings:
        """Both, this one first."""
        return Findings(
            points=(*self.points, *other.points),
            tables=(*self.tables, *other.tables),
            pictures=(*self.pictures, *other.pictures),
            remarks=(*self.remarks, *other.remarks),
        )


def table_of(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = (), texts: int = 1
) -> Table:
    """A table whose first `texts` columns are text, and all others numbers."""
    return Table(
        title=title,
        conditions="",
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        numeric=tuple(place >= texts for place in range(len(columns))),
        legend=(),
        notes=tuple(notes),
    )


def line(label: str, x: Sequence[float], y: Sequence[float]) -> Curve:
    """A curve of single values."""
    values = tuple(y)
    return Curve(label=label, x=tuple(x), mean=values, low=values, high=values, n=(1,) * len(values), run_ids=())
