"""The cut of a chain of stages over nodes: compared with all cuts there are; and what it is foretold to cost."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.errors import DistributedError
from distributed.ring.messages import Ring
from distributed.ring_tmp.costs import Chain, MemoryRule, NodeCapacity, StageCost, rounded, runs_of
from distributed.ring_tmp.partition import Partition, partition
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.prediction import bubble, predict


def stages(*seconds: float, output: int = 0) -> list[StageCost]:
    return [StageCost(f"s{number}", one, {f"p{number}": 100}, output) for number, one in enumerate(seconds)]


def best_of_all(chain: Chain) -> tuple[int, ...] | None:
    """By trying each cut."""
    count, nodes = len(chain.stages), len(chain.nodes)
    found = []
    for inner in itertools.combinations(range(1, count), nodes - 1):
        cuts = (0, *inner, count)
        if set(cuts) <= set(chain.borders) and chain.fits(cuts):
            times = [chain.time(node, *run) for node, run in enumerate(runs_of(cuts))]
            found.append((max(times), math.fsum(times), cuts))
    return min(found)[2] if found else None


some_stages = st.lists(
    st.builds(
        StageCost,
        st.just("s"),
        st.integers(1, 40).map(float),
        st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), max_size=2),
        st.integers(0, 400),
        st.integers(0, 400),
    ),
    min_size=1,
    max_size=7,
)
some_nodes = st.lists(
    st.builds(
        NodeCapacity,
        st.sampled_from([0.5, 1.0, 2.0]),
        st.sampled_from([math.inf, 10.0, 40.0]),
        st.sampled_from([math.inf, 1500.0, 2500.0, 4000.0]),
    ),
    min_size=1,
    max_size=4,
)


@given(some_stages, some_nodes, st.integers(1, 5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_cut_is_better(chain: list[StageCost], nodes: list[NodeCapacity], micro_batches: int, shadows: bool) -> None:
    rule = MemoryRule(shadows=shadows)
    costs = Chain(chain, nodes, micro_batches, rule)
    wanted = best_of_all(costs)
    if wanted is None:
        with pytest.raises(DistributedError, match=r"fits|can be cut apart"):
            partition(chain, nodes, micro_batches, rule)
    else:
        found = partition(chain, nodes, micro_batches, rule).cuts
        assert costs.fits(found)
        assert costs.bottleneck(found) == costs.bottleneck(wanted)
        sums = [math.fsum(costs.time(node, *run) for node, run in enumerate(runs_of(cuts))) for cuts in (found, wanted)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-12)


def test_a_node_at_half_speed_gets_half_the_work() -> None:
    cut = partition(stages(*[1.0] * 15), [NodeCapacity(), NodeCapacity(0.5), NodeCapacity()], 8)
    assert cut.cuts == (0, 6, 9, 15)
    assert cut.owners == (0,) * 6 + (1,) * 3 + (2,) * 6
    assert cut.bottleneck == 6.0


def test_among_equal_bottlenecks_the_smallest_sum_and_then_the_first_cut_wins() -> None:
    assert partition(stages(4, 1, 1), [NodeCapacity(), NodeCapacity()], 1).cuts == (0, 1, 3)
    fast_second = [NodeCapacity(), NodeCapacity(2.0)]
    assert partition(stages(1, 1, 6), fast_second, 1).cuts == (0, 2, 3)  # 2 and 3, rather than 1 and 3.5
    assert partition(stages(5, 1, 1, 5), [NodeCapacity()] * 3, 1).cuts == (0, 1, 3, 4)
    # The last node takes 10 in any case, so the others need not be even: 4.5 and 1, rather than 3 and 4.
    assert partition(stages(6, 3, 1, 10), [NodeCapacity(2.0), NodeCapacity(), NodeCapacity()], 1).cuts == (0, 2, 3, 4)


def test_a_slow_link_moves_the_cut_to_where_little_is_carried() -> None:
    chain = [
        StageCost("a", 1, {}, 1000),
        StageCost("b", 1, {}, 1000),
        StageCost("c", 1, {}, 10),
        StageCost("d", 1, {}, 0),
    ]
    assert partition(chain, [NodeCapacity()] * 2, 4).cuts == (0, 2, 4)
    slow = partition(chain, [NodeCapacity(link_bytes=100.0)] * 2, 4)
    assert slow.cuts == (0, 3, 4)
    slower = partition(chain, [NodeCapacity(link_bytes=2.0)] * 2, 4)
    assert (
        slower.limit
        == "the link from node 0 to the next limits it: 5e+03 ms a micro-batch for sending, 3e+03 ms for computing"
    )


def test_stages_that_share_a_parameter_stay_together_with_those_between_them() -> None:
    chain = [
        StageCost("source", 1, {"table": 10}),
        StageCost("encoder", 5, {"e": 1}),
        StageCost("target", 1, {"table": 10}),
        StageCost("decoder", 1, {"d": 1}),
    ]
    assert partition(chain, [NodeCapacity()] * 2, 1).cuts == (0, 3, 4)
    with pytest.raises(DistributedError) as refused:
        partition(chain, [NodeCapacity()] * 3, 1)
    assert str(refused.value) == (
        "distribution.nodes: 3 nodes, and only 2 stages that can be cut apart (source and encoder and target share "
        "parameters); distribution.nodes=2"
    )
    assert Chain(chain, [NodeCapacity()], 1, MemoryRule()).elements(0, 3) == 11


def test_the_sentence_names_the_stage_that_cannot_be_cut() -> None:
    one = partition([StageCost("encoder", 2), StageCost("decoder", 6), StageCost("output", 2)], [NodeCapacity()] * 3, 8)
    assert one.limit == (
        "decoder cannot be cut and takes 60% of the time, so however many nodes there are, the ring is at most 1.67 "
        "times as fast as one"
    )
    assert partition(stages(1, 1, 1), [NodeCapacity()], 1).limit == "one node has all stages"
    assert partition(stages(2, 2, 2, 2, 1), [NodeCapacity()] * 2, 1).limit == (
        "node 1 has 56% of the time, where 50% would be its even share: stages are no smaller; the ring is at most "
        "1.80 times as fast as one node"
    )


def test_memory_counts_parameters_copies_and_what_is_in_flight() -> None:
    rule = MemoryRule(versions=1, moments=2, groups=1, shadows=True)
    assert (rule.own_words, rule.shadow_words) == (5, 4)
    assert (MemoryRule(shadows=False).own_words, MemoryRule(shadows=False).shadow_words) == (4, 0)
    assert (MemoryRule(2, 2, 4, True).own_words, MemoryRule(2, 2, 4, True).shadow_words) == (9, 6)
    chain = Chain(
        [StageCost("a", 1, {"x": 10}, 7, 100), StageCost("b", 1, {"y": 20}, 0, 50)], [NodeCapacity()] * 2, 8, rule
    )
    # node 0: its own, the copy of b, two micro-batches in flight, and two gradients that come back
    assert chain.memory_bytes(0, (1, 2), 0, 1) == 4 * (10 * 5 + 20 * 4) + 2 * 100 + 2 * 7
    # node 1: its own, the copy of a, one in flight, and the outputs of the two of node 0
    assert chain.memory_bytes(1, (0, 1), 1, 2) == 4 * (20 * 5 + 10 * 4) + 50 + 2 * 7


def test_a_small_node_gets_fewer_parameters_and_the_sentence_says_so() -> None:
    chain = [
        StageCost("big", 1, {"x": 1000}),
        StageCost("a", 1, {"y": 10}),
        StageCost("b", 1, {"z": 10}),
        StageCost("c", 4, {}),
    ]
    free = partition(chain, [NodeCapacity()] * 2, 1, MemoryRule(shadows=False))
    assert free.cuts == (0, 3, 4)
    tight = [NodeCapacity(memory_bytes=16030), NodeCapacity()]
    small = partition(chain, tight, 1, MemoryRule(shadows=False))
    assert small.cuts == (0, 1, 4)
    assert (
        small.limit == "memory limits it: 1.17 times as fast as one node, where 1.75 times would be possible with more"
    )
    with pytest.raises(DistributedError, match=r"over 2 nodes fits: the fastest cut needs 0 MiB of 0, 0 MiB of inf"):
        partition(chain, [NodeCapacity(memory_bytes=15000), NodeCapacity()], 1, MemoryRule(shadows=False))


def test_times_are_rounded_and_a_recorded_cut_is_taken_again() -> None:
    assert [rounded(one) for one in (0.012345, 0.01249, 123.0, 0.0)] == [0.012, 0.012, 120.0, 0.0]
    measured = [
        partition(stages(1.02 + noise, 0.99, 2.04 - noise), [NodeCapacity()] * 2, 4) for noise in (0.0, 0.01, 0.02)
    ]
    assert len(set(measured)) == 1
    again = Partition.from_dict(json.loads(json.dumps(measured[0].to_dict())), ["s0", "s1", "s2"])
    assert again == measured[0]
    with pytest.raises(DistributedError, match="the recorded cut is of stages"):
        Partition.from_dict(measured[0].to_dict(), ["s0", "s1"])


# --------------------------------------------------------------------------------------------------------- prediction


def placed(*owners: int) -> Placement:
    return Placement(Ring(1, tuple(dict.fromkeys(owners))), owners)


@pytest.mark.parametrize(("nodes", "micro_batches"), [(1, 3), (2, 1), (2, 8), (4, 4), (4, 13), (8, 8)])
def test_equal_stages_idle_by_the_formula(nodes: int, micro_batches: int) -> None:
    found = predict(placed(*range(nodes)), micro_batches, [1.0] * nodes, [2.0] * nodes)
    assert found.seconds == pytest.approx(3.0 * (micro_batches + nodes - 1))
    assert found.mean_idle == pytest.approx(bubble(nodes, micro_batches))
    assert bubble(4, 13) == 3 / 16


def test_the_slowest_node_is_busy_and_the_others_idle_with_their_share() -> None:
    found = predict(placed(0, 1, 2), 200, [1.0, 4.0, 2.0], [1.0, 4.0, 2.0])
    assert found.idle[1] == pytest.approx(0.0, abs=0.02)
    assert found.idle[0] == pytest.approx(0.75, abs=0.02)
    assert found.idle[2] == pytest.approx(0.5, abs=0.02)
    slow = predict(placed(0, 1, 2), 200, [1.0] * 3, [1.0] * 3, speeds={1: 0.5})
    assert slow.seconds == pytest.approx(200 * 4.0, rel=0.02)


def test_two_versions_leave_no_bubble() -> None:
    flush = predict(placed(0, 1, 2, 3), 4, [1.0] * 4, [1.0] * 4, steps=50)
    both = predict(placed(0, 1, 2, 3), 4, [1.0] * 4, [1.0] * 4, steps=50, lag=1)
    assert flush.mean_idle == pytest.approx(3 / 7)
    assert both.mean_idle < 0.02


def test_a_looped_map_has_a_smaller_bubble_and_delays_make_it_larger() -> None:
    plain = predict(placed(0, 0, 1, 1), 4, [1.0] * 4, [1.0] * 4)
    looped = predict(placed(0, 1, 0, 1), 4, [1.0] * 4, [1.0] * 4)
    assert looped.seconds < plain.seconds == 4 * (4 + 1)
    delayed = predict(placed(0, 0, 1, 1), 4, [1.0] * 4, [1.0] * 4, transfer=[9.0, 0.5, 9.0, 9.0])
    assert delayed.seconds > plain.seconds
    assert predict(placed(0, 0, 1, 1), 1, [1.0] * 4, [1.0] * 4, transfer=[9.0, 0.5, 9.0, 9.0]).seconds == 9.0
