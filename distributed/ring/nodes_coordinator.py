"""What coordinators of nodes in a ring have in common, whatever these compute and whoever decides about members."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError
from distributed.parameter_server.members import RESUMABLE, Kept
from distributed.parameter_server.messages import Member
from distributed.parameter_server.state_members import StateMembers

PAUSE_SECONDS = 0.05  # before a link that has ended is made anew


class NodesCoordinator(StateMembers[Kept]):
    """Nodes that are given a state, and grants of steps.

    Public methods are called by the trainer's thread; what they wait for is brought about by the coordinator's own.

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    contents: what nodes are told.
    membership: who belongs to the ring.
    """

    where = "the ring"

    def __init__(self, job: Job, contents: Mapping[str, Any], membership: Kept):
        super().__init__(job, {"worker": contents}, membership)
        self._grant: dict[str, Any] = {"do": "grant", "after": 0, "through": 0, "rate_scale": 1.0, "probe": 0}

    # ------------------------------------------------------------------------------------------------- the trainer's

    def begin(self, step: int, buffers: Sequence[Any], updates: int) -> None:
        """Give the nodes the state before `step`, to each what it is to hold, and let them begin there.

        buffers: whole flat ones, or what else `_install` takes.
        """
        limit = time.monotonic() + self._patience() + 10 * self._options["deadline_seconds"]
        while not self._install(step, buffers, updates):  # somebody was lost meanwhile: others begin
            if time.monotonic() > limit:
                raise DistributedError("no ring could be begun", where=self.where, hint=RESUMABLE)

    @abstractmethod
    def _install(self, step: int, buffers: Sequence[Any], updates: int) -> bool:
        """Try what `begin` is there for, with the nodes that are ready; False where somebody was lost meanwhile."""

    @abstractmethod
    def pull(self, step: int, buffers: Sequence[torch.Tensor]) -> int:
        """Write the nodes' state after `step` into flat buffers: as many, in the same order, as `begin` was given.

        Returns how many updates they have made. Raises StateLost where it cannot be the run's.
        """

    def grant(self, after: int, through: int, rate_scale: float, probe: int) -> None:
        """Let nodes begin steps up to `through`, and look into step `probe`, where the trainer knows of those up to
        `after`."""
        self._grant = {"do": "grant", "after": after, "through": through, "rate_scale": rate_scale, "probe": probe}
        for member in list(self._agents):
            self._send(member, self._grant)

    # ------------------------------------------------------------------------------------------------- inside

    def _ready_and_cleared(self) -> set[Member]:
        """Whoever is ready, once somebody is, and has forgotten what it had."""
        self._wait(lambda: bool(self._ready), lambda: "a worker to come", seconds=self._patience())
        return self._clear()

    def _grant_no_further(self, step: int) -> None:
        """Nobody who comes later is to go beyond a step that was not applied."""
        self._grant = self._grant | {"through": min(step, self._grant["through"])}

    def _pause(self) -> None:
        """Give way to the news that ends what is tried in vain: who has lost its link is lost a moment later."""
        with self._changed:
            self._changed.wait(PAUSE_SECONDS)

    def _patience(self) -> float:
        assert self._replacements is not None
        return self._replacements.patience
