"""What links read and write of a replica: its own memory, or copies in the host's where the model lies on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distributed.ring.replica import Replica
from distributed.staging import Staged, Staging, Unstaged, copies_of
from distributed.timeline import Lane


class HostMemory:
    """Gradients and the state of a replica, where links are.

    Gradients of a GPU come here bucket by bucket during the backward pass (`distributed.staging`) and are summed here;
    the state comes and goes only when somebody joins, and for checkpoints.

    Parameters
    ----------
    replica: of the model.
    staged: whether its memory is not that of links.
    shared: makes buffers in shared memory; None where links share none.
    lane: of the thread that computes.
    """

    def __init__(self, replica: Replica, staged: bool, shared: Callable[[int], torch.Tensor] | None, lane: Lane):
        self._replica, self._staged = replica, staged
        flat = replica.flat
        self.gradients: Staging = Unstaged(flat)
        self.state = replica.state
        """Flat buffers [elements]: parameters, then moments; see `fetch` and `bring`."""
        if staged:
            copies = copies_of(flat.values.device)
            self.gradients = Staged(flat, replica.pieces, copies, shared, lane)
            self.state = [copies.pinned(one.numel()) for one in replica.state]

    def fetch(self) -> None:
        """Let `state` be what the replica has."""
        self._copy(self._replica.state, self.state)

    def bring(self) -> None:
        """Let the replica have what `state` is."""
        self._copy(self.state, self._replica.state)

    def _copy(self, sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        if self._staged:
            with torch.no_grad():
                for source, target in zip(sources, targets, strict=True):
                    target.copy_(source)
