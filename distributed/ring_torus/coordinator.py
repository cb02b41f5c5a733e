"""The coordinator of several rings: it begins them all at once, and goes back to the checkpoint where one is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.parameter_server.messages import Member
from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.placement import Placement

TOGETHER = "several rings go on with all of their nodes or not at all"


class TorusCoordinator(StageRingCoordinator):
    """Nodes of R rings of N; parameters are those of `StageRingCoordinator`.

    Its `RingView` has the nodes of all rings as members, and those of the first as owners of stages: from these the
    state is fetched, as all rings have the same.
    """

    roles: Mapping[str, str] = {"worker": "ring_torus.worker"}

    def _ready_and_cleared(self) -> set[Member]:
        """As many as it takes: rings cannot be begun with fewer."""
        wanted = self._options["nodes"] * self._options["rings"]
        self._wait(
            lambda: len(self._ready) >= wanted,
            lambda: f"{wanted} nodes to come, of which {len(self._ready)} are there",
            seconds=self._patience(),
        )
        return self._clear()

    def _lay_out(self, numbers: Sequence[int], epoch: int) -> dict[int, Placement]:
        nodes, rings = self._options["nodes"], self._options["rings"]
        found: dict[int, Placement] = {}
        for ring in range(rings):
            taking = numbers[ring * nodes : (ring + 1) * nodes]
            found |= dict.fromkeys(taking, self._cut.placement(taking, epoch))
        return found

    def _then(self) -> None:
        """Nobody is admitted to a ring that has begun."""

    def _replace(self, name: str) -> None:
        """Start another in place of a lost one, unless all are to be started anew."""
        if self._failure is None:
            super()._replace(name)

    def _leave(self, member: Member) -> None:
        self._membership.leave(member.number)
        reasons = [one["reason"] for one in self._recoveries if one["lost"] == str(member)]
        why = f" ({reasons[-1]})" if reasons else ""
        self._state_is_lost(f"{member} is lost{why}, and {TOGETHER}")

    def _say_broken(self, member: Member, said: dict[str, Any]) -> None:
        """A node has lost a neighbour, or cannot reach one."""
        is_over = member in self._given_up or self._beginning or self._closing
        if not is_over and said["epoch"] == self._membership.epoch:
            self._state_is_lost(f"{member} {said['what']}, and {TOGETHER}")
