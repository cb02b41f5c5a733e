"""A shard: some of the parameters' chunks with their optimizer state, and what is computed on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from distributed.arithmetic import clip_, square_sums
from distributed.buffers import BufferPool
from distributed.large_memory import large_zeros
from distributed.optimizers import Optimizer
from distributed.shards import Piece, ShardMap

Layout = Mapping[str, tuple[int, int]]
"""By parameter, the elements of the flat buffer from where to where."""


class Shard:
    """Parameters and optimizer state of one shard, with the arithmetic of the canonical step on its chunks.

    Parameters
    ----------
    number, shard_map: which one of which cut.
    layout: where each parameter lies.
    optimizer: the update rule.
    allocate: gives a buffer of so many elements for what is sent to others (shared memory, where there is some).
    """

    def __init__(
        self,
        number: int,
        shard_map: ShardMap,
        layout: Layout,
        optimizer: Optimizer,
        allocate: Callable[[int], torch.Tensor] = torch.zeros,
    ):
        self.number, self.pieces = number, shard_map.of_shard(number)
        self._layout, self._optimizer = layout, optimizer
        size = shard_map.size(number)
        self.values = allocate(size).zero_()
        self.moments = {slot: large_zeros(size) for slot in optimizer.slots}
        self.updates = 0
        self.applied = 0

    @property
    def buffers(self) -> Sequence[torch.Tensor]:
        """Everything that makes up its state beside two numbers: parameters, then the optimizer's in order."""
        return [self.values, *self.moments.values()]

    def part_sums(self, piece: Piece, gradient: torch.Tensor, names: Sequence[str]) -> dict[str, list[float]]:
        """Square sums of the parts of named parameters that lie in a piece; `gradient` [elements of the piece]."""
        return {name: square_sums(gradient, start, stop) for name, start, stop in self._parts(piece, names)}

    def scale_parts(
        self, piece: Piece, gradient: torch.Tensor, norms: Mapping[str, float], most: Mapping[str, float]
    ) -> None:
        """Scale the parts of named parameters so that the parameter's norm, given in `norms`, is at most its `most`."""
        for name, start, stop in self._parts(piece, list(most)):
            clip_(gradient[start:stop], norms[name], most[name])

    def part_sums_of_all(self, buffers: Mapping[int, torch.Tensor]) -> dict[str, list[float]]:
        """Square sums of every parameter's parts in this shard, from buffers by piece."""
        parts: dict[str, list[float]] = {}
        for piece in self.pieces:
            for name, sums in self.part_sums(piece, buffers[piece.index], list(self._layout)).items():
                parts.setdefault(name, []).extend(sums)
        return parts

    def part_sums_after_clipping(
        self,
        gradients: Mapping[int, torch.Tensor],
        gradient_norm: float,
        max_norm: float,
        names: Sequence[str],
        pool: BufferPool,
    ) -> dict[str, list[float]]:
        """Square sums of named parameters' parts as they will be after clipping, which is not done here.

        Until the step is applied, the gradient must stay as it is: it may have to be sent to another shadow. `pool`
        gives room for a copy of a piece.
        """
        parts: dict[str, list[float]] = {}
        for piece in self.pieces:
            scaled = pool.take(piece.elements).copy_(gradients[piece.index])
            clip_(scaled, gradient_norm, max_norm)
            for name, sums in self.part_sums(piece, scaled, names).items():
                parts.setdefault(name, []).extend(sums)
            pool.give_back(scaled)
        return parts

    def update(self, piece: Piece, gradient: torch.Tensor, update: int, rate: float) -> None:
        """Apply a piece's gradient by the optimizer; `update` counts the shard's updates from 1."""
        values, *moments = (piece.local(buffer) for buffer in self.buffers)
        with torch.no_grad():  # in one go: a fused rule streams through memory once, and chunks cost a call each
            self._optimizer.apply(values, gradient, dict(zip(self.moments, moments, strict=True)), update, rate)

    def _parts(self, piece: Piece, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """Where named parameters lie in a piece, counted from its start."""
        for name in names:
            start, stop = self._layout[name]
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                yield name, first - piece.start, last - piece.start
