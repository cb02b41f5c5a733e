"""Parameters on their way: each node sends its shard round the ring, and has the whole unit when all have.

Parts of a gather are sent to a node once it has made room for it. A node makes room for the gather of the next phase
when it begins a phase, and lets parameters go once they are computed with and sent on. So nobody is more than a phase
ahead of its successor, and what comes always has its place.

Everything here is called under one lock; nothing waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from distributed.errors import FrameError
from distributed.links.frames import Frame
from distributed.ring.segments import Part
from distributed.ring_rotate.messages import Kind, Outbox
from distributed.ring_rotate.plan import RotationPlan
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.unit_memory import UnitMemory

OF_GATHER = 0  # the tag of `Kind.ROOM`


class Gathers:
    """The gathers of a node in one epoch.

    Parameters
    ----------
    number: the node's.
    plan, seating: what is gathered, and whose it is.
    memories: where units come together.
    outbox: to the neighbours.
    """

    def __init__(
        self, number: int, plan: RotationPlan, seating: Seating, memories: Sequence[UnitMemory], outbox: Outbox
    ):
        self._number, self._plan, self._seating = number, plan, seating
        self._memories, self._outbox = memories, outbox
        self._successor = seating.ring.successor(number)
        self._step = 0
        self._missing: dict[int, int] = {}  # by gather that was opened, parts that have not come
        self._unsent: dict[int, int] = {}  # by gather, parts that are not written yet
        self._waiting: dict[int, list[Part]] = {}  # by gather, parts for which the successor has no room yet
        self._room: set[tuple[int, int]] = set()  # step and gather for which it has

    def begin(self, step: int) -> None:
        """Go over to a step; what there was of the one before is gone round."""
        self._step = step
        for table in (self._missing, self._unsent, self._waiting):
            table.clear()
        self._room = {one for one in self._room if one[0] >= step}

    def open(self, gather: int, values: Mapping[int, torch.Tensor]) -> None:
        """Make room for a unit, and send what is here of it. `values`: by seat of this node, its shard's parameters."""
        unit = self._plan.gathers[gather]
        memory, parts = self._memories[unit], self._plan.parts[unit]
        memory.allocate()
        for seat, shard in values.items():
            piece = self._plan.shards[seat][unit]
            size = piece.stop - piece.start
            memory.flat[piece.start : piece.stop] = shard[piece.offset : piece.offset + size]
        owners = [self._owner(part) for part in parts]
        self._missing[gather] = sum(owner != self._number for owner in owners)
        self._unsent[gather] = 0 if self._seating.is_alone else sum(owner != self._successor for owner in owners)
        self._waiting[gather] = []
        if self._seating.is_alone:
            return
        self._outbox.send_back(self._frame(Kind.ROOM, (OF_GATHER, gather, 0)))
        for part, owner in zip(parts, owners, strict=True):
            if owner == self._number:
                self._send(gather, part)

    def has_room(self, frame: Frame) -> None:
        """The successor has made room."""
        gather = frame.tags[1]
        self._room.add((frame.step, gather))
        if frame.step == self._step:
            for part in self._waiting.get(gather, []):
                self._write(gather, part)
            self._waiting[gather] = []

    def is_here(self, gather: int) -> bool:
        """Whether all of a unit has come."""
        return self._missing.get(gather) == 0

    def is_gone(self, gather: int) -> bool:
        """Whether nothing of a unit is still to be sent."""
        return self._unsent.get(gather) == 0 and (self._seating.is_alone or (self._step, gather) in self._room)

    def place(self, frame: Frame) -> torch.Tensor:
        """Where a part goes."""
        gather, part = self._arriving(frame)
        return self._memories[self._plan.gathers[gather]].part(part)

    def receive(self, frame: Frame) -> None:
        """A part is in its place; it goes on, unless the next node sent it out."""
        gather, part = self._arriving(frame)
        self._missing[gather] -= 1
        if self._owner(part) != self._successor:
            self._send(gather, part)

    # ------------------------------------------------------------------------------------------------- inside

    def _arriving(self, frame: Frame) -> tuple[int, Part]:
        gather, index, _ = frame.tags
        if frame.step != self._step or not self._missing.get(gather):
            raise FrameError(f"a part of gather {gather} of step {frame.step} for which there is no room")
        parts = self._plan.parts[self._plan.gathers[gather]]
        if index >= len(parts) or self._owner(parts[index]) == self._number:
            raise FrameError(f"part {index} of gather {gather} is none that a node before could send")
        return gather, parts[index]

    def _owner(self, part: Part) -> int:
        return self._seating.owners[self._plan.owner(part.segment)]

    def _send(self, gather: int, part: Part) -> None:
        if (self._step, gather) in self._room:
            self._write(gather, part)
        else:
            self._waiting[gather].append(part)

    def _write(self, gather: int, part: Part) -> None:
        step = self._step

        def is_written() -> None:
            if step == self._step:
                self._unsent[gather] -= 1

        content = self._memories[self._plan.gathers[gather]].part(part)
        self._outbox.send(self._frame(Kind.GATHER, (gather, part.index, 0)), content, is_written)

    def _frame(self, kind: Kind, tags: tuple[int, int, int]) -> Frame:
        return Frame(kind=kind, step=self._step, tags=tags, epoch=self._seating.ring.epoch)
