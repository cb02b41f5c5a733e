"""Nodes of a stage ring that die, wake and come: no step is lost, and all bits are those of one process.

Nobody tells nodes of a death but links that end. There is no coordinator in the simulation: it is dead from the start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from simulated_stage_ring import StageRing, ToyWorkload, single
from test_stage_ring import assert_same

from distributed.ring_tmp.node import RingTmpNode

STEPS = 4
MAPS = {
    2: [0, 0, 0, 1, 1, 1],
    3: [0, 0, 1, 1, 2, 2],
    4: [0, 0, 1, 2, 2, 3],
    5: [0, 1, 2, 3, 4, 4],
    6: [0, 1, 2, 0, 1, 2],  # three nodes, looped
}
MOVES = {2: 170, 3: 290, 4: 420, 5: 560, 6: 550}  # a run without deaths takes a few more


@cache
def wanted(lag: int, steps: int = STEPS) -> Mapping[str, Any]:
    return single(ToyWorkload(), steps, lag)[0]


def at_moves(events: Mapping[int, Callable[[], None]]) -> Callable[[], None]:
    count = 0

    def strike() -> None:
        nonlocal count
        if count in events:
            events[count]()
        count += 1

    return strike


def kills(ring: StageRing, victims: Sequence[int], moves: Sequence[int]) -> Callable[[], None]:
    def kill_those_of(move: int) -> None:
        for victim, due in zip(victims, moves, strict=True):
            if due == move:
                ring.kill(victim)

    return at_moves({move: lambda move=move: kill_those_of(move) for move in moves})  # type: ignore[misc]


def assert_as_one_process(ring: StageRing, lag: int) -> None:
    """Parameters, moments and what nodes said; and each second copy is the stage's, to the bit."""
    assert_same(ring.state(), dict(wanted(lag)))
    assert ring.applied.keys() == set(range(1, STEPS + 1))
    for step, said in ring.applied.items():
        assert len({(one.norm, one.loss) for one in said.values()}) == 1, step
    some = ring.nodes[min(ring.live)]
    for stage, owner in enumerate(some.placement.owners):
        shadow = some.placement.shadow_of(stage)
        if shadow is not None:
            pairs = zip(
                ring.nodes[owner].states[stage].buffers(), ring.nodes[shadow].states[stage].buffers(), strict=True
            )
            assert all(torch.equal(one, other) for one, other in pairs)


def survive_one(nodes: int, seed: int, lag: int) -> None:
    owners = MAPS[nodes]
    ring = StageRing(ToyWorkload(), owners, seed, STEPS, lag=lag)
    victim = ring.pick.choice(sorted(ring.live))
    ring.run(kills(ring, [victim], [ring.pick.randrange(MOVES[nodes])]))
    assert_as_one_process(ring, lag)
    assert victim not in ring.nodes[min(ring.live)].placement.owners


