"""Picking and reordering what a search holds: tensors whose first dimension is the sentence, the second the slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.search.interface import RowModel, TranslationModel

# A float32 matrix product computes a row the same way whatever the other rows, if only there are so many or more:
# measured on MKL with 1 and 2 threads; below 4 rows the bits do differ.
STABLE_ROWS = 16


class Rowwise:
    """A frozen dataclass whose tensors all have the sentences of a batch as their first dimension.

    Fields of another type belong to the whole batch and stay as they are.
    """

    def take(self, rows: Tensor | slice) -> Self:
        """Some sentences of these."""
        return self._with(lambda tensor, _: tensor[rows], self)

    def put(self, rows: Tensor, other: Self) -> Self:
        """These sentences, with those of `other` in the given rows."""
        return self._with(lambda tensor, new: tensor.index_copy(0, rows, new), other)

    def _with(self, change: Callable[[Tensor, Tensor], Tensor], other: Self) -> Self:
        changed: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = change(value, getattr(other, item.name))
        return replace(self, **changed)  # type: ignore[type-var]


class GridModel:
    """A `RowModel` of a model whose step knows grids only."""

    packs = False

    def __init__(self, model: TranslationModel):
        self.model = model

    def in_rows(self, steps: int = 0) -> GridModel:
        """Itself."""
        return self

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """What the model makes of the sentences."""
        return self.model.encode(source, lengths)

    def start(self, encoded: Any) -> Any:
        """The model's first state."""
        return _map(lambda tensor: tensor.squeeze(1), self.model.start(encoded, 1))

    def step(self, tokens: Tensor, state: Any, encoded: Any, rows: HypothesisRows) -> tuple[Tensor, Any, Tensor | None]:
        """One token further; the outputs are the logits."""
        logits, state, weights = self.model.step(rows.spread(tokens), _map(rows.spread, state), encoded)
        return rows.pick(logits), _map(rows.pick, state), weights

    def logits(self, outputs: Tensor) -> Tensor:
        """The outputs."""
        return outputs


def in_rows(model: TranslationModel | RowModel, steps: int = 0) -> RowModel:
    """`model` as the loop drives it; see `RowModel.in_rows`."""
    make: Callable[[int], RowModel] | None = getattr(model, "in_rows", None)
    return make(steps) if make else GridModel(model)  # type: ignore[arg-type]


def take(tensors: Any, rows: Tensor | slice) -> Any:
    """Rows of the first dimension, of every tensor in a (nested, named) tuple."""
    if isinstance(rows, slice):
        return _map(lambda tensor: tensor[rows], tensors)
    return _map(lambda tensor: tensor.index_select(0, rows), tensors)


def reorder(tensors: Any, slots: Tensor) -> Any:
    """Every tensor [batch, k, ...] of a (nested, named) tuple, with its slots taken from `slots` [batch, n]."""
    if isinstance(tensors, Tensor):
        return _reorder(tensors, slots, torch.arange(len(slots), device=slots.device))
    rows = torch.arange(len(slots), device=slots.device)
    return _map(lambda tensor: _reorder(tensor, slots, rows), tensors)


def _reorder(tensor: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
    flat = (rows * tensor.shape[1]).unsqueeze(1) + slots
    return tensor.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, slots.shape)


def _map(change: Callable[[Tensor], Tensor], tensors: Any) -> Any:
    if tensors is None:
        return None
    if isinstance(tensors, Tensor):
        return change(tensors)
    changed = [_map(change, tensor) for tensor in tensors]
    return type(tensors)(*changed) if hasattr(tensors, "_fields") else tuple(changed)
