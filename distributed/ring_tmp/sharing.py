"""Who gets which stages: the order of nodes round the ring, and the cut of the chain over them in that order.

Nodes of one speed are alike, so that their order does not matter and is that of their numbers. Of nodes that differ,
the order decides who gets the stage that cannot be cut: every order that differs in speeds is tried, as long as there
are at most `ORDERS` of them, as there are of five nodes; of more, the order is that of the numbers. Among equals the
order wins that is nearest to that of the numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distributed.errors import DistributedError
from distributed.ring.messages import Ring
from distributed.ring_tmp.costs import Chain, MemoryRule, NodeCapacity, StageCost, runs_of
from distributed.ring_tmp.partition import Partition, limit_sentence, partition
from distributed.ring_tmp.placement import Placement

ORDERS = 120


@dataclass(frozen=True)
class Sharing:
    """A cut, and the nodes that have its runs.

    order: of the nodes, by number, round the ring. speeds: of them in that order, the fastest is 1. seconds: that a
    micro-batch takes each of them, as measured where the stages were, at its speed. limit: what limits the speed-up.
    """

    order: tuple[int, ...]
    speeds: tuple[float, ...]
    cut: Partition
    seconds: tuple[float, ...]
    limit: str

    def placement(self, epoch: int) -> Placement:
        """As the nodes of a ring take it."""
        return Placement(Ring(epoch, self.order), tuple(self.order[owner] for owner in self.cut.owners))

    def described(self) -> Mapping[str, Any]:
        """For a run's report; lists are in the order of the ring."""
        runs = [self.cut.names[start:stop] for start, stop in pairwise(self.cut.cuts)]
        return {
            "nodes": list(self.order),
            "speeds": list(self.speeds),
            "stages": [list(run) for run in runs],
            "seconds": list(self.seconds),
            "limit": self.limit,
        }


def share_out(
    stages: Sequence[StageCost],
    speeds: Mapping[int, float],
    micro_batches: int,
    memory: MemoryRule,
    node_bytes: float = math.inf,
) -> Sharing:
    """The smallest bottleneck over the orders of nodes and the cuts in them, then the smallest sum of times.

    speeds: by number. node_bytes: of memory that each node has.

    Raises DistributedError where there are fewer stages that can be cut apart than nodes, and where no cut fits.
    """
    refused: DistributedError | None = None
    best: tuple[tuple[float, float, tuple[int, ...]], Sharing] | None = None
    for order in orders(speeds):
        nodes = [NodeCapacity(speeds[number], memory_bytes=node_bytes) for number in order]
        try:
            cut = partition(stages, nodes, micro_batches, memory)
        except DistributedError as error:  # what does not fit in this order may in another
            refused = refused or error
            continue
        chain = Chain(stages, nodes, micro_batches, memory)
        seconds = tuple(chain.compute(node, *run) for node, run in enumerate(runs_of(cut.cuts)))
        found = Sharing(
            order, tuple(one.speed for one in nodes), cut, seconds, limit_sentence(chain, cut.cuts, numbers=order)
        )
        value = (cut.bottleneck, math.fsum(seconds), order)
        if best is None or value < best[0]:
            best = value, found
    if best is None:
        assert refused is not None
        raise refused
    return best[1]


def orders(speeds: Mapping[int, float]) -> Iterator[tuple[int, ...]]:
    """The orders that are tried, that of the numbers first."""
    numbers = sorted(speeds)
    alike = Counter(speeds.values())
    count = math.factorial(len(numbers)) // math.prod(math.factorial(one) for one in alike.values())
    return _distinct(numbers, speeds) if count <= ORDERS else iter([tuple(numbers)])


def _distinct(numbers: Sequence[int], speeds: Mapping[int, float]) -> Iterator[tuple[int, ...]]:
    """Of orders that differ in nodes of one speed only, the first."""
    if not numbers:
        yield ()
        return
    tried = set()
    for index, number in enumerate(numbers):
        if speeds[number] not in tried:
            tried.add(speeds[number])
            for rest in _distinct([*numbers[:index], *numbers[index + 1 :]], speeds):
                yield (number, *rest)
