"""How fast nodes are said to be, and who gets which stages then: compared with all orders and cuts there are."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from staged_toy import staged_spec

from distributed.ring_tmp.costs import Chain, MemoryRule, NodeCapacity, StageCost, runs_of
from distributed.ring_tmp.sharing import ORDERS, orders, share_out
from distributed.ring_tmp.speeds import WINDOWS, NodeSpeeds, model_work, rate, relative, width_of

PERIOD = 100_000  # microseconds


class Machine:
    """A clock on paper, in microseconds, and a computation that may run for a share of each period and then stands
    still. gone: how much of a period has passed when somebody begins to look."""

    def __init__(self, share: float = 1.0, gone: int = 0):
        self.now, self._quota = gone, round(share * PERIOD)

    def run(self) -> None:
        left = 2000
        while left:
            into = self.now % PERIOD
            if into >= self._quota:
                self.now += PERIOD - into
                continue
            runs = min(left, self._quota - into)
            self.now, left = self.now + runs, left - runs

    def clock(self) -> float:
        return self.now / 1e6


def measured(machine: Machine, run: Callable[[], None] | None = None) -> float:
    noted: list[int] = []
    found = rate(run or machine.run, lambda: noted.append(machine.now), machine.clock)
    assert len(noted) == WINDOWS
    return found


@pytest.mark.parametrize("gone", [0, 13_000, 49_500, 51_000, 99_900])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_node_that_stands_still_for_a_part_of_each_period_is_so_much_slower(share: float, gone: int) -> None:
    whole = measured(Machine(gone=gone))
    assert whole == pytest.approx(500.0, rel=1e-6)
    assert measured(Machine(share, gone)) == pytest.approx(share * whole, abs=10.5)  # one more or less in a window


def test_what_others_do_in_a_window_or_two_does_not_count() -> None:
    machine, runs = Machine(), itertools.count()

    def disturbed() -> None:
        machine.run()
        if next(runs) in (60, 150):
            machine.now += 3_000_000

    assert measured(machine, disturbed) == pytest.approx(500.0, rel=1e-6)


def test_speeds_are_beside_the_fastest_and_noise_is_none() -> None:
    assert relative({3: 40.0, 5: 19.0, 9: 36.0}) == {3: 1.0, 5: 0.5, 9: 1.0}
    assert relative({0: 100.0, 1: 84.0, 2: 12.6, 3: 0.1}) == {0: 1.0, 1: 0.85, 2: 0.15, 3: 0.05}
    assert relative({}) == {}


def test_the_computation_is_of_the_models_width_and_draws_nothing() -> None:
    assert width_of([(40,), (900, 40), (4, 64, 64), ()]) == 40
    assert width_of([(32_000, 512), (2048, 512), (4096, 4096)]) == 1024
    assert width_of([(8,), (4, 4)]) == 16
    before = torch.random.get_rng_state()
    work = model_work(staged_spec().build(), 40)
    assert rate(work, lambda: None, time.perf_counter) > 0.0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nodes_are_asked_once_and_again_when_they_were_forgotten() -> None:
    nodes = NodeSpeeds(is_measured=True)
    assert nodes.missing([0, 1]) == [0, 1]
    assert nodes.missing([0, 1, 2]) == [2]
    nodes.note(0, 10.0)
    nodes.note(1, 5.0)
    assert nodes.has([0, 1]) and not nodes.has([0, 2])
    assert nodes.of([0, 1]) == {0: 1.0, 1: 0.5}
    assert nodes.of([1]) == {1: 1.0}
    nodes.forget(0)
    assert not nodes.has([0]) and nodes.missing([0, 1]) == [0]
    equal = NodeSpeeds(is_measured=False)
    assert equal.missing([0, 1]) == [] and equal.has([0, 1])
    assert equal.of([4, 7]) == {4: 1.0, 7: 1.0}


# ------------------------------------------------------------------------------------------------------------- sharing


@given(
    st.lists(st.integers(1, 40).map(float), min_size=4, max_size=7),
    st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_no_order_and_no_cut_is_better(seconds: list[float], speeds: list[float]) -> None:
    stages = [StageCost(f"s{number}", one) for number, one in enumerate(seconds)]
    found = share_out(stages, dict(enumerate(speeds)), 4, MemoryRule())
    best = (math.inf, math.inf)
    for order in itertools.permutations(range(len(speeds))):
        chain = Chain(stages, [NodeCapacity(speeds[node]) for node in order], 4, MemoryRule())
        for inner in itertools.combinations(range(1, len(stages)), len(speeds) - 1):
            times = [chain.time(node, *run) for node, run in enumerate(runs_of((0, *inner, len(stages))))]
            best = min(best, (max(times), math.fsum(times)))
    assert found.cut.bottleneck == best[0] == max(found.seconds)
    assert math.fsum(found.seconds) == pytest.approx(best[1], rel=1e-12)
    assert found.speeds == tuple(speeds[number] for number in found.order)


def test_the_stage_that_cannot_be_cut_goes_to_the_fastest_wherever_it_stands() -> None:
    stages = [StageCost("encoder", 1.0), StageCost("decoder", 4.0), StageCost("output", 1.0)]
    found = share_out(stages, {2: 1.0, 3: 0.25, 4: 0.5}, 8, MemoryRule())
    assert (found.order, found.seconds) == ((3, 2, 4), (4.0, 4.0, 2.0))
    assert found.placement(5).owners == (3, 2, 4)
    assert found.limit.startswith("encoder cannot be cut and takes 17% of the time on node 3 of speed 0.25, so ")
    slow = share_out([StageCost(str(one), 1.0) for one in range(4)], {7: 0.5, 9: 1.0}, 8, MemoryRule())
    assert slow.described()["stages"] == [["0"], ["1", "2", "3"]]
    assert slow.described() | {"stages": []} == {
        "nodes": [7, 9],
        "speeds": [0.5, 1.0],
        "stages": [],
        "seconds": [2.0, 3.0],
        "limit": "node 9 has 75% of the time, where 67% would be its even share: stages are no smaller; the ring is at "
        "most 1.33 times as fast as one node",
    }


def test_orders_are_tried_that_differ_in_speeds_as_long_as_they_are_few() -> None:
    assert list(orders(dict.fromkeys(range(12), 1.0))) == [tuple(range(12))]
    assert list(orders({0: 1.0, 1: 0.5, 2: 1.0})) == [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
    five = list(orders({number: 1.0 / (1 + number) for number in range(5)}))
    assert len(set(five)) == ORDERS == math.factorial(5)
    assert list(orders({number: 1.0 / (1 + number) for number in range(6)})) == [(0, 1, 2, 3, 4, 5)]
