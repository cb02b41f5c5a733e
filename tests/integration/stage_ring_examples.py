"""Runs of a ring of stages over real processes, beside the single process whose bits they must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from parameter_server_examples import Undisturbed, started, train, undisturbed
from staged_toy import staged_spec

from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.strategy import WorkloadSpec
from nmt.config import compose
from nmt.training.fit import strategy_options

STEPS = 6
TOY = staged_spec()
# No machine that still gets on with anything keeps a process from its cores for so long.
IMPATIENT = ["deadline_seconds=10", "heartbeat_seconds=0.5"]
ALONE = ["replace_lost=false"]


def options(*words: str, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Section `distribution` as a strategy is given it; `faults`: also of processes that replace others."""
    if not any(word.startswith("speeds=") for word in words):
        words = ("speeds=equal", *words)  # who measures takes half a second of each node
    config = compose(["scale=smoke", "threads=1", "distribution=ring_tmp", *(f"distribution.{word}" for word in words)])
    return strategy_options(config, "0123456789ab/s1", Path("nowhere"), 1) | {"faults": list(faults)}


@contextmanager
def one_thread() -> Iterator[None]:
    """As runs have it that are shared out: a second thread for so little only waits for a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def running(*words: str, faults: Sequence[str] = (), spec: WorkloadSpec = TOY) -> Iterator[StageRingStrategy]:
    """A ring with its processes; afterwards none of them is left."""
    with one_thread(), started(StageRingStrategy(options(*words, faults=faults)), spec) as strategy:
        yield strategy


_ONCE: dict[int, Undisturbed] = {}


def single(steps: int = STEPS) -> Undisturbed:
    """What one process makes of `TOY`."""
    if steps not in _ONCE:
        _ONCE[steps] = undisturbed(TOY, steps)
    return _ONCE[steps]


def disturbed(*faults: str, words: Sequence[str] = ALONE, nodes: int = 3) -> Mapping[str, Any]:
    """Train with failures, and hold the result against one process; returns the report."""
    with running(f"nodes={nodes}", *words, faults=faults) as strategy:
        stats = train(strategy, 1, STEPS)
        state, report = strategy.state(), strategy.report()
    single().assert_equal(stats, state)
    return report


def coordinator_of(strategy: StageRingStrategy) -> StageRingCoordinator:
    """What a test may look into."""
    coordinator = strategy._coordinator
    assert coordinator is not None
    return coordinator


def process_ids(strategy: StageRingStrategy) -> dict[int, int]:
    """By node, its process."""
    return {member.number: (agent.about or {})["pid"] for member, agent in coordinator_of(strategy)._agents.items()}
