"""Steps on machines that are not there: how long they take, who waits, what is sent. Everything here is *emulated*.

What is measured is how long the stages of a model take in this process, and how much they hand on. A step of each
scheme is then played on a clock that only exists on paper, by the rules that decide in earnest where there are any: the
clocks, tickets and queues of the parameter server (`parameter_server.simulation`), and the partitioner and executors of
the ring of stages (`ring_tmp`). Links carry `link_bytes` a second each way, and a message takes `latency` seconds more.

    parameter_server   every node a worker; pushes overlap with the backward pass, pulls with nothing. A transfer takes
                       max(1, W/S) P b / B: with fewer servers than workers, a server's link is the narrow one
    ring_allreduce     2 (N - 1)/N P b / B, of which the backward pass hides as much as it lasts
    weights_move       3 (N - 1)/N P b / B, hidden behind all computing: parameters go round, data stay (FSDP, RTP)
    ring_tmp           stages where the partitioner cuts, executors with 1F1B, gradients shipped for the copies

Nodes compute alike but for the last one, which may be slower (`slowest`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.parameter_server.simulation import simulate
from distributed.ring.messages import Ring
from distributed.ring_tmp.costs import MemoryRule, NodeCapacity, StageCost
from distributed.ring_tmp.executor import LAGS
from distributed.ring_tmp.partition import partition
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.prediction import predict

BYTES = 4  # of a value, on the wire
STEPS = 20  # that are played where they differ: without waiting nodes drift apart, or have to get going first


@dataclass(frozen=True)
class Shape:
    """What stages took and handed on for a micro-batch of `tokens` target tokens. Other sizes are taken in proportion.

    forward, backward: seconds by stage. handed_on, returned: bytes behind and before each stage. parameters: elements
    of each stage by name, shared ones at each.
    """

    names: tuple[str, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    handed_on: tuple[float, ...]
    returned: tuple[float, ...]
    parameters: tuple[Mapping[str, int], ...]
    tokens: float

    @property
    def elements(self) -> int:
        """Parameters of the model."""
        return sum({name: count for one in self.parameters for name, count in one.items()}.values())

    @property
    def seconds(self) -> float:
        """Of a micro-batch on one node of speed 1."""
        return math.fsum((*self.forward, *self.backward))


@dataclass(frozen=True)
class Machine:
    """Equal nodes on equal links; `slowest` is the speed of the last of them, where the others have 1."""

    nodes: int
    link_bytes: float
    latency: float = 50e-6
    slowest: float = 1.0

    def speed(self, node: int) -> float:
        """Of a node."""
        return self.slowest if node == self.nodes - 1 else 1.0


@dataclass(frozen=True)
class Work:
    """A step: target tokens in all, and the micro-batches that a ring of stages cuts it into."""

    tokens: float
    micro_batches: int


@dataclass(frozen=True)
class Emulated:
    """A step: its seconds, each node's idle share, and the bytes a process sends or receives, whichever is more."""

    seconds: float
    idle: tuple[float, ...]
    sent: tuple[float, ...]


Scheme = Callable[[Shape, Machine, Work, Mapping[str, Any]], Emulated]


def emulate(scheme: str, shape: Shape, machine: Machine, work: Work, **options: Any) -> Emulated:
    """A step of a scheme of `SCHEMES`.

    options: `mode`, `staleness` and `servers` (a number, 0 for as many as nodes) of a parameter server, `shadows` and
        `schedule` of a ring of stages. Raises DistributedError where there are more nodes than stages.
    """
    return SCHEMES[scheme](shape, machine, work, options)


def crossing_tokens(shape: Shape, nodes: int, width: float) -> float:
    """From how many tokens a step on a stage ring's links carry more than those of a ring all-reduce, by the formula
    (N - 1)/N P / width, where width is what a token hands on forward: d_H + d behind a decoder."""
    return (nodes - 1) / nodes * shape.elements / width


def _shares(shape: Shape, machine: Machine, work: Work) -> tuple[list[float], list[float]]:
    """Seconds of each node's equal share of the data, and of its backward pass."""
    whole = work.tokens / shape.tokens / machine.nodes
    backward = math.fsum(shape.backward)
    speeds = [machine.speed(node) for node in range(machine.nodes)]
    return [whole * shape.seconds / speed for speed in speeds], [whole * backward / speed for speed in speeds]


def _parameter_server(shape: Shape, machine: Machine, work: Work, options: Mapping[str, Any]) -> Emulated:
    workers, servers = machine.nodes, int(options.get("servers", 1)) or machine.nodes
    seconds, hidden = _shares(shape, machine, work)
    size = BYTES * shape.elements
    transfer = max(1.0, workers / servers) * size / machine.link_bytes
    # A message of the simulation has one length there and back: that of a push, of which the backward pass hides some,
    # and that of a pull, of which it hides nothing, on average.
    delay = (max(0.0, transfer - min(hidden)) + transfer) / 2 + machine.latency
    played = simulate(
        workers,
        options.get("mode", "bsp"),
        int(options.get("staleness", 0)),
        lambda worker, _: seconds[worker],
        steps=STEPS,
        shares=workers,
        delays=lambda worker, server: delay,
    )
    busy = [len(played.computed.get(worker, [])) * seconds[worker] for worker in range(workers)]
    idle = tuple(max(0.0, 1.0 - own / played.seconds) for own in busy)
    sent = (*[float(size)] * workers, *[workers * size / servers] * servers)
    return Emulated(played.seconds / STEPS, idle, sent)


