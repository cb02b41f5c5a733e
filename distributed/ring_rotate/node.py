"""A node among which parameters rotate: what it holds, what it knows of the open step, and how it changes rings.

It has no thread and no socket. The process around it computes phase after phase: it opens gathers, contributes
gradients, says what there is to say of the node's seats once the gradients of all shards here are complete, and applies
the step once all seats have been spoken of (`is_decided`).

Why no step is lost
-------------------
A node sends each part of its shards' gradients to the next one as it becomes final, which steps the second copy of
those shards by it. A node speaks of its seats when it has all of their gradients, and of those whose second copies it
has. So who has heard of all seats knows that every node can apply the step, and applies it. If one has and is not
followed by all, those that are left are told what was said, and apply it; else all compute it anew. What is sent of the
next step overwrites no gradient before its time: a sum is final only where all have contributed, and who contributes
has applied the step before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.errors import FrameError
from distributed.links.frames import Frame, json_payload
from distributed.links.link import DISCARD, Discard
from distributed.ring.messages import Ring
from distributed.ring.segments import Part
from distributed.ring_rotate.arriving import ArrivingShards
from distributed.ring_rotate.gathers import OF_GATHER, Gathers
from distributed.ring_rotate.messages import Kind, Message, Outbox
from distributed.ring_rotate.plan import RotationPlan
from distributed.ring_rotate.reduces import Reduces
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.shard import Shard, decide
from distributed.ring_rotate.shard_gradients import ShardGradients
from distributed.ring_rotate.unit_memory import UnitMemory
from distributed.strategy import OptimizerSpec

NOBODY = Seating(Ring(0, ()), ())


class RotateNode:
    """Node `number`.

    Parameters
    ----------
    plan: what goes round when.
    specification: of the updates.
    memories: where units come together.
    outbox: to the neighbours and the coordinator.
    shadows: whether the next node has a second copy of each shard.
    """

    def __init__(
        self,
        number: int,
        plan: RotationPlan,
        specification: OptimizerSpec,
        memories: Sequence[UnitMemory],
        outbox: Outbox,
        shadows: bool = True,
    ):
        self.number, self.plan, self._specification = number, plan, specification
        self._memories, self._outbox, self._shadows = memories, outbox, shadows
        self.shards: dict[int, Shard] = {}
        """By seat, what is held here, all after the same step: own shards and second copies."""
        self.applied = 0
        """The newest step that is in them."""
        self.said: dict[int, dict[str, Any]] = {}
        """By seat, what was said of the open step."""
        self.is_running = False
        self._last_said: list[dict[str, Any]] = []  # by seat, of the newest step
        self.seating = NOBODY
        self.given = ArrivingShards(plan, specification)  # by the coordinator
        self._arriving = ArrivingShards(plan, specification)  # from the node before
        self._arrived: dict[int, Shard] = {}  # from there, after the newest step; until all here are
        self.gradients = ShardGradients(plan)
        """Of the shards that are held here."""
        self._is_settling = self._is_new = False

    # ------------------------------------------------------------------------------------------------- the coordinator

    def clear(self) -> None:
        """Forget everything: training goes on from another moment."""
        self._leave()
        self.seating, self.shards, self.applied, self._last_said = NOBODY, {}, 0, []
        self.given.clear()

    def load(self, step: int, updates: int) -> None:
        """What was `given` is the state after `step`."""
        self.shards, self.applied = self.given.take_all(updates), step

    def reconfigure(self, seating: Seating, is_new: bool = False) -> Message:
        """Stop, and be a node of a new epoch; returns where this one stands.

        is_new: in this epoch; what it was given in one that has not come to work is of no use.
        """
        self._leave()
        self._is_new = is_new
        if is_new:
            self.shards = {}
        self.seating = seating
        self.gathers = Gathers(self.number, self.plan, seating, self._memories, self._outbox)
        self.reduces = Reduces(self.number, self.plan, seating, self._outbox, self._is_final)
        about = {"applied": self.applied, "held": sorted(self.shards), "said": self._last_said}
        return {"say": "status", "number": self.number, "epoch": seating.ring.epoch} | about

    def settle(self, epoch: int, newest: int, said: list[dict[str, Any]], give: Sequence[int]) -> Message | None:
        """Apply the newest step, of which `said` was said by seat, if this node has not; send on what is lacking.

        Returns what the coordinator was told of the step, where it was applied now.
        """
        told = None
        if epoch != self.seating.ring.epoch:
            return told
        if self.shards and self.applied == newest - 1:
            told = self._apply(newest, said)
            self._outbox.tell(told)
        for seat in give:
            shard = self.shards[seat]
            for index, buffer in enumerate(shard.buffers):
                self._outbox.send(self._frame(Kind.STATE, self.applied, (seat, index, 0)), buffer)
            about = {"updates": shard.updates, "said": self._last_said}
            self._outbox.send(self._frame(Kind.STATE_END, self.applied, (seat, 0, 0)), json_payload(about))
        self._is_settling = True
        self._say_settled()
        return told

    def resume(self, epoch: int, open_step: int) -> None:
        """Go on with `open_step`, of which nobody has anything."""
        if epoch != self.seating.ring.epoch:
            return
        if open_step != self.applied + 1:
            raise RuntimeError(f"node {self.number} has applied {self.applied} steps, and is to open {open_step}")
        self.shards = {seat: self.shards[seat] for seat in self._wanted}
        self.gradients.hold(self.shards)
        self.is_running = True
        self._open(open_step)

    # ------------------------------------------------------------------------------------------------- a step

    @property
    def own_seats(self) -> list[int]:
        """The seats of this node, in the order of the ring."""
        return self.seating.seats_of(self.number)

    def open_gather(self, gather: int) -> None:
        """Make room for what the next phase needs; see `Gathers`."""
        self.gathers.open(gather, {seat: self.shards[seat].values for seat in self.own_seats})

    def speak(self, of_seats: Mapping[int, dict[str, Any]]) -> None:
        """Say what there is to say of this node's seats (see `shard.decide`)."""
        for seat in of_seats:
            self._take_facts(seat, of_seats[seat])

    @property
    def is_decided(self) -> bool:
        """Whether all seats have been spoken of, so that the step can be applied."""
        return len(self.said) == self.plan.seats

    def apply(self) -> Message:
        """Apply the open step; returns what the coordinator is to be told of it."""
        message = self._apply(self.applied + 1, [self.said[seat] for seat in range(self.plan.seats)])
        self._open(self.applied + 1)
        return message

    @property
    def held_bytes(self) -> int:
        """Bytes of parameters, gradients and optimizer state that are here now, but for what is being computed."""
        shards = sum(buffer.nbytes for shard in self.shards.values() for buffer in shard.buffers)
        units = sum(memory.bytes for memory in self._memories)
        return shards + units + self.gradients.bytes + (self.reduces.bytes if self.is_running else 0)

    # ------------------------------------------------------------------------------------------------- frames

    def place(self, frame: Frame) -> torch.Tensor | Discard | None:
        """Where the payload of a frame is to be put; called by the thread that receives it."""
        if frame.epoch != self.seating.ring.epoch:
            return DISCARD
        match frame.kind:
            case Kind.GATHER:
                return self.gathers.place(frame)
            case Kind.REDUCE:
                return self.reduces.place(frame)
            case Kind.COPY:
                return self._copied(frame)
            case Kind.STATE:
                return self._state(frame)
        return None

    def receive(self, frame: Frame, payload: torch.Tensor | memoryview | bytes) -> None:
        """Take in a frame of a neighbour. Raises FrameError for what none would send that keeps to the rules."""
        if frame.epoch != self.seating.ring.epoch:
            return
        match frame.kind:
            case Kind.ROOM:
                (self.gathers if frame.tags[0] == OF_GATHER else self.reduces).has_room(frame)
            case Kind.GATHER:
                self.gathers.receive(frame)
            case Kind.REDUCE:
                assert isinstance(payload, torch.Tensor)
                self.reduces.receive(frame, payload)
            case Kind.COPY:
                self.gradients.has_come(frame.tags[2], self.plan.parts[frame.tags[0]][frame.tags[1]])
            case Kind.FACTS:
                self._check_open(frame)
                self._take_facts(frame.tags[0], json.loads(bytes(payload)))
            case Kind.STATE:
                pass  # it is in its place
            case Kind.STATE_END:
                self._take_shard(frame, json.loads(bytes(payload)))
            case _:
                raise FrameError(f"a frame of kind {frame.kind} among nodes")

    # ------------------------------------------------------------------------------------------------- inside

    @property
    def _wanted(self) -> list[int]:
        """The seats whose shards are to be here."""
        return [*self.own_seats, *(self.seating.shadowed_by(self.number) if self._shadows else ())]

    def _leave(self) -> None:
        self.is_running = self._is_settling = False
        self._arriving.clear()
        self._arrived = {}
        for memory in self._memories:
            memory.free()

    def _open(self, step: int) -> None:
        self.said = {}
        self.gradients.begin()
        self.gathers.begin(step)
        self.reduces.begin(step)

    def _is_final(self, unit: int, seat: int, part: Part, content: torch.Tensor) -> None:
        """A part of the gradient of an own shard is whole."""
        target = self.gradients.part(unit, seat, part)
        target.copy_(content)
        self.gradients.has_come(seat, part)
        if self._shadows and not self.seating.is_alone:
            self._outbox.send(self._frame(Kind.COPY, self.applied + 1, (unit, part.index, seat)), target)

    def _copied(self, frame: Frame) -> torch.Tensor:
        unit, index, seat = frame.tags
        self._check_open(frame)
        if seat not in self.shards or seat in self.own_seats or index >= len(self.plan.parts[unit]):
            raise FrameError(f"the gradient of seat {seat}, of which there is no second copy here")
        return self.gradients.part(unit, seat, self.plan.parts[unit][index])

    def _check_open(self, frame: Frame) -> None:
        if frame.step != self.applied + 1 or not self.is_running:
            raise FrameError(f"a frame of step {frame.step} comes to a node that has applied {self.applied}")

    def _take_facts(self, seat: int, said: dict[str, Any]) -> None:
        self.said[seat] = said
        if not self.seating.is_alone and self.seating.owners[seat] != self.seating.ring.successor(self.number):
            self._outbox.send(self._frame(Kind.FACTS, self.applied + 1, (seat, 0, 0)), json_payload(said))

    def _apply(self, step: int, said: list[dict[str, Any]]) -> Message:
        """Step all that is here; what was taken from parameters in a probed step is told by seat, of second copies too,
        since who has the shard may be lost before it could tell."""
        decision = decide(said, self._specification)
        changes: dict[str, dict[str, float]] = {}
        for seat, shard in self.shards.items():
            change = shard.apply(self.gradients.of(seat), decision)
            if change is not None:
                changes[str(seat)] = shard.squares(change)
        self.applied, self._last_said = step, said
        return {
            "say": "applied",
            "number": self.number,
            "step": step,
            "facts": {str(seat): one for seat, one in enumerate(said)},
            "about": {"norm": decision.norm, "rate": decision.rate, "finite": decision.finite, "changes": changes},
        }

    def _state(self, frame: Frame) -> torch.Tensor:
        seat, index, _ = frame.tags
        if frame.epoch != self.seating.ring.epoch or seat not in self._wanted:
            raise FrameError(f"the state of seat {seat}, which this node is not to have")
        return self._arriving.place(seat, index)

    def _take_shard(self, frame: Frame, about: Mapping[str, Any]) -> None:
        seat = frame.tags[0]
        self._arrived[seat] = self._arriving.take(seat, about["updates"])
        if self._is_new:  # else it has shards of its own, to which it has still to apply the newest step perhaps
            self.applied, self._last_said = frame.step, about["said"]
        self._say_settled()

    def _say_settled(self) -> None:
        if self._is_settling and all(seat in self.shards or seat in self._arrived for seat in self._wanted):
            self._is_settling = False
            self.shards |= self._arrived
            self._outbox.tell({"say": "settled", "number": self.number, "epoch": self.seating.ring.epoch})

    def _frame(self, kind: Kind, step: int, tags: tuple[int, int, int]) -> Frame:
        return Frame(kind=kind, step=step, tags=tags, epoch=self.seating.ring.epoch)
