"""The coordinator of several rings: it begins them all at once, and mends them where one is broken.

Nobody applies a step before every sum of it is whole in every ring. So behind a loss all that are left can come to the
newest step that one of them has applied, and for each stage one holder is enough to go on from there: the coordinator
has all stand still, brings them to that step, fetches the state, and begins rings anew with those that are left and
those that come. A step that nobody has applied is computed anew, with the same bits, by however many rings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError
from distributed.parameter_server.members import RESUMABLE
from distributed.parameter_server.messages import Member, worker
from distributed.parameter_server.replacements import VAIN_REPLACEMENTS
from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.cut import Cut
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.probes import Words
from distributed.ring_tmp.scalars import Decision
from distributed.ring_torus.layout import placed_alike, rings_of, slowest_of_rank
from distributed.strategy import StateLost


class TorusCoordinator(StageRingCoordinator):
    """Nodes of R rings of N; parameters are those of `StageRingCoordinator`.

    Its `RingView` has the nodes of all rings as members, and those of the first as owners of stages: from these the
    state is fetched, as all rings have the same.
    """

    roles: Mapping[str, str] = {"worker": "ring_torus.worker"}

    def __init__(self, job: Job, content: Mapping[str, Any], cut: Cut):
        super().__init__(job, content, cut)
        self._layout: dict[int, Placement] = {}  # by node of the newest rings
        self._playing: dict[int, int] = {}  # by node, the newest epoch that it has begun
        self._buffers: Sequence[torch.Tensor] = ()  # where whole states are put
        self._is_broken = False  # whether a node or a link is lost, so that no ring goes on
        self._halted: dict[Member, tuple[int, Decision | None]] = {}  # who stands still, and behind which step
        self._alive: set[Member] = set()  # who has answered since they were to, if only with what it is busy at
        self._followed: set[Member] = set()  # who was behind the others, and is not any more

    @property
    def rings(self) -> int:
        """How many there are now."""
        return len(set(self._layout.values()))

    # ------------------------------------------------------------------------------------------------- the trainer's

    def begin(self, step: int, buffers: Sequence[torch.Tensor], updates: int) -> None:
        """Give the nodes the state before `step`, to each what it is to hold, and let them begin there."""
        self._buffers = buffers
        super().begin(step, buffers, updates)

    def wait_for(self, step: int) -> tuple[Decision, list[tuple[Words, Words]]]:
        """What nodes agree on of a step, once all of them have applied it. Steps before it are forgotten.

        Raises StateLost where only a checkpoint can go on, DistributedError where nothing can.
        """
        while True:
            self._wait_for_step(step, lambda: self._is_broken or self._is_done(step))
            with self._changed:
                if not self._is_broken:
                    return self._said_of(step)
            self._mend()

    def wait_until_rest(self, step: int) -> None:
        """Wait until the rings are whole."""
        while True:
            self._wait(lambda: self._is_broken or self._is_at_rest(), lambda: f"everybody to rest after step {step}")
            if not self._is_broken:
                return
            self._mend()

    def _anew(self) -> None:
        with self._changed:
            super()._anew()
            self._is_broken = False

    def _ready_and_cleared(self) -> set[Member]:
        """As many as are configured, or as will come; rings are not begun with fewer nodes than one of them takes."""
        nodes, replacements = self._options["nodes"], self._replacements
        wanted = nodes * self._options["rings"]

        def are_there() -> bool:
            is_last = replacements is None or not replacements.pending
            return len(self._ready) >= (nodes if is_last else wanted)

        seconds = (1 + VAIN_REPLACEMENTS) * self._patience()  # each that stays away is replaced again, a few times
        self._wait(are_there, lambda: f"nodes to come: {len(self._ready)} of {wanted}", seconds=seconds)
        return self._clear()

    def _size(self, there: int) -> int:
        nodes = int(self._options["nodes"])
        return nodes * min(self._options["rings"], there // nodes)

    def _lay_out(self, numbers: Sequence[int], epoch: int) -> dict[int, Placement]:
        taking = numbers[: self._size(len(numbers))]
        speeds = self._speeds.of(taking)
        rings = rings_of(taking, self._options["nodes"], speeds)
        self.sharing = self._cut.among(slowest_of_rank(rings, speeds))
        self._say_speeds(self.sharing)
        return placed_alike(self.sharing.placement(epoch), rings)

    # ------------------------------------------------------------------------------------------------- a loss

    def _mend(self) -> None:
        """Go on behind a loss. Raises StateLost where nobody is left that has some stage."""
        limit = time.monotonic() + 10 * self._options["deadline_seconds"]
        began, before = time.monotonic(), set(self._layout)
        while (found := self._collect()) is None:  # somebody was lost meanwhile
            if time.monotonic() > limit:
                raise DistributedError("broken rings could not be mended", where=self.where, hint=RESUMABLE)
            self._pause()
        step, updates = found
        with self._changed:
            decisions, seen = dict(self._decisions), dict(self._seen)
        self.begin(step + 1, self._buffers, updates)
        with self._changed:
            self._decisions = decisions | self._decisions
            self._seen = seen | self._seen
            if before <= {member.number for member in self._ready}:
                self._lost_so_far["links"] += 1
                self._count_loss(worker(min(before)), "rings were begun anew, as links had ended")
            for recovery in self._recoveries:
                if "began" in recovery:
                    self._went_on(recovery, time.monotonic() - min(began, recovery["began"]))
            for member in self._ready:
                self._send(member, self._grant)

    def _collect(self) -> tuple[int, int] | None:
        """Get the state after the newest step that anybody left has applied; that step, and how many updates it has.

        None where somebody was lost meanwhile.
        """
        members = self._halt()
        step = max((applied for applied, _ in self._halted.values()), default=0)
        holders = self._holders(members)
        if not self._bring_to(step, members):
            return None
        with self._changed:
            self._links.received.clear()
        count = len(self._buffers)
        self._states.ask(holders, step, count)
        self._wait(
            lambda: self._states.is_here(count) or not members <= self._ready or not self._links.lead_to(holders),
            lambda: f"the state of step {step}",
        )
        with self._changed, torch.inference_mode():
            return (step, self._states.take(self._buffers)) if self._states.is_here(count) else None

    def _halt(self) -> set[Member]:
        """Have all stand still that are left; who they are.

        Who does not answer within a deadline is lost, too. Who answers is waited for: a backward pass may take long.
        """
        with self._changed:
            self._halted.clear()
            self._alive.clear()
            members = {worker(number) for number in self._layout} & self._ready - self._given_up.keys()
        for member in members:
            self._send(member, {"do": "halt"})
            self._send(member, {"do": "pulse"})
        limit = time.monotonic() + self._options["deadline_seconds"]

        def stand_still() -> bool:
            return members & self._ready <= self._halted.keys()

        self._wait(lambda: stand_still() or time.monotonic() > limit, lambda: "nodes to stand still")
        with self._changed:
            for member in sorted(members & self._ready - self._halted.keys() - self._alive - self._given_up.keys()):
                self._give_up(member, "did not answer when the rings were broken")
        self._wait(stand_still, lambda: "nodes to end what they are at")
        with self._changed:
            return members & self._ready

    def _holders(self, members: set[Member]) -> frozenset[int]:
        """One node for each stage, which has its state."""
        found, lost = set(), []
        for stage, part in enumerate(self._cut.parts):
            owners = dict.fromkeys(placement.owners[stage] for placement in self._layout.values())
            left = [number for number in owners if worker(number) in members]
            found |= set(left[:1])
            if not left:
                lost.append(part.name)
        if lost:
            raise StateLost(
                f"nobody has the state of {', '.join(lost)} any more: it is gone with its node of every ring"
            )
        return frozenset(found)

    def _bring_to(self, step: int, members: set[Member]) -> bool:
        """Have those follow that are a step behind; False where somebody was lost."""
        with self._changed:
            self._followed.clear()
            behind = {member for member in members if self._halted[member][0] < step}
            decision = next((said for applied, said in self._halted.values() if applied == step and said), None)
        for member in behind:
            assert decision is not None  # who has applied a step that others lack was not given it as a state
            self._send(member, {"do": "follow", "decision": decision.to_dict()})
        self._wait(
            lambda: behind <= self._followed or not members <= self._ready,
            lambda: f"those that are behind to follow to step {step}",
        )
        return members <= self._ready

    # ------------------------------------------------------------------------------------------------- events

    def _on_begin(self, layout: Mapping[int, Placement], step: int) -> None:
        self._layout = dict(layout)
        super()._on_begin(layout, step)

    def _then(self) -> None:
        """Nobody is admitted to a ring that has begun."""

    def _leave(self, member: Member) -> None:
        self._membership.leave(member.number)
        self._is_broken = True

    def _is_at_rest(self) -> bool:
        """Also, all have begun: who has not yet has no state to send."""
        has_begun = all(self._playing.get(number) == self._membership.epoch for number in self._layout)
        return super()._is_at_rest() and has_begun and not self._is_broken

    def _say_playing(self, member: Member, said: dict[str, Any]) -> None:
        self._playing[member.number] = said["epoch"]

    def _say_broken(self, member: Member, said: dict[str, Any]) -> None:
        """A node has lost a neighbour, or cannot reach one."""
        if not self._beginning and not self._closing and said["epoch"] == self._membership.epoch:
            self._is_broken = True

    def _say_pulse(self, member: Member, said: dict[str, Any]) -> None:
        self._alive.add(member)
        super()._say_pulse(member, said)

    def _say_halted(self, member: Member, said: dict[str, Any]) -> None:
        self._halted[member] = said["applied"], said["decision"] and Decision.from_dict(said["decision"])

    def _say_followed(self, member: Member, said: dict[str, Any]) -> None:
        self._followed.add(member)
