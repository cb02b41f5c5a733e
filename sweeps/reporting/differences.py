"""Each row's difference to the baseline, measured and published: what the forest plot draws and the formats print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.aggregate import RowResult
from sweeps.significance import Significance


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A row's mean test score less the baseline's.

    `measured` is None where a side has no result, or the row's runs are the baseline's own; `interval` (95 %) is None
    where a side has one replicate. `p` is corrected by Holm over the rows; `mark` is the table's. Both are Welch's, or
    of the paired t test where the row decodes the baseline's trainings (`paired`). `published` is the difference of the
    published means, where both are known, and `runs` how many replicates stand against how many.
    """

    label: str
    measured: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    mark: str = ""
    paired: bool = False
    published: float | None = None
    runs: tuple[int, int] = (0, 0)


def differences(results: Sequence[RowResult], baseline: str | None, tests: Significance) -> list[Difference]:
    """The rows other than the baseline, in the table's order; none without a baseline.

    `tests` are those of `sweeps.significance` for these rows.
    """
    base = next((row for row in results if row.label == baseline), None)
    if base is None:
        return []
    found = []
    for row in results:
        if row is base:
            continue
        against = tests.rows.get(row.label)
        contrast = against.contrast if against else None
        found.append(
            Difference(
                label=row.label,
                measured=contrast.difference if contrast else None,
                interval=contrast.interval if contrast else None,
                p=against.p_holm if against else None,
                mark=against.mark if against else "",
                paired=contrast.paired if contrast else False,
                published=_published(row, base),
                runs=(len(row.complete), len(base.complete)),
            )
        )
    return found


def interval_names(found: Sequence[Difference]) -> str:
    """Whose intervals those of a table are: Welch's, or of pairs, or some of each."""
    kinds = {one.paired for one in found if one.interval is not None}
    if kinds == {True}:
        return "pairs"
    return "Welch, or pairs of one training" if kinds == {True, False} else "Welch"


def _published(row: RowResult, base: RowResult) -> float | None:
    sides = [one.published.mean if one.published else None for one in (row, base)]
    return None if sides[0] is None or sides[1] is None else sides[0] - sides[1]
