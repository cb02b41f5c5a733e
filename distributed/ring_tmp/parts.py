"""What of the run's flat buffer a stage owns, and the buffers in which a node keeps it.

`single` has all parameters in one flat buffer, whose chunks (`distributed.arithmetic.CHUNK`) norms are made of. A
stage's own buffer has, of that buffer, every chunk in which it has an element, whole and in order; elements that are
others' are zero. So a parameter lies at the same place of a chunk as in `single`, updates and norms work on the same
pieces, and their bits are the same. It costs less than a chunk at each border of neighbouring parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from distributed.arithmetic import CHUNK, PairwiseSum, flat_layout
from distributed.buffers import BufferPool
from distributed.strategy import BatchPlan

Range = tuple[int, int]


@dataclass(frozen=True)
class Held:
    """A parameter, or neighbouring rows of one: where it lies in the whole flat buffer, and its shape."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """What a stage owns.

    held: in ascending order, none of them overlapping.
    elements: of the whole flat buffer.
    """

    name: str
    held: tuple[Held, ...]
    elements: int

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """The chunks of the whole buffer of which something is here, in ascending order."""
        return tuple(sorted({chunk for one in self.held for chunk in range(one.start // CHUNK, -(-one.stop // CHUNK))}))

    @cached_property
    def size(self) -> int:
        """Elements of the part's own buffer."""
        return sum(min(CHUNK, self.elements - chunk * CHUNK) for chunk in self.chunks)

    @cached_property
    def _offsets(self) -> dict[int, int]:
        return {chunk: index * CHUNK for index, chunk in enumerate(self.chunks)}

    def local(self, position: int) -> int:
        """Where an element of the whole buffer lies in the part's own."""
        return self._offsets[position // CHUNK] + position % CHUNK

    @cached_property
    def views(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """By parameter, where it begins in the part's own buffer, and its shape."""
        return {one.name: (self.local(one.start), one.shape) for one in self.held}

    @cached_property
    def runs(self) -> tuple[Range, ...]:
        """Where the part's own buffer has something to send: ranges of elements, neighbours made one."""
        found: list[Range] = []
        for one in self.held:
            start = self.local(one.start)
            stop = start + one.stop - one.start
            if found and start - found[-1][1] < 16:  # what lies between two parameters is padding
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
        return tuple(found)

    def view(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        """The place of a parameter in a buffer of this part, in its shape."""
        start, shape = self.views[name]
        return buffer[start : start + math.prod(shape)].view(shape)

    def overlap(self, piece: Range) -> list[Range]:
        """What of a range of the whole buffer is owned here."""
        found = [(max(piece[0], one.start), min(piece[1], one.stop)) for one in self.held]
        return [(start, stop) for start, stop in found if start < stop]


def parts_of(shapes: Mapping[str, torch.Size], stages: Sequence[tuple[str, Iterable[str]]]) -> tuple[Part, ...]:
    """What each stage owns, given the model's parameters in the order of registration.

    stages: name and parameters of each. A parameter that several read is owned by the first of them; they have to lie
        on one node, in one range.
    """
    layout, elements = flat_layout(shapes)
    taken: set[str] = set()
    parts = []
    for stage, names in stages:
        own = set(names) - taken
        taken |= own
        held = tuple(Held(name, start, tuple(shape)) for name, (start, shape) in layout.items() if name in own)
        parts.append(Part(stage, held, elements))
    return tuple(parts)


class Gradients:
    """Buffers of zeros for the gradients of parts, by stage, used again."""

    def __init__(self, parts: Sequence[Part], allocate: Callable[[int], torch.Tensor] = torch.zeros):
        self._parts, self._pool = parts, BufferPool(allocate)

    def new(self, stage: int) -> torch.Tensor:
        """A buffer [elements of the stage's part] of zeros."""
        return self._pool.take(self._parts[stage].size).zero_()

    def release(self, buffer: torch.Tensor) -> None:
        """Take a buffer back; what is not from here, such as a neighbour's shared memory, is left alone."""
        self._pool.give_back(buffer)


class GroupSums:
    """A stage's gradient of one step: slots in ascending order inside groups, groups by the fixed pairwise tree.

    node: of that tree, where only the groups below it are summed.
    """

    def __init__(self, plan: BatchPlan, gradients: Gradients, stage: int, node: tuple[int, int] | None = None):
        self._plan, self._gradients, self._stage = plan, gradients, stage
        self._tree = PairwiseSum(gradients)
        self._group, self._stop = node or (0, plan.groups)
        self._last = -1
        self._open = gradients.new(stage)

    def buffer(self, slot: int) -> torch.Tensor:
        """What a slot's backward pass is to add to.

        Raises ValueError where slots do not ascend: the sum would have other bits.
        """
        if slot <= self._last:
            raise ValueError(f"slot {slot} comes after slot {self._last}")
        self._last = slot
        self._advance(slot // self._plan.slots_per_group)
        return self._open

    def result(self) -> torch.Tensor:
        """The sum over all groups; nothing may follow."""
        self._advance(self._stop - 1)
        self._tree.add(self._open)
        return self._tree.result()

    def discard(self) -> None:
        """Give up what was added so far."""
        self._tree.discard()
        self._gradients.release(self._open)

    def _advance(self, group: int) -> None:
        while self._group < group:
            self._tree.add(self._open)
            self._open = self._gradients.new(self._stage)
            self._group += 1


def chunk_pieces(start: int, stop: int) -> list[Range]:
    """A range of the whole buffer as pieces that end where chunks end, as `square_sums` cuts it."""
    inner = range((start // CHUNK + 1) * CHUNK, stop, CHUNK)
    return list(pairwise([start, *inner, stop])) if start < stop else []
