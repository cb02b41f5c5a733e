"""How a flat gradient is cut for a ring of nodes, and who sends which part of it when: pure functions.

The flat buffer is cut into buckets (`distributed.shards.buckets`), each bucket into one segment a node, each segment
into parts, which are what a frame carries. Segment s of every bucket begins its way at the node in position s:

    reduce-scatter, round r: position i sends segment i - r, and receives segment i - 1 - r, to which it adds its own
    all-gather, round r:     position i sends segment i + 1 - r, and receives segment i - r, which is final

with r from 0 to N - 2 and everything modulo N. So segment s is always summed as ((g[s] + g[s+1]) + g[s+2]) + …, by
position, whatever the timing: the bits of a sum depend on the number of nodes and on their order alone, and as the
final segment is copied, all nodes have the same ones. Rounds need no common clock: a part goes on as soon as it has
come and has been added to, so that adding one part overlaps with receiving the next.

A node sends, and receives, all but one segment in each half: 2 (N - 1) / N of the buffer in each direction (Patarasuk
and Yuan 2009, who prove that no all-reduce needs less).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch

from distributed.shards import MIB

ALIGNMENT = 16  # elements: a cache line of fp32, so that no two nodes' segments share one
PART_BYTES = 4 * MIB  # large against the cost of a frame: parts of 1 MiB take a third more CPU time
_BYTES = 4  # of an element

Range = tuple[int, int]
"""Elements of the flat buffer, from where to where."""


class Round(NamedTuple):
    """What a node does in a round: the segment that it sends, and the one that it receives meanwhile."""

    sends: int
    receives: int


def reduce_scatter(position: int, nodes: int) -> list[Round]:
    """The rounds in which a node in this position passes on sums and adds its own."""
    return [Round((position - turn) % nodes, (position - 1 - turn) % nodes) for turn in range(nodes - 1)]


def all_gather(position: int, nodes: int) -> list[Round]:
    """The rounds in which a node in this position passes on segments that are final."""
    return [Round((position + 1 - turn) % nodes, (position - turn) % nodes) for turn in range(nodes - 1)]


def adds_last(position: int, segment: int, nodes: int) -> bool:
    """Whether a segment is final once this node has added its own."""
    return position == (segment - 1) % nodes


def receives_last(position: int, segment: int, nodes: int) -> bool:
    """Whether all nodes have a final segment once this one has received it."""
    return position == (segment - 2) % nodes


@dataclass(frozen=True)
class Part:
    """What one frame carries: elements `start` to `stop` of the flat buffer, of a segment of a bucket."""

    index: int
    bucket: int
    segment: int
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Its length."""
        return self.stop - self.start

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """This part of a flat buffer."""
        return flat[self.start : self.stop]


@dataclass(frozen=True)
class RingCut:
    """The cut of buckets for so many nodes, with parts of at most `part_bytes`."""

    buckets: tuple[Range, ...]
    nodes: int
    part_bytes: int = PART_BYTES

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts by their index. A small bucket leaves some segments empty, and these have none."""
        found: list[Part] = []
        for bucket, (start, stop) in enumerate(self.buckets):
            for segment, bounds in enumerate(segments(start, stop, self.nodes)):
                for first, last in pieces(*bounds, self.part_bytes):
                    found.append(Part(len(found), bucket, segment, first, last))
        return tuple(found)

    @cached_property
    def of_bucket(self) -> tuple[tuple[Part, ...], ...]:
        """The parts of each bucket."""
        found: list[list[Part]] = [[] for _ in self.buckets]
        for part in self.parts:
            found[part.bucket].append(part)
        return tuple(map(tuple, found))

    def bytes_sent(self, position: int) -> int:
        """Bytes of payload that the node in this position sends for one sum: what must be counted at its link."""
        sent = [turn.sends for half in (reduce_scatter, all_gather) for turn in half(position, self.nodes)]
        return sum(_BYTES * part.elements * sent.count(part.segment) for part in self.parts)


def segments(start: int, stop: int, nodes: int) -> Sequence[Range]:
    """Elements `start` to `stop` as one range a node, cut at multiples of 16 elements from `start`.

    Lengths differ by 16 elements at most, but for the end of the last one; ranges of a short bucket may be empty.
    """
    lines = -(-(stop - start) // ALIGNMENT)
    borders = [min(start + ALIGNMENT * (lines * one // nodes), stop) for one in range(nodes + 1)]
    return list(pairwise(borders))


def pieces(start: int, stop: int, most_bytes: int) -> Sequence[Range]:
    """A range as near-equal pieces of at most `most_bytes`, cut like `segments`; none of an empty range."""
    lines = -(-(stop - start) // ALIGNMENT)
    most_lines = max(1, most_bytes // (_BYTES * ALIGNMENT))
    return segments(start, stop, -(-lines // most_lines)) if lines else []
