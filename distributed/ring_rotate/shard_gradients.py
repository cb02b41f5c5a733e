"""The gradients of the shards that a node holds, and how much of the open step's is still to come."""

from __future__ import annotations

from collections.abc import Collection

import torch

from distributed.ring.segments import Part
from distributed.ring_rotate.plan import RotationPlan


class ShardGradients:
    """A flat buffer for each seat's shard, written part by part at every step."""

    def __init__(self, plan: RotationPlan):
        self._plan = plan
        self._buffers: dict[int, torch.Tensor] = {}
        self._missing: dict[int, int] = {}  # by seat, elements that have not come

    def hold(self, seats: Collection[int]) -> None:
        """Have buffers for these seats and no others; what is in them stays."""
        self._buffers = {
            seat: self._buffers[seat] if seat in self._buffers else torch.zeros(self._plan.shard_elements(seat))
            for seat in seats
        }

    def begin(self) -> None:
        """All of a step is still to come."""
        self._missing = {seat: len(buffer) for seat, buffer in self._buffers.items()}

    def of(self, seat: int) -> torch.Tensor:
        """A seat's buffer [elements]."""
        return self._buffers[seat]

    def part(self, unit: int, seat: int, part: Part) -> torch.Tensor:
        """Where a part of a unit is in the buffer of the seat that owns it."""
        piece = self._plan.shards[seat][unit]
        start = piece.offset + part.start - piece.start
        return self._buffers[seat][start : start + part.elements]

    def has_come(self, seat: int, part: Part) -> None:
        """A part is there."""
        self._missing[seat] -= part.elements

    @property
    def are_complete(self) -> bool:
        """Whether all of a step has come."""
        return not any(self._missing.values())

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
