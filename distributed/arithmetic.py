"""The arithmetic of the canonical step that every strategy shares; see `distributed.strategy`.

Parameters and gradients live in flat buffers. Everything here gives the same bits whatever the number of threads, and
whatever the cut of a buffer into shards, as long as cuts fall on chunk borders.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from distributed.large_memory import large_zeros

CHUNK = 1 << 15  # elements; also the size below which torch never splits a reduction over threads
_ALIGNMENT = 16  # elements: every parameter starts on a cache line


def flat_layout(shapes: Mapping[str, torch.Size]) -> tuple[dict[str, tuple[int, torch.Size]], int]:
    """Where parameters of these shapes lie in a flat buffer, one behind the other, and how many elements it has."""
    layout, size = {}, 0
    for name, shape in shapes.items():
        layout[name] = (size, shape)
        size += math.ceil(shape.numel() / _ALIGNMENT) * _ALIGNMENT
    return layout, size


class FlatParameters:
    """A model's parameters, and a gradient buffer, as views into flat fp32 tensors.

    `values` [elements] holds the parameters in registration order; `gradient` [elements] receives what backward passes
    add, from the first `collect_into` on. A shared parameter appears once. `allocate` gives gradient buffers of so many
    zeros, where they must lie in memory of a special kind.
    """

    def __init__(self, model: torch.nn.Module, allocate: Callable[[int], torch.Tensor] | None = None):
        self._allocate = allocate
        self._parameters = dict(model.named_parameters())
        self.layout, size = flat_layout({name: parameter.shape for name, parameter in self._parameters.items()})
        first = next(iter(self._parameters.values()))
        self.values = self._zeros(size, first.device)
        for name, parameter in self._parameters.items():
            view = self.view(self.values, name)
            view.copy_(parameter.detach())
            parameter.data = view
        self._spare: list[torch.Tensor] = []
        self.gradient: torch.Tensor

    def view(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        """The part of a flat buffer that belongs to a parameter, in its shape."""
        start, shape = self.layout[name]
        return buffer[start : start + shape.numel()].view(shape)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """All parameters' parts of a flat buffer, by name."""
        return {name: self.view(buffer, name) for name in self.layout}

    def new_buffer(self) -> torch.Tensor:
        """A flat buffer of zeros of the parameters' layout."""
        return self.used_buffer().zero_()

    def used_buffer(self) -> torch.Tensor:
        """The same with whatever content in the parameters' parts; between them are zeros."""
        with contextlib.suppress(IndexError):  # two threads may want the last one
            return self._spare.pop()
        elements = self.values.numel()
        return self._allocate(elements) if self._allocate else self._zeros(elements, self.values.device)

    @staticmethod
    def _zeros(elements: int, device: torch.device) -> torch.Tensor:
        return large_zeros(elements) if device.type == "cpu" else torch.zeros(elements, device=device)

    def release(self, buffer: torch.Tensor) -> None:
        """Give a buffer back, to be used again by `new_buffer`; twice does no harm."""
        if not any(spare is buffer for spare in self._spare):
            self._spare.append(buffer)

    def collect_into(self, buffer: torch.Tensor) -> None:
        """Let backward passes add gradients into `buffer` from now on."""
        self.gradient = buffer
        for name, parameter in self._parameters.items():
            parameter.grad = self.view(buffer, name)


class Pool(Protocol):
    """Takes buffers back that are not needed any more."""

    def release(self, buffer: torch.Tensor) -> None:
        """Give a buffer back."""