@pytest.mark.parametrize("nodes", MAPS)
@pytest.mark.parametrize("seed", range(3))
def test_a_node_may_die_between_any_two_messages(nodes: int, seed: int) -> None:
    survive_one(nodes, seed, seed % 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("nodes", MAPS)
@pytest.mark.parametrize("lag", [0, 1])
def test_a_node_may_die_between_any_two_messages_in_many_orders(nodes: int, lag: int) -> None:
    for seed in range(100, 140):
        survive_one(nodes, seed, lag)


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_each_node_may_die_at_each_move_of_a_run(victim: int) -> None:
    for move in range(MOVES[3]):
        ring = StageRing(ToyWorkload(), MAPS[3], 7, STEPS)
        ring.run(kills(ring, [victim], [move]))
        assert_as_one_process(ring, 0)


def die_one_after_the_other(nodes: int, seed: int, lag: int) -> bool:
    """Several deaths, the second while the ring is being closed over the first; returns whether bits were kept."""
    ring = StageRing(ToyWorkload(), MAPS[nodes], seed, STEPS, lag=lag)
    pick = random.Random(seed)
    victims = pick.sample(sorted(ring.live), min(len(ring.live) - 1, pick.choice([2, 3])))
    moves = [pick.randrange(MOVES[nodes])]
    for _ in victims[1:]:
        moves.append(moves[-1] + pick.randrange(1, pick.choice([5, 40, 300])))
    ring.run(kills(ring, victims, moves))
    sentences = {ring.nodes[number].lost_sentence for number in ring.live}
    if sentences == {""}:
        assert_as_one_process(ring, lag)
        return True
    assert "" not in sentences  # all that live know
    return False


def test_nodes_may_die_during_recovery_too() -> None:
    kept = [die_one_after_the_other(nodes, seed, seed % 2) for nodes in (3, 5) for seed in range(5)]
    assert 0 < sum(kept) < len(kept)


@pytest.mark.exhaustive
@pytest.mark.parametrize("nodes", [3, 4, 5, 6])
@pytest.mark.parametrize("lag", [0, 1])
def test_nodes_may_die_during_recovery_in_many_orders(nodes: int, lag: int) -> None:
    for seed in range(45):
        die_one_after_the_other(nodes, seed, lag)


@pytest.mark.parametrize("seed", range(4))
def test_two_that_are_no_neighbours_may_die_at_once(seed: int) -> None:
    ring = StageRing(ToyWorkload(), MAPS[4], seed, STEPS)
    move = ring.pick.randrange(MOVES[4])
    ring.run(kills(ring, [0, 2] if seed % 2 else [1, 3], [move, move]))
    assert_as_one_process(ring, 0)


@pytest.mark.parametrize("seed", range(4))
def test_two_neighbours_take_a_state_with_them_and_checkpoints_go_on(seed: int) -> None:
    """Back to what all had after step 2, with the same bits in the end."""
    ring = StageRing(ToyWorkload(), MAPS[4], seed, STEPS, lag=seed % 2)
    first, second = [(0, 1), (1, 2), (2, 3), (3, 0)][seed]
    move = ring.pick.randrange(MOVES[4])
    ring.run(kills(ring, [first, second], [move, move]))
    stages = ", ".join(f"stage{stage}" for stage, owner in enumerate(MAPS[4]) if owner == first)
    assert {ring.nodes[number].lost_sentence for number in ring.live} == {
        f"nobody has the state of {stages} any more: it was on node {first} and on the next, and both are gone; "
        "back to the checkpoints"
    }
    after, before = wanted(seed % 2, 2), wanted(seed % 2, 1)
    for number in sorted(ring.live):
        node = ring.nodes[number]
        assert node.next_task() is None
        placement = node.lost_placement
        assert placement is not None
        states = {}
        for stage in {*placement.stages_of(number), *placement.shadowed_by(number)}:
            state = states[stage] = ring.setup.new_state(stage)
            facts = {"step": 2, "updates": after["updates"]}
            state.load(facts, after["parameters"], after["optimizer"], before["parameters"])
        node.reload(2, states)
    ring.run()
    assert_same(ring.state(), dict(wanted(seed % 2)))
    assert not any(ring.nodes[number].lost_sentence for number in ring.live)


def test_without_copies_the_first_death_is_a_loss_and_a_ring_without_deaths_sends_no_gradients() -> None:
    ring = StageRing(ToyWorkload(), MAPS[3], 1, STEPS, shadows=False)
    ring.run()
    assert_same(ring.state(), dict(wanted(0)))
    assert {len(node.states) for node in ring.nodes.values()} == {2}
    ring = StageRing(ToyWorkload(), MAPS[3], 1, STEPS, shadows=False)
    ring.run(kills(ring, [1], [100]))
    assert all("nobody has the state of stage2, stage3" in ring.nodes[number].lost_sentence for number in (0, 2))


@pytest.mark.parametrize("seed", range(4))
def test_a_node_that_stood_still_and_wakes_is_sent_away(seed: int) -> None:
    ring = StageRing(ToyWorkload(), MAPS[4], seed, STEPS)
    at, victim = ring.pick.randrange(1, 300), seed % 4
    wakes = at + ring.pick.randrange(1, 60)
    ring.run(at_moves({at: lambda: ring.kill(victim), wakes: lambda: ring.wake(victim)}))
    assert ring.fenced == {victim}
    assert_as_one_process(ring, 0)


# ------------------------------------------------------------------------------------------------------------- joiners

JOINS = [
    ([0, 0, 0, 1, 1, 1], 1, [4, 5]),
    ([0, 0, 0, 1, 1, 1], 0, [3]),  # from the node behind it
    ([0, 0, 1, 1, 2, 2], 0, [1]),
    ([0] * 6, 0, [3, 4, 5]),  # a ring of one
    ([0, 0, 1, 1, 2, 0], 2, [5]),  # what a looped map has at its end
]


def join_and_die(case: int, seed: int, deaths: int) -> bool:
    owners, after, stages = JOINS[case]
    lag = seed % 2
    ring = StageRing(ToyWorkload(), owners, seed, STEPS, lag=lag)
    pick = random.Random(seed)
    first = pick.randrange(40 if max(owners) == 0 else 60 * (1 + max(owners)))
    events: dict[int, Callable[[], None]] = {first: lambda: ring.join(9, after, stages)}
    move = first

    def strike(victim: int) -> None:
        if victim in ring.live and (victim == 9 or len(ring.live - {9}) > 1):
            ring.kill(victim)

    for victim in pick.sample([*dict.fromkeys(owners), 9], min(deaths, 1 + max(owners))):
        move += pick.randrange(1, pick.choice([15, 60, 300]))
        events[move] = lambda victim=victim: strike(victim)  # type: ignore[misc]
    ring.run(at_moves(events))
    if not any(ring.nodes[number].lost_sentence for number in ring.live):
        assert_as_one_process(ring, lag)
    else:
        assert deaths > 1
    return 9 in ring.live


@pytest.mark.parametrize("case", range(len(JOINS)))
def test_a_node_that_comes_takes_over_stages_of_a_neighbour(case: int) -> None:
    owners, after, stages = JOINS[case]
    ring = StageRing(ToyWorkload(), owners, case, STEPS, lag=case % 2)
    ring.run(at_moves({10 + 5 * case: lambda: ring.join(9, after, stages)}))
    assert_as_one_process(ring, case % 2)
    placement = ring.nodes[9].placement
    assert placement.stages_of(9) == stages
    assert placement.ring.predecessor(9) == after


def test_nodes_may_die_while_one_comes_and_that_one_too() -> None:
    joined = [join_and_die(case, seed, 1) for case in range(len(JOINS)) for seed in range(2)]
    assert 0 < sum(joined) < len(joined)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", range(len(JOINS)))
@pytest.mark.parametrize("deaths", [0, 1, 2, 3])
def test_nodes_may_come_and_die_in_many_orders(case: int, deaths: int) -> None:
    for seed in range(25):
        join_and_die(case, seed, deaths)


# ------------------------------------------------------------------------------------------------------------- mistakes


class Hasty(RingTmpNode):
    """Speaks of a step before it has the gradients of the node before it: the barrier vouches for less."""

    def _enter(self, *what: Any) -> None:
        super()._enter(*what)
        self._shadowed = []

    def _take_gradient(self, message: Any) -> None:
        self._steps.take_copy(message.step, message.tags[0], message.payload)


def test_a_barrier_that_does_not_wait_for_the_copies_gradients_shows() -> None:
    """That the simulation finds what the rules are there to prevent."""
    with pytest.raises((AssertionError, KeyError, RuntimeError)):
        for seed in range(20):
            ring = StageRing(ToyWorkload(), MAPS[3], seed, STEPS, node=Hasty)
            ring.run(kills(ring, [ring.pick.randrange(3)], [ring.pick.randrange(1, 390)]))
            assert_as_one_process(ring, 0)
