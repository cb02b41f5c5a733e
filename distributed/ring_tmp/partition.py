"""Which stages each node of the ring gets: the cut of a chain with the smallest bottleneck, from measured times.

Stages lie on nodes in order, each node has a run of neighbours, and a step is as fast as the slowest of them: the time
of a node's stages over its speed, or that of what it sends over its link, whichever is longer. So a node at half speed
gets half the work. Among cuts with the same bottleneck the one with the smallest sum of times is taken, and among those
the one that cuts first. A node has a memory limit, and holds, beside its own stages, the copy of those before it.

The cut is exact (dynamic programming over the ends of runs; the tests compare it with all cuts there are). Times are
rounded first, so that noise does not move a cut; still, the cut that a run began with belongs to its record
(`Partition.to_dict`), and a run that resumes takes it from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distributed.errors import DistributedError
from distributed.ring_tmp.costs import Chain, MemoryRule, NodeCapacity, StageCost, names_of, runs_of


@dataclass(frozen=True)
class Partition:
    """A cut: node i has the stages from `cuts[i]` to `cuts[i + 1]`.

    bottleneck: seconds a micro-batch of the slowest node or link.
    limit: what limits the speed-up, in a sentence.
    """

    names: tuple[str, ...]
    cuts: tuple[int, ...]
    bottleneck: float
    limit: str

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """By stage, the position of its node."""
        return tuple(node for node in range(len(self.cuts) - 1) for _ in range(self.cuts[node], self.cuts[node + 1]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, for the run's record."""
        return {
            "names": list(self.names),
            "cuts": list(self.cuts),
            "bottleneck": self.bottleneck,
            "limit": self.limit,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], names: Sequence[str]) -> Partition:
        """What `to_dict` returned; `names` are those of the stages that there are.

        Raises DistributedError where they are others.
        """
        if list(names) != data["names"]:
            raise DistributedError(f"the recorded cut is of stages {data['names']}, and the model has {list(names)}")
        return cls(tuple(names), tuple(data["cuts"]), data["bottleneck"], data["limit"])


def partition(
    stages: Sequence[StageCost],
    nodes: Sequence[NodeCapacity],
    micro_batches: int,
    memory: MemoryRule | None = None,
) -> Partition:
    """The best cut of `stages` over `nodes`, in the order of the ring, each of which gets one stage at least.

    Raises DistributedError where there are fewer stages that can be cut apart than nodes, and where no cut fits.
    """
    chain = Chain(stages, nodes, micro_batches, memory or MemoryRule())
    if len(chain.units) < len(nodes):
        held = "; ".join(chain.inseparable())
        raise DistributedError(
            f"{len(nodes)} nodes, and only {len(chain.units)} stages that can be cut apart"
            + (f" ({held})" if held else ""),
            where="distribution.nodes",
            hint=f"distribution.nodes={len(chain.units)}",
        )
    best = _Search(chain).best()
    if best is None:
        short = _memory_needed(chain)
        raise DistributedError(
            f"no cut of the model over {len(nodes)} nodes fits: {short}",
            where="distribution.node_memory_mib",
            hint="more nodes, distribution.shadows=0, or more memory",
        )
    return Partition(tuple(one.name for one in stages), best, chain.bottleneck(best), limit_sentence(chain, best))


