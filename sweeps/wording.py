"""How counts, means and figures that are not there are put for a reader: the same in every table and line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.aggregate import Statistics

NOTHING = "–"  # in a cell that has nothing to say


def counted(number: int, what: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def mean_and_sd(values: Statistics | None) -> str:
    """`30.42 ± 0.31`; without ± for a single value, `NOTHING` for none."""
    if values is None:
        return NOTHING
    return f"{values.mean:.2f}" if values.sd is None else f"{values.mean:.2f} ± {values.sd:.2f}"
