"""The distributions of the next token: what a method of search asks of them, computed when it asks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.search.candidates import candidates, in_grid, log_softmax
from nmt.search.interface import RowModel
from nmt.search.rows import STABLE_ROWS, take

# Rows whose logits a CPU makes at a time: enough for products at full speed, few enough that the logits stay in the
# processor's cache, and as few whatever the batch.
PIECE_ROWS = 384


class NextTokens(Protocol):
    """Next-token distributions of the hypotheses of a batch, in the grid [batch, k, ...]."""

    def candidates(self, count: int, finished: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gains in log-probability and tokens of what may follow, [batch, k, n]; see `nmt.search.candidates`.

        `finished` [batch, k]: behind these only EOS counts, at no cost.
        """

    def log_probabilities(self) -> Tensor:
        """All of them, [batch, k, vocabulary] float32, the caller's own; zeros where no hypothesis is at hand."""


class Predicted:
    """The model's own distributions, without ever holding them all for a beam.

    Parameters
    ----------
    model: whose `logits` are asked for.
    outputs: what its `step` gave: `count` rows of tensors.
    rows: the hypotheses that these are of; what is beyond its places only fills up.
    at_a_time: rows whose logits are made at a time.
    """

    def __init__(self, model: RowModel, outputs: Any, count: int, rows: HypothesisRows, at_a_time: int = PIECE_ROWS):
        self.model, self.outputs, self.count, self.rows = model, outputs, count, rows
        self.bounds = [*range(0, count, at_a_time), count]
        if len(self.bounds) > 2 and count - self.bounds[-2] < STABLE_ROWS:
            self.bounds[-2] = count - STABLE_ROWS

    def candidates(self, count: int, finished: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `NextTokens`."""
        gains, tokens = zip(*(candidates(logits, count) for logits in self._pieces()), strict=True)
        found = self._without_filling(torch.cat(gains)), self._without_filling(torch.cat(tokens))
        return in_grid(*found, self.rows, finished)

    def log_probabilities(self) -> Tensor:
        """See `NextTokens`."""
        whole = torch.cat([log_softmax(logits) for logits in self._pieces()])
        return self.rows.spread(self._without_filling(whole))

    def _pieces(self) -> Iterator[Tensor]:
        """Logits of some rows after others: as many each time, for oneDNN compiles its products for every number."""
        for start, stop in pairwise(self.bounds):
            yield self.model.logits(take(self.outputs, slice(start, stop)))

    def _without_filling(self, found: Tensor) -> Tensor:
        return found if self.rows.places is None else found[: len(self.rows.places)]


class Changed:
    """Distributions from which some tokens' probability was taken, [batch, k, vocabulary] log-probabilities."""

    def __init__(self, log_probabilities: Tensor):
        self._log_probabilities = log_probabilities

    def candidates(self, count: int, finished: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `NextTokens`."""
        batch, k, _ = self._log_probabilities.shape
        found = candidates(self._log_probabilities.flatten(0, 1), count, normalised=True)
        return in_grid(*found, HypothesisRows(batch, k), finished)

    def log_probabilities(self) -> Tensor:
        """See `NextTokens`."""
        return self._log_probabilities
