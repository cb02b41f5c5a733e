"""Runs of nodes among which parameters rotate, over real processes, beside one process that follows their rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from parameter_server_examples import assert_equal_states, started, train
from rotation_rule import Outcome, by_the_rule
from staged_toy import staged_spec

from distributed.ring_rotate.coordinator import RotateCoordinator
from distributed.ring_rotate.strategy import RotateStrategy
from distributed.strategy import WorkloadSpec
from nmt.config import compose
from nmt.training.fit import strategy_options

STEPS = 6
TOY = staged_spec()
# Signs of life soon show that a frame is missing. Deadlines are the usual ones, long: a death is known without them.
IMPATIENT = ["heartbeat_seconds=0.2"]
ALONE = ["replace_lost=false", *IMPATIENT]


def options(*words: str, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Section `distribution` as a strategy is given it; `faults`: also of processes that replace others."""
    own = ["distribution=ring_tmp", "distribution.mode=rotate", *(f"distribution.{word}" for word in words)]
    config = compose(["scale=smoke", "threads=1", "batch.micro_batches=16", *own])
    return strategy_options(config, "0123456789ab/s1", Path("nowhere"), 1) | {"faults": list(faults)}


@contextmanager
def running(*words: str, faults: Sequence[str] = (), spec: WorkloadSpec = TOY) -> Iterator[RotateStrategy]:
    """A strategy with its processes; afterwards none of them is left."""
    with started(RotateStrategy(options(*words, faults=faults)), spec) as strategy:
        yield strategy


@cache
def rule(nodes: int, steps: int = STEPS) -> Outcome:
    """What so many nodes make of `TOY`."""
    return by_the_rule(TOY, [nodes] * steps)


def disturbed(*faults: str, words: Sequence[str] = ALONE, nodes: int = 3) -> Mapping[str, Any]:
    """Train with failures, and hold the result against the rule; returns the report."""
    with running(f"nodes={nodes}", *words, faults=faults) as strategy:
        stats = train(strategy, 1, STEPS)
        state, report = strategy.state(), strategy.report()
    assert stats == rule(nodes).stats
    assert_equal_states(state, rule(nodes).state)
    return report


def coordinator_of(strategy: RotateStrategy) -> RotateCoordinator:
    """What a test may look into."""
    coordinator = strategy._coordinator
    assert coordinator is not None
    return coordinator


def process_ids(strategy: RotateStrategy) -> dict[int, int]:
    """By node, its process."""
    return {member.number: (agent.about or {})["pid"] for member, agent in coordinator_of(strategy)._agents.items()}
