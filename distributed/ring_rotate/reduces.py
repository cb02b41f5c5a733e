"""Gradients on their way: the sum of each segment goes round the ring, and stays at the seat whose shard it is of.

Segment s begins at seat s and is added to by seat after seat; so it is always ((g[s] + g[s+1]) + g[s+2]) + …, whatever
the timing, and whoever has the seats. Sums are made in the gradients themselves. A sum is sent to a node once that has
a gradient to add to it: nothing comes that would have to wait in memory of its own.

Everything here is called under one lock; nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from distributed.errors import FrameError
from distributed.links.frames import Frame
from distributed.ring.segments import Part
from distributed.ring_rotate.messages import Kind, Outbox
from distributed.ring_rotate.plan import RotationPlan
from distributed.ring_rotate.seating import Seating

OF_GRADIENT = 1  # the tag of `Kind.ROOM`


class Reduces:
    """The sums of a node in one epoch.

    Parameters
    ----------
    number: the node's.
    plan, seating: what is summed, and whose it is.
    outbox: to the neighbours.
    final: told of a unit's part that is whole, with its seat and its content, which is to be copied.
    """

    def __init__(
        self,
        number: int,
        plan: RotationPlan,
        seating: Seating,
        outbox: Outbox,
        final: Callable[[int, int, Part, torch.Tensor], None],
    ):
        self._plan, self._seating, self._outbox, self._final = plan, seating, outbox, final
        self._mine = frozenset(seating.seats_of(number))
        self._received = torch.empty(0)  # where sums go one after the other: they come by one link
        self._step = 0
        self._gradients: dict[int, Mapping[int, torch.Tensor]] = {}  # by unit and seat, until they are of no use
        self._left: dict[int, int] = {}  # by unit, how often parts are still to leave or to become final here
        self._waiting: dict[int, list[tuple[Part, int]]] = {}  # by unit, sums for which there is no room yet
        self._room: set[tuple[int, int]] = set()  # step and unit for which the successor has room

    def begin(self, step: int) -> None:
        """Go over to a step."""
        self._step = step
        for table in (self._gradients, self._left, self._waiting):
            table.clear()
        self._room = {one for one in self._room if one[0] >= step}

    def contribute(self, unit: int, gradients: Mapping[int, torch.Tensor]) -> None:
        """Give the gradients of a unit [elements] of all seats of this node, which are summed in place."""
        parts = self._plan.parts[unit]
        self._gradients[unit], self._waiting[unit] = gradients, []
        self._left[unit] = sum(self._visits(part) for part in parts)
        if not self._seating.is_alone:
            self._outbox.send_back(self._frame(Kind.ROOM, (OF_GRADIENT, unit, 0)))
        for part in parts:
            if part.segment in self._mine:
                self._walk(unit, part, 1)
        self._let_go(unit)

    def has_room(self, frame: Frame) -> None:
        """The successor has a gradient to add to sums."""
        unit = frame.tags[1]
        self._room.add((frame.step, unit))
        if frame.step == self._step:
            waiting = self._waiting.get(unit, [])
            self._waiting[unit] = []
            for part, count in waiting:
                self._write(unit, part, count)

    def is_done(self, unit: int) -> bool:
        """Whether nothing is to be done any more with the gradients of a unit, which have been let go."""
        return self._left.get(unit) == 0

    @property
    def bytes(self) -> int:
        """Bytes of the gradients that are here."""
        return sum(one.nbytes for gradients in self._gradients.values() for one in gradients.values())

    def place(self, frame: Frame) -> torch.Tensor:
        """Where a sum goes before it is added to."""
        part = self._arriving(frame)[1]
        if len(self._received) < part.elements:
            self._received = torch.empty(max(one.elements for parts in self._plan.parts for one in parts))
        return self._received[: part.elements]

    def receive(self, frame: Frame, payload: torch.Tensor) -> None:
        """Add to a sum, and send it on."""
        (unit, part), count = self._arriving(frame), frame.tags[2]
        part.of(self._gradients[unit][(part.segment + count) % self._plan.seats]).add_(payload)
        self._walk(unit, part, count + 1)

    # ------------------------------------------------------------------------------------------------- inside

    def _arriving(self, frame: Frame) -> tuple[int, Part]:
        unit, index, count = frame.tags
        if frame.step != self._step or unit not in self._gradients or index >= len(self._plan.parts[unit]):
            raise FrameError(f"a sum of unit {unit} of step {frame.step} that nothing is to be added to")
        part = self._plan.parts[unit][index]
        if not 0 < count < self._plan.seats or (part.segment + count) % self._plan.seats not in self._mine:
            raise FrameError(f"a sum over {count} seats of part {index} of unit {unit} has gone astray")
        return unit, part

    def _visits(self, part: Part) -> int:
        """How many runs of neighbouring seats on the way of a part are of this node."""
        seats = self._plan.seats
        way = [(part.segment + count) % seats in self._mine for count in range(seats)]
        return sum(one and not before for before, one in zip([False, *way], way, strict=False))

    def _walk(self, unit: int, part: Part, count: int) -> None:
        """Go on with a sum over `count` seats, the last of them one of this node."""
        seats, gradients = self._plan.seats, self._gradients[unit]
        while count < seats and (part.segment + count) % seats in self._mine:
            before, here = ((part.segment + one) % seats for one in (count - 1, count))
            part.of(gradients[here]).add_(part.of(gradients[before]))
            count += 1
        if count == seats:
            seat = (part.segment + seats - 1) % seats
            self._final(unit, seat, part, part.of(gradients[seat]))
            self._left[unit] -= 1
            self._let_go(unit)
        elif (self._step, unit) in self._room:
            self._write(unit, part, count)
        else:
            self._waiting[unit].append((part, count))

    def _write(self, unit: int, part: Part, count: int) -> None:
        step = self._step

        def is_written() -> None:
            if step == self._step:
                self._left[unit] -= 1
                self._let_go(unit)

        content = part.of(self._gradients[unit][(part.segment + count - 1) % self._plan.seats])
        self._outbox.send(self._frame(Kind.REDUCE, (unit, part.index, count)), content, is_written)

    def _let_go(self, unit: int) -> None:
        if not self._left[unit]:
            self._gradients.pop(unit, None)

    def _frame(self, kind: Kind, tags: tuple[int, int, int]) -> Frame:
        return Frame(kind=kind, step=self._step, tags=tags, epoch=self._seating.ring.epoch)
