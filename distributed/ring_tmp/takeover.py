"""Where a node that comes joins the ring, and which stages it takes over: those that relieve the slowest node most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from distributed.ring_tmp.placement import Placement


class Takeover(NamedTuple):
    """What a node that comes is to do.

    after: the node behind which it joins; that one admits it.
    stages: that it takes from that node, or from the one behind it.
    """

    after: int
    stages: tuple[int, ...]


def takeover(
    placement: Placement,
    number: int,
    seconds: Sequence[float],
    borders: Sequence[int],
    speeds: Mapping[int, float] | None = None,
) -> Takeover | None:
    """The best place for node `number`; None where every place would leave the slowest node as slow as it is.

    It takes the end of a neighbour's range, or its beginning, since activations go to neighbours only, and no node
    gives all that it has. What moves goes over one link, once. A looped map has no place between its nodes.

    seconds: of a micro-batch, by stage. borders: where the chain may be cut (`costs.Chain.borders`).
    """
    speeds = speeds or {}

    def times(of: Placement) -> tuple[float, float]:
        spent = [
            math.fsum(seconds[stage] for stage in of.stages_of(one)) / speeds.get(one, 1.0) for one in of.ring.order
        ]
        return max(spent), math.fsum(one * one for one in spent)  # the second: the more even, the smaller

    best: tuple[tuple[float, float], Takeover] | None = None
    for one in _places(placement, borders):
        try:
            after = placement.admitting(number, one.after, one.stages)
        except ValueError:
            continue  # some stage's successor would not be on a neighbour
        value = (times(after), one)
        best = value if best is None else min(best, value)
    return best[1] if best is not None and best[0][0] < times(placement)[0] else None


def _places(placement: Placement, borders: Sequence[int]) -> Iterator[Takeover]:
    """Every gap between neighbours with every end of a range before it, and every beginning of one behind it."""
    ring = placement.ring
    for after in ring.order:
        for donor in dict.fromkeys((after, ring.successor(after))):
            for one in placement.ranges_of(donor):
                inside = [cut for cut in borders if one.start < cut < one.stop]
                for start, stop in [
                    *((cut, one.stop) for cut in inside),
                    *((one.start, cut) for cut in inside),
                    (one.start, one.stop),
                ]:
                    if len(placement.stages_of(donor)) > stop - start:
                        yield Takeover(after, tuple(range(start, stop)))