class PairwiseSum:
    """The sum of equally long buffers by a fixed binary tree, fed from left to right.

    The tree depends on the number of leaves alone: neighbours of equal height are added as soon as both are there, and
    what is left at the end is added from the right. At most log2(leaves) + 1 buffers are alive at a time.
    """

    def __init__(self, pool: Pool):
        self._pool = pool
        self._nodes: list[tuple[int, torch.Tensor]] = []

    def add(self, leaf: torch.Tensor) -> None:
        """Take over the next leaf."""
        height, node = 0, leaf
        while self._nodes and self._nodes[-1][0] == height:
            node = self._merge(self._nodes.pop()[1], node)
            height += 1
        self._nodes.append((height, node))

    def result(self) -> torch.Tensor:
        """The sum; no leaf may follow."""
        node = self._nodes.pop()[1]
        while self._nodes:
            node = self._merge(self._nodes.pop()[1], node)
        return node

    def discard(self) -> None:
        """Give up what was added so far."""
        while self._nodes:
            self._pool.release(self._nodes.pop()[1])

    def _merge(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        left.add_(right)
        self._pool.release(right)
        return left


def chunks(*buffers: torch.Tensor, size: int = 8 * CHUNK) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cut buffers of one length at the same chunk borders, so that an update works in the cache.

    On a GPU, where each piece would cost launches instead, they stay whole.
    """
    if buffers[0].is_cuda:
        yield buffers
        return
    for start in range(0, buffers[0].numel(), size):
        yield tuple(buffer[start : start + size] for buffer in buffers)


def square_sums(buffer: torch.Tensor, start: int = 0, stop: int | None = None) -> list[float]:
    """Sums of squares in fp64 of a flat fp32 buffer, or of its elements from `start` to `stop`, piece by piece.

    Pieces end where the buffer's chunks end. So whoever holds some of a parameter's chunks, whole or the parts that
    belong to it, computes some of its pieces to the bit.
    """
    stop = buffer.numel() if stop is None else stop
    first = min(-(-start // CHUNK) * CHUNK, stop)  # the first border
    last = max(first, stop // CHUNK * CHUNK)  # the last one
    whole = buffer[first:last].view(-1, CHUNK)
    norms = [
        *([torch.linalg.vector_norm(buffer[start:first], dtype=torch.float64).view(1)] if start < first else []),
        *_row_norms(whole),
        torch.linalg.vector_norm(buffer[last:stop], dtype=torch.float64).view(1),
    ]
    return [norm * norm for norm in torch.cat(norms).tolist()]


def _row_norms(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """The fp64 norms of rows [n, CHUNK], some at a time: in fp64 these stay in the cache, the whole would not."""
    if rows.is_cuda:
        yield torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return
    wide = rows.new_empty(4, CHUNK, dtype=torch.float64)
    for some in rows.split(len(wide)):
        yield torch.linalg.vector_norm(wide[: len(some)].copy_(some), dim=1)


def norm(sums: Sequence[float]) -> float:
    """The 2-norm of a buffer from the square sums of its chunks, whoever computed them; nan or inf pass through."""
    if not all(math.isfinite(value) for value in sums):
        return math.nan if any(math.isnan(value) for value in sums) else math.inf
    return math.sqrt(math.fsum(sums))


def clip_(gradient: torch.Tensor, gradient_norm: float, max_norm: float) -> None:
    """Scale a gradient in place so that its global norm is at most `max_norm` (Pascanu et al. 2013); 0: leave it."""
    if max_norm and gradient_norm > max_norm:
        gradient.mul_(max_norm / gradient_norm)


def parameter_norms(flat: FlatParameters, buffer: torch.Tensor, names: Sequence[str] | None = None) -> dict[str, float]:
    """The 2-norm of each parameter's part of a flat buffer, by name (of all parameters, or of those in `names`).

    `math.fsum` over the `square_sums` of the parameter's pieces, which are cut at chunk borders of the *buffer*: the
    same bits whatever the cut of the buffer into shards, as long as it falls on chunk borders.
    """
    norms = {}
    for name in flat.layout if names is None else names:
        start, shape = flat.layout[name]
        norms[name] = norm(square_sums(buffer, start, start + shape.numel()))
    return norms


def clip_parameters_(flat: FlatParameters, gradient: torch.Tensor, max_norms: Mapping[str, float]) -> None:
    """Scale the gradients of the named parameters in place, each so that its own norm is at most its `max_norms`."""
    for name, own_norm in parameter_norms(flat, gradient, list(max_norms)).items():
        clip_(flat.view(gradient, name), own_norm, max_norms[name])
