"""A ring of stages computes what one process computes, to the bit, whatever comes when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simulated_stage_ring import StageRing, ToyWorkload, single

from distributed.strategy import BatchPlan, OptimizerSpec, StepStats

STEPS = 4
MAPS = [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 3], [0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2], [2, 0, 0, 3, 1, 1]]


def assert_same(state: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Bit by bit."""
    assert state["updates"] == wanted["updates"]
    for found, expected in [
        (state["parameters"], wanted["parameters"]),
        *((state["optimizer"][slot], wanted["optimizer"][slot]) for slot in wanted["optimizer"]),
    ]:
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("owners", MAPS, ids=str)
def test_parameters_norms_and_losses_are_those_of_one_process(owners: list[int], lag: int) -> None:
    workload = ToyWorkload()
    wanted, stats = single(workload, STEPS, lag)
    for seed in range(2):
        ring = StageRing(workload, owners, seed, STEPS, lag=lag)
        ring.run()
        assert_same(ring.state(), wanted)
        for number in ring.nodes:
            for one in stats:
                said = ring.applied[one.index][number]
                assert (said.norm, said.loss) == (one.gradient_norm, one.loss)
                assert (said.target_tokens, said.source_tokens) == (one.target_tokens, one.source_tokens)
                if one.probe is not None:
                    assert said.inner == one.probe.inner


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("plan", [BatchPlan(1, 1), BatchPlan(5, 1), BatchPlan(5, 5), BatchPlan(12, 6)], ids=str)
def test_any_number_of_micro_batches_and_groups(plan: BatchPlan, lag: int) -> None:
    workload = ToyWorkload(plan=plan) if plan.micro_batches > 1 else ToyWorkload(plan=plan, empty=False)
    wanted, _ = single(workload, STEPS, lag)
    ring = StageRing(workload, MAPS[2], 3, STEPS, lag=lag)
    ring.run()
    assert_same(ring.state(), wanted)


def test_parameters_of_several_chunks_whose_borders_lie_anywhere() -> None:
    """Chunks that stages of several nodes share, and others that one has alone."""
    workload = ToyWorkload(width=12_000, plan=BatchPlan(3, 3))
    wanted, stats = single(workload, 3)
    for owners in MAPS[1:4]:
        ring = StageRing(workload, owners, 0, 3)
        ring.run()
        assert_same(ring.state(), wanted)
        assert [ring.applied[step][0].norm for step in (1, 2, 3)] == [one.gradient_norm for one in stats]


def test_without_clipping_and_with_another_rule() -> None:
    rule = OptimizerSpec("distributed.optimizers:Sgd", {"momentum": 0.9})
    workload = ToyWorkload(rule=rule)
    wanted, _ = single(workload, STEPS)
    ring = StageRing(workload, MAPS[2], 5, STEPS)
    ring.run()
    assert_same(ring.state(), wanted)


@pytest.mark.parametrize("lag", [0, 1])
def test_memory_stays_within_the_bound_and_nobody_talks_to_a_stranger(lag: int) -> None:
    for owners in ([0, 1, 2, 3, 4, 4], [0, 1, 2, 0, 1, 2]):
        ring = StageRing(ToyWorkload(plan=BatchPlan(12, 1)), owners, 1, 2, lag=lag)
        ring.run()
        ranges = ring.nodes[0].placement.ranges
        assert all(ring.most_in_flight[1, one.index] <= one.limit for one in ranges)
        if len(ranges) == len(ring.nodes):  # else later ranges of the same node come first
            assert ring.most_in_flight[1, 0] == len(ranges)
        order = ring.nodes[0].placement.ring.order
        neighbours = {frozenset(pair) for pair in zip(order, (*order[1:], order[0]), strict=True)}
        assert {frozenset(pair) for pair in ring.sent} == neighbours
        for index in range(len(ranges)):
            passes = [(step, slot) for _, one, step, slot in ring.order_of_backward if one == index]
            assert passes == sorted(passes)


def is_finite(one: StepStats) -> bool:
    return one.loss * 0 == 0 and one.gradient_norm * 0 == 0


@pytest.mark.parametrize("lag", [0, 1])
def test_behind_a_step_that_is_not_finite_none_begins_before_it_is_asked_for(lag: int) -> None:
    workload = ToyWorkload(bad_step=2)
    wanted, stats = single(workload, STEPS, lag)
    assert [is_finite(one) for one in stats] == [True, False, True, True]
    for seed in range(3):
        ring = StageRing(workload, MAPS[2], seed, STEPS, lag=lag)
        with pytest.raises(AssertionError, match="nothing moves"):
            ring.run()
        assert {node.applied for node in ring.nodes.values()} == {2 + lag}
        assert not any(one.is_update for one in ring.applied[2].values())
        for node in ring.nodes.values():
            node.allow(STEPS)
        ring.run()
        assert_same(ring.state(), wanted)


@pytest.mark.exhaustive
@pytest.mark.parametrize("owners", MAPS, ids=str)
@pytest.mark.parametrize("lag", [0, 1])
def test_no_order_of_messages_changes_a_bit(owners: list[int], lag: int) -> None:
    workload = ToyWorkload()
    wanted, _ = single(workload, STEPS, lag)
    for seed in range(100, 150):
        ring = StageRing(workload, owners, seed, STEPS, lag=lag)
        ring.run()
        assert_same(ring.state(), wanted)
