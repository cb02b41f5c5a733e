"""Runs of a parameter server over real processes, beside the single process whose bits they must have."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any, TypeVar

import torch
from toy_workload import workload_spec

from distributed.launchers.processes import PRELOADED
from distributed.parameter_server.strategy import ParameterServerStrategy
from distributed.single import SingleStrategy
from distributed.strategy import Strategy, WorkloadSpec
from nmt.config import compose
from nmt.training.fit import strategy_options

STEPS = 6
TOY = workload_spec()
Started = TypeVar("Started", bound=Strategy)
# Signs of life soon show that a frame is missing. Deadlines are the usual ones, long: a death is known without them,
# and whoever gets no core for some seconds on a busy machine is not to be taken for lost.
IMPATIENT = ["heartbeat_seconds=0.2"]


def options(*words: str, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Section `distribution` as a strategy is given it, of words without its name.

    faults: also of processes that replace others, which a configuration may not name.
    """
    config = compose(
        [
            *("scale=smoke", "threads=1", "batch.micro_batches=16", "distribution=parameter_server"),
            *(f"distribution.{word}" for word in words),
        ]
    )
    return strategy_options(config, "0123456789ab/s1", Path("nowhere"), 1) | {"faults": list(faults)}


@cache
def forkserver() -> None:
    """Start this session's, with what every process would import anew: the program that runs tests, and workloads."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [*PRELOADED, "pytest", "nmt.training.workload", "toy_workload"]
    )
    ensure_running()


@contextmanager
def started(strategy: Started, spec: WorkloadSpec) -> Iterator[Started]:
    """A strategy with its processes; afterwards none of them is left."""
    forkserver()
    try:
        strategy.start(spec)
        yield strategy
    finally:
        strategy.close()
    assert not [process for process in multiprocessing.active_children() if process.name.startswith("agent")]


@contextmanager
def running(*words: str, faults: Sequence[str] = (), spec: WorkloadSpec = TOY) -> Iterator[ParameterServerStrategy]:
    """A parameter server with its processes; afterwards none of them is left."""
    with started(ParameterServerStrategy(options(*words, faults=faults)), spec) as strategy:
        yield strategy


@dataclass
class Undisturbed:
    """What one process made of a workload."""

    stats: list[Any]
    state: dict[str, Any]

    def assert_equal(self, stats: list[Any], state: dict[str, Any]) -> None:
        """Hold against it what another strategy made, to the bit."""
        assert stats == self.stats
        assert_equal_states(state, self.state)


def undisturbed(spec: WorkloadSpec = TOY, steps: int = STEPS) -> Undisturbed:
    """So many steps in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = SingleStrategy({})
        single.start(spec)
        return Undisturbed(train(single, 1, steps), single.state())
    finally:
        torch.set_num_threads(threads)


def train(strategy: Strategy, first: int, last: int) -> list[Any]:
    """Steps from `first` to `last`."""
    return [strategy.step(index, horizon=last) for index in range(first, last + 1)]


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Parameters, optimizer state and the number of updates, to the bit."""
    assert one["updates"] == other["updates"]
    for found, wanted in [
        (one["parameters"], other["parameters"]),
        *((one["optimizer"][slot], other["optimizer"][slot]) for slot in other["optimizer"]),
    ]:
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