class _Search:
    """The best cut of a chain."""

    def __init__(self, chain: Chain):
        self._chain = chain

    def best(self) -> tuple[int, ...] | None:
        """The best cut that fits; None without any."""
        found = [self._best(last) for last in (self._chain.borders[:-1] if self._chain.is_limited else [None])]
        cuts = [one for one in found if one is not None]
        return min(cuts, key=lambda one: (self._chain.bottleneck(one), self._sum(one), one), default=None)

    def _sum(self, cuts: Sequence[int]) -> float:
        return math.fsum(self._chain.time(node, *run) for node, run in enumerate(runs_of(cuts)))

    def _best(self, last: int | None) -> tuple[int, ...] | None:
        """The best cut whose last run begins at `last`: the first node keeps its copy. None: wherever it begins.

        First the smallest bottleneck, then, among the cuts that keep to it, the smallest sum.
        """
        least = self._search(last, math.inf, by_sum=False)
        return None if least is None else self._search(last, self._chain.bottleneck(least), by_sum=True)

    def _search(self, last: int | None, most: float, *, by_sum: bool) -> tuple[int, ...] | None:
        # By the last run so far, since what a node has to hold depends on the run before its own.
        count = len(self._chain.stages)
        reached: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for node in range(len(self._chain.nodes)):
            after: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
            is_end = node == len(self._chain.nodes) - 1
            beginnings = list(reached.items()) if node else [((last if last is not None else 0, 0), (0.0, (0,)))]
            for (before, start), (so_far, cuts) in beginnings:
                if is_end and last is not None and start != last:
                    continue
                for stop in [count] if is_end else self._chain.borders[:-1]:
                    if stop <= start:
                        continue
                    time = self._chain.time(node, start, stop)
                    # The first node has the copy of the last one's stages.
                    previous = (before, start if node else count)
                    if time > most or not self._has_room(node, previous, start, stop):
                        continue
                    value = (so_far + time if by_sum else max(so_far, time), (*cuts, stop))
                    key = (start if self._chain.is_limited else 0, stop)
                    after[key] = min(after.get(key, value), value)
            reached = after
        return min(reached.values(), default=(0.0, None))[1]

    def _has_room(self, node: int, before: tuple[int, int], start: int, stop: int) -> bool:
        limit = self._chain.nodes[node].memory_bytes
        return math.isinf(limit) or self._chain.memory_bytes(node, before, start, stop) <= limit


def _memory_needed(chain: Chain) -> str:
    """Why nothing fits, as a clause."""
    cuts = _Search(chain.without_limits()).best()
    assert cuts is not None
    runs = runs_of(cuts)
    needs = [chain.memory_bytes(node, runs[node - 1], *run) for node, run in enumerate(runs)]
    return "the fastest cut needs " + ", ".join(
        f"{need / 2**20:.0f} MiB of {one.memory_bytes / 2**20:.0f}"
        for need, one in zip(needs, chain.nodes, strict=True)
    )


def limit_sentence(chain: Chain, cuts: Sequence[int], numbers: Sequence[int] = ()) -> str:
    """What limits the speed-up of a cut, for a person; numbers: of the nodes, by default they are counted from 0."""
    runs = runs_of(cuts)
    total = chain.compute(0, 0, len(chain.stages)) * chain.nodes[0].speed
    bottleneck = chain.bottleneck(cuts)
    node = next(one for one, run in enumerate(runs) if chain.time(one, *run) == bottleneck)
    start, stop = runs[node]
    number = numbers[node] if numbers else node
    if len(runs) == 1:
        return "one node has all stages"
    if chain.transfer(node, start, stop) == bottleneck > chain.compute(node, start, stop):
        return (
            f"the link from node {number} to the next limits it: {bottleneck * 1e3:.3g} ms a micro-batch for sending, "
            f"{chain.compute(node, start, stop) * 1e3:.3g} ms for computing"
        )
    share = chain.compute(node, start, stop) * chain.nodes[node].speed / total
    speed_up = total / bottleneck
    if (start, stop) in chain.units:
        reasons = [one.couples for one in chain.stages[start:stop] if one.couples]
        because = f" ({'; '.join(reasons)})" if reasons else ""
        speed = chain.nodes[node].speed
        slow = f" on node {number} of speed {speed:g}" if speed < max(one.speed for one in chain.nodes) else ""
        return (
            f"{names_of(chain.stages[start:stop])} cannot be cut{because} and takes {share:.0%} of the time{slow}, so "
            f"however many nodes there are, the ring is at most {speed_up:.2f} times as fast as one"
        )
    if chain.is_limited:
        other = chain.without_limits()
        best = _Search(other).best()
        if best is not None and other.bottleneck(best) < bottleneck:
            return (
                f"memory limits it: {speed_up:.2f} times as fast as one node, where "
                f"{total / other.bottleneck(best):.2f} times would be possible with more"
            )
    even = chain.nodes[node].speed / math.fsum(one.speed for one in chain.nodes)
    return (
        f"node {number} has {share:.0%} of the time, where {even:.0%} would be its even share: stages are no smaller; "
        f"the ring is at most {speed_up:.2f} times as fast as one node"
    )
