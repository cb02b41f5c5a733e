"""`ring_tmp` with `schedule=async` over real processes: the bits of one process whose gradients are an update late."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from delayed_gradients import DelayedGradients
from parameter_server_examples import Undisturbed, assert_equal_states, train
from stage_ring_examples import ALONE, STEPS, TOY, coordinator_of, one_thread, running
from staged_toy import staged_spec
from test_stage_ring_failures import PHASES, assert_was_lost
from test_stage_ring_processes import translation

from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.strategy import WorkloadSpec

ASYNC = "schedule=async"
PATIENCE = 300.0  # seconds, far more than it takes


def delayed(spec: WorkloadSpec, steps: int, probed: int = 0) -> Undisturbed:
    """What one process makes of a workload."""
    with one_thread():
        process = DelayedGradients({})
        process.start(spec)
        stats = [process.step(step, probe=step == probed) for step in range(1, steps + 1)]
        return Undisturbed(stats, process.state())


@cache
def toy(steps: int = STEPS) -> Undisturbed:
    return delayed(TOY, steps)


def dropping(name: str) -> WorkloadSpec:
    """A small translation model with dropout."""
    return translation(name, "model.dropout_mix=0.2")


@cache
def translated(name: str) -> Undisturbed:
    return delayed(dropping(name), 4, probed=2)


def assert_equal(wanted: Undisturbed, stats: list[Any], state: Mapping[str, Any]) -> None:
    """Both versions of the parameters, too."""
    wanted.assert_equal(stats, dict(state))
    previous = wanted.state["previous_parameters"]
    assert state["previous_parameters"].keys() == previous.keys()
    assert [name for name in previous if not torch.equal(state["previous_parameters"][name], previous[name])] == []


def disturbed(*faults: str, nodes: int = 3, words: tuple[str, ...] = tuple(ALONE)) -> Mapping[str, Any]:
    """Train the toy with failures, and hold the result against one process; returns the report."""
    with running(f"nodes={nodes}", ASYNC, *words, faults=faults) as strategy:
        stats = train(strategy, 1, STEPS)
        state, report = strategy.state(), strategy.report()
    assert_equal(toy(), stats, state)
    return report


def evaluated(strategy: StageRingStrategy) -> dict[str, torch.Tensor]:
    with strategy.evaluation_model() as model:
        return {name: parameter.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("gru", 2),
        ("transformer", 3),
        *(pytest.param("gru", nodes, marks=pytest.mark.exhaustive) for nodes in (1, 3, 4)),
        *(pytest.param("transformer", nodes, marks=pytest.mark.exhaustive) for nodes in (1, 2, 4)),
        pytest.param("lstm", 3, marks=pytest.mark.exhaustive),
    ],
)
def test_translation_models_have_the_bits_of_delayed_gradients_and_of_a_resumed_run(name: str, nodes: int) -> None:
    """With dropout, clipping and a probe; what is evaluated are the newest parameters."""
    wanted = translated(name)
    assert any(one.gradient_norm > 0.05 for one in wanted.stats)  # there is something to clip
    with running(f"nodes={nodes}", ASYNC, spec=dropping(name)) as strategy:
        stats = [strategy.step(1, horizon=1), strategy.step(2, probe=True, horizon=2)]
        saved = strategy.state()
        stats += train(strategy, 3, 4)
        own = evaluated(strategy)
        assert all(torch.equal(own[name], one) for name, one in wanted.state["parameters"].items())
        assert_equal(wanted, stats, strategy.state())
        assert [strategy.report()["staleness"][name] for name in ("mean", "p95", "max")] == [3 / 4, 1, 1]
        strategy.load_state(saved)  # back in the same processes
        assert train(strategy, 3, 4) == stats[2:]
        assert_equal(wanted, stats, strategy.state())


def test_a_node_may_die_while_two_steps_are_under_way() -> None:
    report = disturbed("kill@worker1.backward:3")
    assert_was_lost(report, 1)
    assert report["staleness"]["max"] == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("nodes", "number", "phase"), [(nodes, at, phase) for nodes in (2, 3) for at in range(nodes) for phase in PHASES]
)
def test_every_node_may_die_everywhere(nodes: int, number: int, phase: str) -> None:
    step = 2 + (number + PHASES.index(phase)) % 3
    link = "tcp" if (number + step) % 2 else "shm"
    report = disturbed(f"kill@worker{number}.{phase}:{step}", nodes=nodes, words=(*ALONE, f"link={link}"))
    assert_was_lost(report, number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["freeze", "enter"])
def test_another_may_die_while_the_ring_closes(phase: str) -> None:
    disturbed("kill@worker1.backward:3", *(f"kill@worker3.{phase}:{step}" for step in (2, 3, 4)), nodes=4)


@pytest.mark.exhaustive
def test_another_process_is_admitted_though_steps_never_cease() -> None:
    """Steps go on until it is there: nobody asks for a moment between two of them."""
    stats: list[Any] = []
    with running("nodes=3", ASYNC, faults=["kill@worker1.forward:3"]) as strategy:
        ring, end = coordinator_of(strategy)._membership, time.monotonic() + PATIENCE
        while not (ring.at_work and len(ring.members) == 3 and max(ring.members) > 2):
            assert time.monotonic() < end
            stats.append(strategy.step(len(stats) + 1, horizon=10**6))
        last = strategy.halt()
        while len(stats) < last:
            stats.append(strategy.step(len(stats) + 1, horizon=last))
        stats += train(strategy, last + 1, last + 2)
        assert_equal(delayed(TOY, last + 2), stats, strategy.state())


@pytest.mark.exhaustive
def test_a_checkpoint_is_of_no_number_of_nodes() -> None:
    with running("nodes=2", ASYNC) as two:
        stats = train(two, 1, 3)
        saved = two.state()
    with running("nodes=4", ASYNC, "shadows=0") as four:
        four.load_state(saved)
        assert_equal(toy(), stats + train(four, 4, STEPS), four.state())
    process = DelayedGradients({})
    process.start(TOY)
    process.load_state(saved)
    assert train(process, 4, STEPS) == toy().stats[3:]
    assert_equal_states(process.state(), toy().state)


@pytest.mark.exhaustive
def test_a_step_behind_one_that_is_not_finite_is_done_where_it_could_have_begun() -> None:
    spec = staged_spec(bad_step=3)
    wanted = delayed(spec, STEPS)
    for horizon in (3, STEPS):
        with running("nodes=2", ASYNC, spec=spec) as strategy:
            stats = [strategy.step(step, horizon=horizon) for step in (1, 2, 3)]
            last = strategy.halt()
            assert last == min(horizon, 4)
            assert not math.isfinite(stats[2].loss)
            stats += [strategy.step(step, horizon=last) for step in range(4, last + 1)]
            assert strategy.state()["updates"] == last - 1
            stats += train(strategy, last + 1, STEPS)
            found = strategy.state()
        assert [replace(one, loss=0.0, gradient_norm=0.0) for one in stats] == [
            replace(one, loss=0.0, gradient_norm=0.0) for one in wanted.stats
        ]  # nan is not equal to itself
        assert_equal(replace(wanted, stats=stats), stats, found)
