"""What stages cost on nodes, in seconds a micro-batch and in bytes: what a cut of the model is judged by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_BYTES = 4  # of an element
_DIGITS = 2  # significant ones of a time


def rounded(seconds: float) -> float:
    """A time to two significant digits."""
    return float(f"{seconds:.{_DIGITS - 1}e}")


@dataclass(frozen=True)
class StageCost:
    """What a stage costs, measured on a node of speed 1.

    seconds: forward and backward of a micro-batch.
    parameters: elements by name. Stages that share one cannot be cut apart, nor can those between them.
    output_bytes: what it hands on for a micro-batch, all that rides along included; as much comes back.
    kept_bytes: what it keeps of a micro-batch between forward and backward.
    couples: why it is not cut further, a clause; see `distributed.strategy.Stage`.
    """

    name: str
    seconds: float
    parameters: Mapping[str, int] = field(default_factory=dict)
    output_bytes: int = 0
    kept_bytes: int = 0
    couples: str = ""


@dataclass(frozen=True)
class NodeCapacity:
    """What a node can do.

    speed: 1 is that of the node on which stages were measured.
    link_bytes: a second, to the next node.
    memory_bytes: for parameters, optimizer, gradients, activations and the copy; infinite where nothing limits it.
    """

    speed: float = 1.0
    link_bytes: float = math.inf
    memory_bytes: float = math.inf


@dataclass(frozen=True)
class MemoryRule:
    """Words a parameter that a node keeps, see docs/rings.md.

    versions: of the parameters, 2 for `async`.
    moments: buffers of the optimizer's state.
    groups: of a step: a sum over n of them keeps log2(n) + 1 gradients at a time, rounded down.
    shadows: whether the copy of the stages before is kept, with its gradient; then a node's own gradient stays until
        the next node has read it.
    """

    versions: int = 1
    moments: int = 2
    groups: int = 1
    shadows: bool = True

    @property
    def own_words(self) -> int:
        """Of a node's own stages."""
        open_steps = self.versions - 1
        return self.versions + self.moments + self.groups.bit_length() + open_steps + self.shadows

    @property
    def shadow_words(self) -> int:
        """Of the copy."""
        return 2 * self.versions + self.moments if self.shadows else 0


def runs_of(cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The stages of each node, given where the runs end."""
    return list(pairwise(cuts))


def names_of(stages: Sequence[StageCost]) -> str:
    """Stages by name, for a person."""
    return " and ".join(one.name for one in stages)


class Chain:
    """A chain of units, which are runs of stages that cannot be cut apart, and what a run of them costs on a node."""

    def __init__(
        self, stages: Sequence[StageCost], nodes: Sequence[NodeCapacity], micro_batches: int, memory: MemoryRule
    ):
        self.stages, self.nodes, self.micro_batches, self.memory = stages, nodes, micro_batches, memory
        self.borders = _borders(stages)
        self.units = list(pairwise(self.borders))
        self._seconds = _prefix([rounded(one.seconds) for one in stages])
        self._kept = _prefix([one.kept_bytes for one in stages])
        self.is_limited = any(math.isfinite(one.memory_bytes) for one in nodes)

    def compute(self, node: int, start: int, stop: int) -> float:
        """Seconds a micro-batch of stages on a node."""
        return (self._seconds[stop] - self._seconds[start]) / self.nodes[node].speed

    def transfer(self, node: int, start: int, stop: int) -> float:
        """Seconds a micro-batch on the node's link, gradients for the copy included."""
        if len(self.nodes) == 1:
            return 0.0
        carried = self.stages[stop - 1].output_bytes if stop < len(self.stages) else 0
        shipped = _BYTES * self.elements(start, stop) / self.micro_batches if self.memory.shadows else 0.0
        return (carried + shipped) / self.nodes[node].link_bytes

    def time(self, node: int, start: int, stop: int) -> float:
        """Seconds a micro-batch: computing and sending overlap."""
        return max(self.compute(node, start, stop), self.transfer(node, start, stop))

    def elements(self, start: int, stop: int) -> int:
        """Parameters of stages, shared ones once."""
        names: dict[str, int] = {}
        for one in self.stages[start:stop]:
            names.update(one.parameters)
        return sum(names.values())

    def memory_bytes(self, node: int, before: tuple[int, int], start: int, stop: int) -> float:
        """What a node needs that has these stages, and the node before it those of `before`."""
        own = self.elements(start, stop) * self.memory.own_words
        shadow = self.elements(*before) * self.memory.shadow_words if len(self.nodes) > 1 else 0
        flying = min(len(self.nodes) - node, self.micro_batches)
        waiting = min(flying + 1, self.micro_batches) * self.stages[start - 1].output_bytes if start else 0
        coming = flying * self.stages[stop - 1].output_bytes if stop < len(self.stages) else 0
        return _BYTES * (own + shadow) + flying * (self._kept[stop] - self._kept[start]) + waiting + coming

    def bottleneck(self, cuts: Sequence[int]) -> float:
        """The longest time of a cut."""
        return max(self.time(node, *run) for node, run in enumerate(runs_of(cuts)))

    def fits(self, cuts: Sequence[int]) -> bool:
        """Whether every node has memory for its part of a cut."""
        runs = runs_of(cuts)
        return all(
            self.memory_bytes(node, runs[node - 1], *run) <= self.nodes[node].memory_bytes
            for node, run in enumerate(runs)
        )

    def without_limits(self) -> Chain:
        """The same, with as much memory as one likes."""
        nodes = [NodeCapacity(one.speed, one.link_bytes) for one in self.nodes]
        return Chain(self.stages, nodes, self.micro_batches, self.memory)

    def inseparable(self) -> Iterator[str]:
        """What holds stages together, as clauses."""
        for start, stop in self.units:
            if stop - start > 1:
                yield f"{names_of(self.stages[start:stop])} share parameters"


def _borders(stages: Sequence[StageCost]) -> list[int]:
    """Where the chain may be cut, both ends included: nowhere between two stages that share a parameter."""
    last = {name: index for index, one in enumerate(stages) for name in one.parameters}
    borders, reach = [0], 0
    for index, one in enumerate(stages):
        if index > reach:
            borders.append(index)
        reach = max([reach, index, *(last[name] for name in one.parameters)])
    return [*borders, len(stages)]


def _prefix(values: Sequence[float]) -> list[float]:
    """Sums of the first n values; exact enough to be the same on every machine."""
    return [math.fsum(values[:count]) for count in range(len(values) + 1)]
