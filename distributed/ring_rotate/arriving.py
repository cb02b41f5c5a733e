"""Shards that come to a node whole: from the coordinator before training, from a neighbour when a ring changes."""

from __future__ import annotations

import torch

from distributed.ring_rotate.plan import RotationPlan
from distributed.ring_rotate.shard import Shard
from distributed.strategy import OptimizerSpec


class ArrivingShards:
    """Shards that are not complete yet.

    plan, specification: of all shards.
    """

    def __init__(self, plan: RotationPlan, specification: OptimizerSpec):
        self._plan, self._specification = plan, specification
        self._shards: dict[int, Shard] = {}

    def place(self, seat: int, index: int) -> torch.Tensor:
        """Where a buffer of a seat's shard goes [elements]: 0 for the parameters, then moments."""
        if seat not in self._shards:
            self._shards[seat] = Shard(self._plan, seat, self._specification)
        return self._shards[seat].buffers[index]

    def take(self, seat: int, updates: int) -> Shard:
        """A shard all of whose buffers have come."""
        shard = self._shards.pop(seat)
        shard.updates = updates
        return shard

    def take_all(self, updates: int) -> dict[int, Shard]:
        """All of them, by seat."""
        return {seat: self.take(seat, updates) for seat in list(self._shards)}

    def clear(self) -> None:
        """Give up what has come."""
        self._shards.clear()
