"""Each row's exact number of parameters at published size, beside the figure that was printed for it.

The published system's parameter counts identify its layout (which biases exist, what is fed where), so a row that does
not reproduce its figure is another model than the published one, and nothing is started with it. A published figure
that is known to be wrong says so itself (`published.params_note` of the row).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.config import to_dict
from nmt.errors import UserError
from sweeps.rows import published_row
from sweeps.spec import Published, RowSpec

TOLERANCE_M = 0.005  # figures are printed with two decimals


@dataclass(frozen=True, kw_only=True)
class RowCount:
    """A row's parameters at published size, and its published figure in millions; `note` excuses a difference."""

    label: str
    parameters: int
    published_M: float | None = None
    note: str = ""

    @property
    def difference_M(self) -> float | None:
        """Ours less the published figure, in millions; None where none was published."""
        return None if self.published_M is None else self.parameters / 1e6 - self.published_M

    @property
    def agrees(self) -> bool:
        """Whether the count rounds to the published figure; also where none was published."""
        # The published figure is a decimal: 66.32 and a count of 66,325,000 may differ by a hair more than 0.005.
        return self.difference_M is None or abs(self.difference_M) <= TOLERANCE_M + 1e-9


def count_rows(rows: Sequence[RowSpec], conf: Path | None = None) -> list[RowCount | None]:
    """The count of every row at published size, whatever scale is to run; None where no published form composes.

    Builds each distinct model once, without memory for its values. Imports torch.
    """
    from nmt.models.parameters import planned_parameters

    known: dict[str, int] = {}
    counts: list[RowCount | None] = []
    for row in rows:
        config = published_row(row, conf)
        if config is None:
            counts.append(None)
            continue
        model = json.dumps([to_dict(config)["model"], config.tokenizer.vocab_size], sort_keys=True)
        if model not in known:
            known[model] = planned_parameters(config)
        published = row.published or Published()
        counts.append(
            RowCount(
                label=row.label,
                parameters=known[model],
                published_M=published.params_M,
                note=published.params_note,
            )
        )
    return counts


def check_counts(counts: Sequence[RowCount | None]) -> str:
    """One line on how the counts agree with the published figures, empty where none was published.

    Raises UserError, with the figures, where a row differs from its published count and no note says why.
    """
    published = [count for count in counts if count is not None and count.published_M is not None]
    for count in published:
        if not count.agrees and not count.note:
            raise UserError(
                f"{count.parameters:,} parameters at published size, and {count.published_M:.2f}M were published",
                where=f"row '{count.label}'",
                allowed=[f"within {TOLERANCE_M}M of the published figure"],
                hint="the experiment describes another model, or published.params_note should say why they differ",
            )
    if not published:
        return ""
    agree = sum(count.agrees for count in published)
    line = (
        f"parameters at published size: {agree} of {len(published)} rows within {TOLERANCE_M}M of the published figure"
    )
    excused: dict[str, list[str]] = {}
    for count in published:
        if not count.agrees:
            said = f"{count.parameters:,} where {count.published_M:.2f}M is printed ({count.note})"
            excused.setdefault(said, []).append(count.label)
    return "; ".join([line, *(f"{' and '.join(labels)}: {said}" for said, labels in excused.items())])
