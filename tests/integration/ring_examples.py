"""Runs of a ring over real processes, beside one process that adds up in the order that the ring promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from parameter_server_examples import Undisturbed, started, train
from toy_workload import workload_spec

from distributed.arithmetic import PairwiseSum
from distributed.ring.coordinator import RingCoordinator
from distributed.ring.segments import segments
from distributed.ring.strategy import RingStrategy
from distributed.shards import buckets
from distributed.single import SingleStrategy
from distributed.slot_tree import shares
from distributed.strategy import WorkloadSpec
from nmt.config import compose
from nmt.training.fit import strategy_options

STEPS = 6
TOY = workload_spec(groups=5)
# Signs of life soon show that a frame is missing. Deadlines are the usual ones, long: a death is known without them,
# and whoever gets no core for some seconds on a busy machine is not to be taken for lost.
IMPATIENT = ["heartbeat_seconds=0.2"]


def options(*words: str, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Section `distribution` as a strategy is given it; `faults`: also of processes that replace others."""
    config = compose(
        [
            *("scale=smoke", "threads=1", "batch.micro_batches=16", "distribution=ring_allreduce"),
            *(f"distribution.{word}" for word in words),
        ]
    )
    return strategy_options(config, "0123456789ab/s1", Path("nowhere"), 1) | {"faults": list(faults)}


@contextmanager
def running(*words: str, faults: Sequence[str] = (), spec: WorkloadSpec = TOY) -> Iterator[RingStrategy]:
    """A ring with its processes; afterwards none of them is left."""
    with started(RingStrategy(options(*words, faults=faults)), spec) as strategy:
        yield strategy


class RingInOneProcess(SingleStrategy):
    """The rule: a step's bits are those of a share for each configured worker, whoever computes it, each added up by
    the pairwise tree over its leaves, summed bucket by bucket and segment by segment, segment s from share s on.

    `workers`: by step, how many are configured.
    """

    def __init__(self, workers: Mapping[int, int], bucket_bytes: int = 25 * 2**20):
        super().__init__()
        self._workers, self._bucket_bytes = workers, bucket_bytes

    def _gradient(self, index: int, tokens: Sequence[int], totals: Any, probe: bool) -> torch.Tensor:
        plan = self.workload.plan
        gradients = []
        for leaves in shares(plan.groups, self._workers[index]):
            tree = PairwiseSum(self.flat)
            for leaf in leaves:
                self.flat.collect_into(torch.zeros_like(self.flat.values))
                for number in range(leaf * plan.slots_per_group, (leaf + 1) * plan.slots_per_group):
                    if tokens[number]:
                        slot = self.workload.slot(index, number, probe)
                        loss = self._loss(slot)
                        (loss / sum(tokens)).backward()
                        totals.add(slot, loss.detach(), probe)
                tree.add(self.flat.gradient)
            gradients.append(tree.result())
        whole = torch.empty_like(gradients[0])
        for start, stop in buckets(whole.numel(), self._bucket_bytes):
            for segment, (first, last) in enumerate(segments(start, stop, len(gradients))):
                part = gradients[segment][first:last].clone()
                for turn in range(1, len(gradients)):
                    part += gradients[(segment + turn) % len(gradients)][first:last]
                whole[first:last] = part
        return whole


def by_the_rule(
    workers: int | Mapping[int, int], spec: WorkloadSpec = TOY, bucket_bytes: int = 25 * 2**20, steps: int = STEPS
) -> Undisturbed:
    """What steps with so many configured workers come to; or with others from step to step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        by_step = workers if isinstance(workers, Mapping) else dict.fromkeys(range(1, steps + 1), workers)
        one = RingInOneProcess(by_step, bucket_bytes)
        one.start(spec)
        return Undisturbed(train(one, 1, steps), one.state())
    finally:
        torch.set_num_threads(threads)


def disturbed(*faults: str, words: Sequence[str], workers: int = 3) -> Mapping[str, Any]:
    """Train with failures, and hold the result against the rule; returns the report."""
    with running(f"workers={workers}", *words, faults=faults) as strategy:
        stats = train(strategy, 1, STEPS)
        state, report = strategy.state(), strategy.report()
    by_the_rule(workers).assert_equal(stats, state)
    return report


def process_ids(strategy: RingStrategy) -> dict[int, int]:
    """By worker, its process."""
    coordinator = strategy._coordinator
    assert isinstance(coordinator, RingCoordinator)
    return {member.number: (agent.about or {})["pid"] for member, agent in coordinator._agents.items()}
