"""Which hypotheses of a batch are computed: all of them, or only those that can still go on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class HypothesisRows(NamedTuple):
    """The hypotheses of a grid of `batch` sentences with `k` slots each that are at hand, one a row.

    Matrix products cost as much for a hypothesis that ended as for a live one, so a search leaves the former out of
    the rows. Attention needs the grid, because the hypotheses of a sentence share its memory.

    places: [rows] each row's place in the grid, sentence * k + slot; a place may stand there more than once if its rows
        are equal. None: every place in order.
    """

    batch: int
    k: int
    places: Tensor | None = None

    def spread(self, rows: Tensor) -> Tensor:
        """[rows, ...] in the grid [batch, k, ...], with zeros where no row is at hand."""
        if self.places is None:
            return rows.unflatten(0, (self.batch, self.k))
        grid = rows.new_zeros(self.batch * self.k, *rows.shape[1:])
        return grid.index_copy_(0, self.places, rows).unflatten(0, (self.batch, self.k))

    def pick(self, grid: Tensor) -> Tensor:
        """The rows [rows, ...] of a grid [batch, k, ...]."""
        flat = grid.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)

    def shared(self, sentences: Tensor) -> Tensor:
        """For each row what belongs to its sentence: [batch, ...] -> [rows, ...]."""
        if self.places is None:
            return sentences.repeat_interleave(self.k, dim=0, output_size=self.batch * self.k)
        return sentences.index_select(0, self.places // self.k)