def _ring_allreduce(shape: Shape, machine: Machine, work: Work, options: Mapping[str, Any]) -> Emulated:
    return _moving(shape, machine, work, trips=2, hides_all=False)


def _weights_move(shape: Shape, machine: Machine, work: Work, options: Mapping[str, Any]) -> Emulated:
    return _moving(shape, machine, work, trips=3, hides_all=True)


def _moving(shape: Shape, machine: Machine, work: Work, trips: int, hides_all: bool) -> Emulated:
    """Data stay, and a model's size goes `trips` times round a ring."""
    seconds, backward = _shares(shape, machine, work)
    others = machine.nodes - 1
    sent = trips * others / machine.nodes * BYTES * shape.elements
    transfer = sent / machine.link_bytes + trips * others * machine.latency
    slowest = max(range(machine.nodes), key=seconds.__getitem__)
    step = seconds[slowest] + max(0.0, transfer - (seconds if hides_all else backward)[slowest])
    return Emulated(step, tuple(1.0 - own / step for own in seconds), (sent,) * machine.nodes)


def _stage_ring(shape: Shape, machine: Machine, work: Work, options: Mapping[str, Any]) -> Emulated:
    nodes, count = machine.nodes, work.micro_batches
    scale = work.tokens / count / shape.tokens
    forward, backward = ([scale * one for one in own] for own in (shape.forward, shape.backward))
    costs = [
        StageCost(name, one + other, own, round(scale * out))
        for name, one, other, own, out in zip(
            shape.names, forward, backward, shape.parameters, shape.handed_on, strict=True
        )
    ]
    shadows, lag = bool(options.get("shadows", True)), LAGS[options.get("schedule", "flush")]
    capacities = [NodeCapacity(machine.speed(node), machine.link_bytes) for node in range(nodes)]
    cut = partition(costs, capacities, count, MemoryRule(1 + lag, shadows=shadows))
    placement = Placement(Ring(1, tuple(range(nodes))), cut.owners)
    transfer = [scale * size / machine.link_bytes + machine.latency for size in shape.handed_on]
    speeds = {node: machine.speed(node) for node in range(nodes)}
    steps = STEPS if lag else 1  # after a flush each step is like the first
    found = predict(placement, count, forward, backward, speeds=speeds, transfer=transfer, lag=lag, steps=steps)
    sent = _sent_by_stages(shape, placement, scale * count, shadows and nodes > 1)
    # The clock knows delays and no rates, so the busiest link has the last word; norms go round before a step's end,
    # which nobody waits for who computes the next one meanwhile.
    round_trip = 0.0 if lag else (nodes - 1) * machine.latency
    step = max(found.seconds, max(sent) / machine.link_bytes) + round_trip
    idle = tuple(1.0 - (1.0 - found.idle[node]) * found.seconds / step for node in range(nodes))
    return Emulated(step, idle, sent)


def _sent_by_stages(shape: Shape, placement: Placement, micro_batches: float, shadows: bool) -> tuple[float, ...]:
    """Bytes of a step on each node's busier link: activations and shipped gradients forward, or gradients back.

    micro_batches: of the size that the shape was measured with.
    """
    found = []
    for node in placement.ring.order:
        own = placement.ranges_of(node)
        elements: dict[str, int] = {}
        for one in own:
            for stage in range(one.start, one.stop):
                elements.update(shape.parameters[stage])
        onwards = sum(shape.handed_on[one.stop - 1] for one in own if not one.is_last)
        back = sum(shape.returned[one.start] for one in own if not one.is_first)
        found.append(max(micro_batches * onwards + BYTES * sum(elements.values()) * shadows, micro_batches * back))
    return tuple(found)


SCHEMES: dict[str, Scheme] = {
    "parameter_server": _parameter_server,
    "ring_allreduce": _ring_allreduce,
    "weights_move": _weights_move,
    "ring_tmp": _stage_ring,
}


def measure(workload: Any) -> Shape:
    """Time the stages of a workload's model here, with one thread, on two micro-batches of the first step."""
    import torch

    from distributed.ring_tmp.stage_times import time_stages

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = workload.build_model(fine=True)
        tokens = workload.slot_tokens(1)
        slots = [slot for slot, count in enumerate(tokens) if count][:2]
        stages: Sequence[Any] = workload.stages(model, fine=True)
        times = time_stages(workload, model, stages, [workload.slot(1, slot) for slot in slots], memory=False)
    finally:
        torch.set_num_threads(threads)
    return Shape(
        names=tuple(one.name for one in times),
        forward=tuple(one.forward for one in times),
        backward=tuple(one.backward for one in times),
        handed_on=tuple(math.fsum(one.handed_on.values()) for one in times),
        returned=tuple(math.fsum(one.returned.values()) for one in times),
        parameters=tuple(one.parameters for one in times),
        tokens=sum(tokens[slot] for slot in slots) / len(slots),
    )
