"""How long a step takes on a ring of stages, and how idle its nodes are: foretold from the stages' times.

For equal nodes, and stages that take the same time, a flush leaves a share of (K - 1) / (M + K - 1) of each step idle,
with K nodes and M micro-batches (Huang et al. 2019). In general the executors themselves are run, on a clock that only
exists on paper: the same machine that decides in earnest decides here.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed.ring_tmp.executor import Executor, Task, Work
from distributed.ring_tmp.mailbox import Key
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.placement import Placement
from distributed.strategy import BatchPlan


@dataclass(frozen=True)
class Prediction:
    """What is to be expected.

    seconds: a step.
    idle: by node, the share of the time in which it waits.
    """

    seconds: float
    idle: Mapping[int, float]

    @property
    def mean_idle(self) -> float:
        """Over the nodes."""
        return sum(self.idle.values()) / len(self.idle)


def bubble(nodes: int, micro_batches: int) -> float:
    """The idle share of a flush over equal nodes."""
    return (nodes - 1) / (micro_batches + nodes - 1)


def predict(
    placement: Placement,
    micro_batches: int,
    forward: Sequence[float],
    backward: Sequence[float],
    *,
    speeds: Mapping[int, float] | None = None,
    transfer: Sequence[float] = (),
    lag: int = 0,
    steps: int = 1,
) -> Prediction:
    """Run the executors of a placement for some steps in a row.

    forward, backward: seconds a micro-batch of each stage, on a node of speed 1.
    speeds: of nodes, 1 where nothing is said.
    transfer: seconds that what a stage hands on, or what comes back, is on its way to another node, by stage; 0 where
        there are none. Links carry several things at a time, so this is a delay and no rate.
    steps: with lag 1 let there be some, so that the first, which has to fill the pipeline, does not count for much.
    """
    clock = _Clock(placement, micro_batches, forward, backward, speeds or {}, transfer, lag, steps)
    clock.run()
    return Prediction(clock.now / steps, {node: 1 - busy / clock.now for node, busy in clock.busy.items()})


class _Clock:
    """Executors, and what happens when."""

    def __init__(
        self,
        placement: Placement,
        micro_batches: int,
        forward: Sequence[float],
        backward: Sequence[float],
        speeds: Mapping[int, float],
        transfer: Sequence[float],
        lag: int,
        steps: int,
    ):
        self.now = 0.0
        self.busy = dict.fromkeys(placement.ring.order, 0.0)
        self._times = {Work.FORWARD: forward, Work.BACKWARD: backward}
        self._speeds, self._transfer, self._steps = speeds, transfer, steps
        plan = BatchPlan(micro_batches)
        self._executors = {
            node: Executor(node, placement, plan, lambda step: [1] * micro_batches, lag, 0)
            for node in placement.ring.order
        }
        self._owners = placement.owners
        self._arrived: dict[int, set[Key]] = {node: set() for node in placement.ring.order}
        self._working: set[int] = set()
        self._events: list[tuple[float, int, int, Task | Key]] = []  # when, number, node, what is done or arrives
        self._count = 0

    def run(self) -> None:
        """Until all steps are applied."""
        for one in self._executors.values():
            one.through = self._steps
        while True:
            self._apply()
            self._start()
            if not self._events:
                return
            self.now, _, node, what = heapq.heappop(self._events)
            if isinstance(what, Key):
                self._arrived[node].add(what)
            else:
                self._working.discard(node)
                self._finish(node, what)

    def _apply(self) -> None:
        """A step that is complete everywhere is applied at once."""
        done = min(one.completed() for one in self._executors.values())
        for one in self._executors.values():
            one.applied = max(one.applied, done)

    def _start(self) -> None:
        for node, executor in self._executors.items():
            task = None if node in self._working else executor.next_task(self._arrived[node])
            if task is None:
                continue
            assert task.range is not None
            if task.key is not None:
                self._arrived[node].discard(task.key)
            seconds = sum(self._times[task.work][task.range.start : task.range.stop]) / self._speeds.get(node, 1.0)
            self.busy[node] += seconds
            self._working.add(node)
            self._at(self.now + seconds, node, task)

    def _finish(self, node: int, task: Task) -> None:
        assert task.range is not None
        self._executors[node].done(task)
        if task.work is Work.FORWARD and not task.range.is_last:
            stage = task.range.stop
            key, to, last = Key(task.step, Kind.FORWARD, stage, task.slot), self._owners[stage], stage - 1
        elif task.work is Work.BACKWARD and not task.range.is_first:
            stage = task.range.start
            key, to, last = Key(task.step, Kind.BACKWARD, stage, task.slot), self._owners[stage - 1], stage - 1
        else:
            return
        self._at(self.now + (self._transfer[last] if self._transfer else 0.0), to, key)

    def _at(self, when: float, node: int, what: Task | Key) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, node, what))
