"""The coordinator of a stage ring: what the trainer asks of its nodes, and the way to their state.

It begins rings, starts nodes in place of lost ones and names them a place. Who belongs to a ring that has begun, its
nodes agree among themselves; what they tell is in `RingView`. Nothing that nodes send each other passes through here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError, LinkError
from distributed.parameter_server.messages import Member, worker
from distributed.ring.messages import Ring
from distributed.ring.nodes_coordinator import NodesCoordinator
from distributed.ring_tmp.cut import Cut
from distributed.ring_tmp.executor import LAGS
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.probes import Words
from distributed.ring_tmp.scalars import Decision
from distributed.ring_tmp.sharing import Sharing
from distributed.ring_tmp.speeds import NodeSpeeds
from distributed.ring_tmp.state_transfer import Buffer, StateTransfer
from distributed.ring_tmp.takeover import takeover
from distributed.ring_tmp.view import RingView
from distributed.ring_tmp.walk import epoch_above

log = logging.getLogger(__name__)


class StageRingCoordinator(NodesCoordinator[RingView]):
    """Nodes of a ring, and what they say of steps.

    Public methods are called by the trainer's thread; what they wait for is brought about by the coordinator's own.

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    content: what nodes are told: the specification of the workload, and where parameters lie in a flat buffer.
    cut: the model's stages.
    """

    roles: Mapping[str, str] = {"worker": "ring_tmp.worker"}

    def __init__(self, job: Job, content: Mapping[str, Any], cut: Cut):
        super().__init__(job, content, RingView())
        self._cut = cut
        self.sharing: Sharing | None = None
        """Of the newest ring that was begun here, as it began."""
        self._speeds = NodeSpeeds(job.options["speeds"] == "measured")
        self._compared: set[Member] = set()  # who has measured itself at the same time as the others
        self._states = StateTransfer(cut.parts, self._links, self._link, bool(job.options["shadows"]))
        self._decisions: dict[int, Decision] = {}  # by step, of those that were not asked for yet
        self._seen: dict[int, dict[int, tuple[Words, Words]]] = {}  # by probed step and stage: gradient and change
        self._heard_of = 0  # the highest epoch that any node knew which has forgotten all
        self._installed: dict[Member, int] = {}  # by node, the epoch for which it has the states
        self._invited: dict[int, int] = {}  # by node that waits to be admitted, the epoch in which a place was sought
        self._lag = LAGS[job.options["schedule"]]
        self.staleness: Counter[int] = Counter()
        """Of how many steps the gradient was taken at parameters so many steps before those that it was applied to."""
        self._paused = 0.0  # seconds from the notice of the newest change to the go-ahead, by the first to tell of it

    # ------------------------------------------------------------------------------------------------- the trainer's

    def _install(self, step: int, buffers: Sequence[Buffer], updates: int) -> bool:
        with self._changed:
            self._anew()
            for told in (self._installed, self._decisions, self._seen, self._invited):
                told.clear()
        members = self._ready_and_cleared()
        if not members <= self._ready:
            return False
        numbers = sorted(member.number for member in members)
        if not self._measure({worker(number) for number in numbers[: self._size(len(numbers))]}):
            return False
        epoch = epoch_above(max(self._membership.epoch, self._heard_of), numbers[0])
        layout = self._lay_out(numbers, epoch)
        try:
            for number, placement in layout.items():
                self._states.give(number, placement, step - 1, buffers, updates)
        except LinkError:
            self._pause()
            return False
        taking = {worker(number) for number in layout}
        self._wait(
            lambda: (
                all(self._installed.get(one) == epoch for one in taking)
                or not taking <= self._ready
                or not self._links.lead_to(frozenset(layout))
            ),
            lambda: "the nodes to take the state",
        )
        if not all(self._installed.get(one) == epoch for one in taking):
            return False
        self._put("begin", layout, step)
        self._wait(lambda: not self._beginning, lambda: "the ring to begin")
        return True

    def _size(self, there: int) -> int:
        """How many nodes take part, where so many are there."""
        return int(self._options["nodes"])

    def _lay_out(self, numbers: Sequence[int], epoch: int) -> dict[int, Placement]:
        """By node that is to take part, out of those that are there in ascending order, the placement of its ring.

        In the order of the ring; of several, one ring behind the other.
        """
        taking = numbers[: self._size(len(numbers))]
        self.sharing = self._cut.among(self._speeds.of(taking))
        self._say_speeds(self.sharing)
        return dict.fromkeys(self.sharing.order, self.sharing.placement(epoch))

    def _say_speeds(self, sharing: Sharing) -> None:
        nodes = ", ".join(f"{number} ({speed:g})" for number, speed in zip(sharing.order, sharing.speeds, strict=True))
        log.info("run %s: nodes in order (and speeds): %s; %s", self._job.run, nodes, sharing.limit)

    def _measure(self, members: set[Member]) -> bool:
        """Have nodes measure how fast they are, all at once: those that share a machine share it as they will.

        What those have measured counts who did so together before. False where one of them was lost meanwhile.
        """
        if members <= self._compared:
            return members <= self._ready
        with self._changed:
            for member in members:
                self._speeds.forget(member.number)
            self._ask_for_speeds(members)
        self._wait(
            lambda: self._speeds.has(member.number for member in members) or not members <= self._ready,
            lambda: "the nodes to measure themselves",
        )
        if self._speeds.has(member.number for member in members):
            self._compared = members
        return members <= self._ready

    def wait_for(self, step: int) -> tuple[Decision, list[tuple[Words, Words]]]:
        """What nodes agree on of a step, once all of them have applied it. Steps before it are forgotten.

        Returns, where it was probed, also what each stage says of its gradient and of its change.

        Raises StateLost where only a checkpoint can go on, DistributedError where nothing can.
        """
        self._wait_for_step(step, lambda: self._is_done(step))
        with self._changed:
            return self._said_of(step)

    def pull(self, step: int, buffers: Sequence[torch.Tensor]) -> int:
        """Write the nodes' state after `step` into flat buffers: as many, in the same order, as `begin` was given.

        Returns how many updates they have made.
        """
        limit = time.monotonic() + 10 * self._options["deadline_seconds"]
        while True:
            self.wait_until_rest(step)
            with self._changed:
                self._links.received.clear()
                placement = self._membership.placement
            asked = frozenset(placement.owners)
            self._states.ask(asked, step, len(buffers))

            def is_over(placement: Placement = placement, asked: frozenset[int] = asked) -> bool:
                is_another = self._membership.placement != placement or not self._links.lead_to(asked)
                return is_another or self._states.is_here(len(buffers))

            self._wait(is_over, lambda: f"the state of step {step}")
            with self._changed:
                if self._states.is_here(len(buffers)):
                    return self._states.take(buffers)
                if time.monotonic() > limit:
                    raise DistributedError("no links to the nodes last", where=self.where)
                self._pause()

    # ------------------------------------------------------------------------------------------------- events

    def _on_begin(self, layout: Mapping[int, Placement], step: int) -> None:
        """All have their states. Who is gone since then is missed by the others, as at any time."""
        self._beginning = False
        first = next(iter(layout.values()))
        self._membership.begin(replace(first, ring=Ring(first.ring.epoch, tuple(layout))), step - 1)
        rings = list(dict.fromkeys(placement.ring.order for placement in layout.values()))
        for number, placement in layout.items():
            if worker(number) in self._ready:
                about = {"placement": placement.to_dict(), "rings": rings, "addresses": self._book()}
                self._send(worker(number), {"do": "begin"} | about)
            else:
                self._leave(worker(number))

    def _then(self) -> None:
        """Whoever has come and is not in the ring is to be admitted."""
        ring = self._membership
        if self._beginning or not ring.epoch or not ring.at_work or len(ring.members) >= self._options["nodes"]:
            return
        guests = sorted(one for one in self._ready - self._given_up.keys() if one.number not in ring.members)
        self._ask_for_speeds(guests)
        for member in guests:
            if not self._speeds.has([member.number]) or self._invited.get(member.number) == ring.epoch:
                continue
            self._invited[member.number] = ring.epoch
            # Where it would not make the ring faster, it takes from who has most: what is lost at a time is less then.
            speeds = self._speeds.of([*ring.members, member.number])
            ways = ((self._cut.seconds, speeds), ([1.0] * len(self._cut.seconds), None))
            places = (takeover(ring.placement, member.number, of, self._cut.borders, at) for of, at in ways)
            place = next((one for one in places if one is not None), None)
            if place is not None:
                self._send(member, {"do": "join", "addresses": self._book()})
                self._send(worker(place.after), {"do": "admit", "number": member.number, "stages": place.stages})
                return  # one at a time

    def _forget(self, member: Member) -> None:
        self._links.drop(member.number)
        self._invited.pop(member.number, None)
        self._speeds.forget(member.number)

    # ------------------------------------------------------------------------------------------------- what nodes say

    def _say_ready(self, member: Member, said: dict[str, Any]) -> None:
        self._serving[member.number] = said["addresses"]
        self._is_ready(member)
        if self._membership.epoch and not self._beginning:
            self._send(member, self._grant)
            for one in self._ready:
                self._send(one, {"do": "book", "addresses": self._book()})

    def _say_measured(self, member: Member, said: dict[str, Any]) -> None:
        self._speeds.note(member.number, said["rate"])

    def _say_cleared(self, member: Member, said: dict[str, Any]) -> None:
        super()._say_cleared(member, said)
        self._heard_of = max(self._heard_of, said["epoch"])

    def _say_installed(self, member: Member, said: dict[str, Any]) -> None:
        self._installed[member] = said["epoch"]

    def _say_entered(self, member: Member, said: dict[str, Any]) -> None:
        if member in self._given_up or self._beginning or self._closing:  # at the end one is gone before the other
            return
        placement, before = Placement.from_dict(said["placement"]), self._membership.placement
        left_out = self._membership.enter(member.number, placement, said["applied"])
        if left_out is None:
            return
        if before.ring.order == placement.ring.order:
            self._lost_so_far["links"] += 1
            self._count_loss(member, "its links were made anew")
        for number in left_out:
            if worker(number) in self._agents and worker(number) not in self._given_up:
                self._give_up(worker(number), "was not there for its neighbours")
        self._paused = said["seconds"]
        self._note_recoveries()

    def _say_protected(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.protect(member.number, said["epoch"])

    def _say_applied(self, member: Member, said: dict[str, Any]) -> None:
        if member in self._given_up or self._beginning:
            return
        step, decision = said["step"], Decision.from_dict(said["decision"])
        if step not in self._decisions and said["version"] is not None:
            self.staleness[step - 1 - said["version"]] += 1
        self._decisions.setdefault(step, decision)
        for gradient, change in said["seen"]:
            self._seen.setdefault(step, {})[gradient[0]] = (gradient, change)
        if not decision.is_update:
            self._grant_no_further(step + self._lag)
        self._membership.apply(member.number, step)

    def _say_state_lost(self, member: Member, said: dict[str, Any]) -> None:
        if member not in self._given_up and not self._closing:
            self._state_is_lost(said["sentence"])

    def _say_fenced(self, member: Member, said: dict[str, Any]) -> None:
        if member not in self._given_up and not self._closing:
            self._give_up(member, "was taken for lost by its neighbours, which went on without it")

    def _say_not_admitted(self, member: Member, said: dict[str, Any]) -> None:
        guest = worker(said["number"])
        if guest in self._agents and guest not in self._given_up:
            self._give_up(guest, "was taken for lost before it was admitted")

    # ------------------------------------------------------------------------------------------------- inside

    def _is_done(self, step: int) -> bool:
        return step in self._decisions and self._membership.applied >= step

    def _said_of(self, step: int) -> tuple[Decision, list[tuple[Words, Words]]]:
        for known in (self._decisions, self._seen):
            for old in [one for one in known if one < step]:
                del known[old]
        return self._decisions[step], list(self._seen.get(step, {}).values())

    def _is_at_rest(self) -> bool:
        """Also, nobody is about to be lost, and everything exists twice."""
        return super()._is_at_rest() and not self._given_up

    def _belongs(self, member: Member) -> bool:
        return member.number in self._membership.known

    def _leave(self, member: Member) -> None:
        self._membership.leave(member.number)
        self._note_recoveries()  # nodes may have told of the ring without it before its link ended
        if not self._membership.members and self._membership.epoch:
            self._state_is_lost("all nodes are gone, and the state with them")

    def _note_recoveries(self) -> None:
        """A loss is over once a ring goes on without who was lost; its nodes say for how long they stood still."""
        members = {str(worker(number)) for number in self._membership.placement.ring.order}
        for recovery in self._recoveries:
            if "began" in recovery and recovery["lost"] not in members:
                self._went_on(recovery, self._paused)

    def _ask_for_speeds(self, members: Collection[Member]) -> None:
        """Ask those that were not asked yet."""
        for number in self._speeds.missing(member.number for member in members):
            self._send(worker(number), {"do": "measure"})

    def _book(self) -> dict[str, Any]:
        """Where nodes can be reached."""
        return {str(number): addresses for number, addresses in self._serving.items()}
