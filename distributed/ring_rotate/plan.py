"""What of a model goes round the ring together, and when: pure functions of its stages and of the number of seats.

The model's stages are taken in *groups* of neighbours. A node computes group after group for all its micro-batches:
forward, and then back. The parameters that a group reads are gathered before it and let go behind it, so that a node
has those of two groups at most: of the one that it computes and of the next, which come meanwhile.

A *unit* is what is gathered together: the parameters of a group. One that several groups read (a tied table) belongs
to a unit of its own, which stays from the first of them to the last.

    phase           0         …   G - 1                        G                …   2 G - 2
    computes        forward 0     forward and back, G - 1      back G - 2           back 0

The last group turns round at once, micro-batch by micro-batch, since its loss may keep a gradient as large as its
parameters; and the one before it stays meanwhile, in the place that it would be gathered into again. So these two are
gathered once, and all others twice. Gradients of a unit leave when the first group that reads it has gone back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

import torch

from distributed.arithmetic import flat_layout
from distributed.ring.segments import PART_BYTES, Part, Range, RingCut, segments
from distributed.ring_tmp.parts import Held
from distributed.strategy import Stage

BYTES = 4  # of an element


class Pass(Enum):
    """What a phase computes of its group."""

    FORWARD = "forward"
    TURN = "turn"
    BACK = "back"


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered together, one behind the other in a flat buffer of their own.

    held: each with its place in the flat buffer of the whole model.
    first, last: the groups that read them.
    """

    held: tuple[Held, ...]
    first: int
    last: int

    @cached_property
    def _layout(self) -> tuple[dict[str, tuple[int, torch.Size]], int]:
        return flat_layout({one.name: torch.Size(one.shape) for one in self.held})

    @property
    def layout(self) -> Mapping[str, tuple[int, torch.Size]]:
        """By parameter, where it begins in the unit's own buffer, and its shape."""
        return self._layout[0]

    @property
    def elements(self) -> int:
        """Of the unit's own buffer."""
        return self._layout[1]

    def view(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        """The place of a parameter in a buffer of this unit, in its shape."""
        start, shape = self.layout[name]
        return buffer[start : start + shape.numel()].view(shape)

    def is_read_in(self, group: int) -> bool:
        """Whether it has to be there when a group is computed."""
        return self.first <= group <= self.last


@dataclass(frozen=True)
class Phase:
    """A part of a step.

    gathers: the numbers of the gathers (`RotationPlan.gathers`) that bring what it needs and was not there.
    brings: the units that they bring.
    needs: the units that it reads.
    frees: those that neither of the next two phases reads.
    completes: those whose gradient is complete behind it.
    """

    kind: Pass
    group: int
    gathers: tuple[int, ...]
    brings: tuple[int, ...]
    needs: tuple[int, ...]
    frees: tuple[int, ...]
    completes: tuple[int, ...]

    @property
    def goes_back(self) -> bool:
        """Whether gradients come of it."""
        return self.kind is not Pass.FORWARD


class Piece(NamedTuple):
    """What a seat owns of a unit: elements `start` to `stop` of the unit's buffer, at `offset` of the seat's shard."""

    unit: int
    start: int
    stop: int
    offset: int


class Copy(NamedTuple):
    """Neighbouring elements of a shard, and where they begin in the flat buffer of the whole model."""

    offset: int
    whole: int
    elements: int


@dataclass(frozen=True)
class RotationPlan:
    """The whole plan.

    stages: of each group, the numbers of its stages, from where to where.
    units: what is gathered together.
    seats: the shards that each unit is cut into; seat s owns segment s + 1 of it, where the sum round the ring ends.
    named: by parameter of the model in one piece, its elements of the whole flat buffer; rows of it may be in several
        units, under names of their own.
    part_bytes: of a frame's payload, at most.
    """

    stages: tuple[Range, ...]
    units: tuple[Unit, ...]
    seats: int
    named: Mapping[str, Range]
    part_bytes: int = PART_BYTES

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Those of a step, in order."""
        last = len(self.stages) - 1
        walk = [(Pass.FORWARD, group) for group in range(last)] + [(Pass.TURN, last)]
        walk += [(Pass.BACK, group) for group in reversed(range(last))]
        reads = [self._read_in(group) for _, group in walk]
        found: list[Phase] = []
        there: set[int] = set()
        count = 0
        for number, (kind, group) in enumerate(walk):
            new = reads[number] - there
            # What the phase after the next reads would be gathered again as soon as it is let go.
            there = (there | new) & set[int]().union(*reads[number + 1 : number + 3])
            completes = [one for one in reads[number] if kind is not Pass.FORWARD and self.units[one].first == group]
            found.append(
                Phase(
                    kind,
                    group,
                    gathers=tuple(range(count, count + len(new))),
                    brings=tuple(sorted(new)),
                    needs=tuple(sorted(reads[number])),
                    frees=tuple(sorted(reads[number] - there)),
                    completes=tuple(sorted(completes)),
                )
            )
            count += len(new)
        return tuple(found)

    @cached_property
    def gathers(self) -> tuple[int, ...]:
        """By number of a gather, the unit that it brings."""
        return tuple(unit for phase in self.phases for unit in phase.brings)

    @cached_property
    def parts(self) -> tuple[tuple[Part, ...], ...]:
        """By unit, what frames carry of it."""
        return tuple(RingCut(((0, unit.elements),), self.seats, self.part_bytes).parts for unit in self.units)

    def owner(self, segment: int) -> int:
        """The seat that owns a segment of every unit."""
        return (segment - 1) % self.seats

    @cached_property
    def shards(self) -> tuple[tuple[Piece, ...], ...]:
        """By seat, what it owns."""
        found = []
        for seat in range(self.seats):
            pieces, offset = [], 0
            for number, unit in enumerate(self.units):
                start, stop = segments(0, unit.elements, self.seats)[(seat + 1) % self.seats]
                pieces.append(Piece(number, start, stop, offset))
                offset += stop - start
            found.append(tuple(pieces))
        return tuple(found)

    def shard_elements(self, seat: int) -> int:
        """Of a seat's shard."""
        last = self.shards[seat][-1]
        return last.offset + last.stop - last.start

    @cached_property
    def copies(self) -> tuple[tuple[Copy, ...], ...]:
        """By seat, where its shard's elements are in the flat buffer of the whole model; padding is nowhere."""
        return tuple(
            tuple(
                Copy(piece.offset + first - piece.start, held.start + first - begin, last - first)
                for piece in pieces
                for held in self.units[piece.unit].held
                for begin, shape in [self.units[piece.unit].layout[held.name]]
                for first, last in [(max(piece.start, begin), min(piece.stop, begin + shape.numel()))]
                if first < last
            )
            for pieces in self.shards
        )

    def parameters_of(self, seat: int) -> dict[str, list[Range]]:
        """By parameter (see `named`), the elements of a seat's shard that are its; those of which the seat has some."""
        found: dict[str, list[Range]] = {}
        for one in self.copies[seat]:
            for name, (start, stop) in self.named.items():
                first, last = max(start, one.whole), min(stop, one.whole + one.elements)
                if first < last:
                    begin = one.offset + first - one.whole
                    found.setdefault(name, []).append((begin, begin + last - first))
        return found

    def _read_in(self, group: int) -> set[int]:
        return {number for number, unit in enumerate(self.units) if unit.is_read_in(group)}


def groups_of(sizes: Sequence[int]) -> list[Range]:
    """Stages of these sizes, in elements, as groups of neighbours none of which is larger than the largest stage.

    Neighbours that fit go together: it takes fewer messages, and no more memory than the largest stage does anyway.
    """
    most = max(sizes)
    groups: list[Range] = []
    total = 0
    for number, size in enumerate(sizes):
        if groups and total + size <= most:
            groups[-1] = (groups[-1][0], number + 1)
            total += size
        else:
            groups.append((number, number + 1))
            total = size
    return groups


def rotation_plan(
    shapes: Mapping[str, torch.Size],
    stages: Sequence[Stage],
    seats: int,
    named: Mapping[str, Range] | None = None,
    part_bytes: int = PART_BYTES,
) -> RotationPlan:
    """The plan of a model.

    shapes: of its parameters, in the order of registration.
    named: see `RotationPlan`; None: the model is in one piece itself.
    """
    layout, _ = flat_layout(shapes)
    readers: dict[str, list[int]] = {name: [] for name in shapes}
    for number, stage in enumerate(stages):
        for name in stage.parameter_names():
            readers[name].append(number)
    own = [
        sum(math.prod(shapes[name]) for name in stage.parameter_names() if readers[name] == [number])
        for number, stage in enumerate(stages)
    ]
    groups = groups_of(own)
    group_of = [number for number, (start, stop) in enumerate(groups) for _ in range(start, stop)]
    units: dict[Range, list[Held]] = {}
    for name, numbers in readers.items():
        first, last = (group_of[min(numbers)], group_of[max(numbers)]) if numbers else (0, 0)
        units.setdefault((first, last), []).append(Held(name, layout[name][0], tuple(shapes[name])))
    return RotationPlan(
        stages=tuple(groups),
        units=tuple(Unit(tuple(held), *ends) for ends, held in sorted(units.items())),
        seats=seats,
        named=named or {name: (start, start + shape.numel()) for name, (start, shape) in layout.items()},
        part_bytes=part_bytes,
    )
