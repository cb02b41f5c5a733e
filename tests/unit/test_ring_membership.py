"""Nodes of a ring that die and come: no step is lost, and all who live have the same bits, those of a reference."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from simulated_ring import RingNetwork, at_moves, reference

from distributed.parameter_server.messages import worker
from distributed.ring.membership import RingMembership, followers

STEPS = 6


def finish(network: RingNetwork, before_move: Callable[[], None] = lambda: None) -> None:
    network.run(lambda: network.is_at_rest(STEPS), before_move)


def assert_as_reference(network: RingNetwork) -> None:
    """Every live member has the state of steps that nobody disturbed."""
    wanted = reference([network.seats] * STEPS)
    assert network.members()
    for node in network.members():
        assert node.updates == STEPS
        assert all(map(torch.equal, node.state, wanted))


@pytest.mark.parametrize("nodes", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(10))
def test_a_node_may_die_at_any_message(nodes: int, seed: int) -> None:
    network = RingNetwork(nodes, seed, STEPS)
    victim = network.pick.randrange(nodes)
    finish(network, at_moves({network.pick.randrange(1, 150 * nodes): lambda: network.kill(worker(victim))}))
    assert_as_reference(network)
    assert network.most_in_use <= 3 + 2 * (nodes > 1)  # two in turn, one in vain; and two of a seat that was taken over


@pytest.mark.parametrize("seed", range(24))
def test_nodes_may_die_one_after_the_other_during_recovery_too(seed: int) -> None:
    network = RingNetwork(4, seed, STEPS)
    pick = random.Random(seed)
    first = pick.randrange(1, 500)
    # Close behind each other: the second strikes while the ring is being closed over the first.
    moves = sorted({first, first + pick.randrange(1, 30), first + pick.randrange(30, 200)})
    victims = pick.sample(range(4), len(moves))
    events = {
        move: lambda victim=victim: network.kill(worker(victim)) for move, victim in zip(moves, victims, strict=True)
    }
    finish(network, at_moves(events))
    assert_as_reference(network)
    assert network.ring_sizes() == sorted(network.ring_sizes(), reverse=True)


@pytest.mark.parametrize("seed", range(24))
def test_nodes_that_come_take_part_from_a_later_step_on(seed: int) -> None:
    """With a death at any message: before, while and after they are given the state, which may be of those who give."""
    network = RingNetwork(3, seed, STEPS)
    pick = random.Random(seed)
    joins = pick.randrange(1, 200)
    events = {joins: lambda: network.join(3), joins + pick.randrange(1, 50): lambda: network.join(4)}
    for victim in pick.sample(range(4), seed % 3):
        events[joins + pick.randrange(1, 400) * 2 + victim % 2] = lambda victim=victim: network.kill(worker(victim))  # type: ignore[misc]
    finish(network, at_moves(events))
    assert_as_reference(network)
    for number in (3, 4):  # whoever has taken part once does so until it dies
        taken = [step for step in network.applied if number in network.makers(step)]
        if taken and worker(number) in network.live:
            assert taken == list(range(taken[0], STEPS + 1))


def test_a_joiner_waits_for_the_end_of_a_step_and_takes_its_place_by_number() -> None:
    network = RingNetwork(3, 5, STEPS)
    network.kill(worker(1))
    network.run(lambda: network.membership.at_work and not network.unreported)
    epoch = network.membership.ring.epoch
    network.join(1)
    assert network.membership.ring.epoch == epoch  # a step is under way
    finish(network)
    assert network.membership.ring.order == (0, 1, 2)
    assert network.ring_sizes()[0] == 2
    assert network.ring_sizes()[-1] == 3
    assert_as_reference(network)


def test_the_last_nodes_death_is_the_end() -> None:
    network = RingNetwork(2, 0, STEPS)
    network.run(lambda: len(network.applied) == 2)
    for number in (0, 1):
        network.kill(worker(number))
    with pytest.raises(AssertionError, match="nothing moves"):
        finish(network)
    assert network.state_lost == "all nodes are gone, and the state with them"


class Coordinator:
    """Writes down what a membership says."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.applied: list[tuple[int, Mapping[int, Any]]] = []
        self.lost: list[str] = []
        self.membership = RingMembership(
            lambda number, message: self.sent.append((number, message)),
            lambda step, facts: self.applied.append((step, facts)),
            self.lost.append,
            seats=5,
        )

    def stand(self, number: int, summed: int, *, whole: bool = True) -> None:
        epoch = self.membership.ring.epoch
        self.membership.on_status(number, {"epoch": epoch, "number": number, "summed": summed, "whole": whole})

    def said(self) -> list[tuple[int, dict[str, Any]]]:
        said, self.sent = self.sent, []
        return said


def started(nodes: int) -> Coordinator:
    one = Coordinator()
    one.membership.begin(range(nodes), 1)
    for number in range(nodes):
        one.stand(number, 0)
    assert [message["do"] for _, message in one.said()] == ["reconfigure"] * nodes + ["resume"] * nodes
    return one


def test_a_sum_that_some_have_goes_from_neighbour_to_neighbour() -> None:
    one = started(5)
    one.membership.leave(2)
    assert one.membership.pending() == "worker 0, worker 1, worker 3, worker 4 to answer in epoch 2"
    one.said()
    for number, summed in ((0, 1), (1, 0), (3, 0), (4, 1)):
        one.stand(number, summed)
    assert one.said() == [(0, {"do": "roll", "epoch": 2, "nodes": 2})]
    one.membership.on_rolled(1, 1)  # of another epoch
    one.membership.on_rolled(1, 2)
    assert one.membership.pending() == "worker 3 to be given the sum of a step by a neighbour"
    one.membership.on_rolled(3, 2)
    assert one.said() == [(number, {"do": "resume", "epoch": 2, "open": 2}) for number in (0, 1, 3, 4)]
    assert one.membership.at_work
    assert one.membership.pending() == ""


def test_a_step_that_nobody_has_is_opened_again() -> None:
    one = started(3)
    one.membership.leave(0)
    one.said()
    one.stand(1, 0)
    one.stand(2, 0)
    assert one.said() == [(number, {"do": "resume", "epoch": 2, "open": 1}) for number in (1, 2)]


def test_a_step_counts_once_every_live_node_has_applied_it() -> None:
    one = started(3)
    for number in (0, 1):
        one.membership.on_applied(number, 1, {0: "a", 1: "b", 2: "c"})
    assert one.applied == []
    one.membership.leave(2)  # with it goes the only one that had not applied it
    for number in (0, 1):
        one.stand(number, 1)
    assert one.applied == [(1, {0: "a", 1: "b", 2: "c"})]
    one.membership.on_applied(2, 2, {})  # nobody any more
    one.membership.on_applied(0, 2, {0: "d", 1: "e"})
    one.membership.on_applied(1, 2, {0: "d", 1: "e"})
    assert one.applied[1:] == [(2, {0: "d", 1: "e"})]


def test_what_one_node_alone_had_applied_is_not_told_once_it_is_gone() -> None:
    one = started(2)
    one.membership.on_applied(0, 1, {0: "a", 1: "b"})
    one.membership.leave(0)
    one.stand(1, 0)
    one.membership.on_applied(1, 1, {1: "c"})
    assert one.applied == [(1, {1: "c"})]


def test_a_node_that_comes_under_the_number_of_a_lost_one_has_applied_nothing() -> None:
    one = started(2)
    one.membership.on_applied(0, 1, {0: "a", 1: "b"})
    one.membership.leave(0)
    one.stand(1, 0)
    one.membership.join(0)
    one.membership.again()
    one.stand(0, 0, whole=False)
    one.stand(1, 0)
    one.membership.on_applied(0, 0, {})  # what it says as it joins
    one.membership.on_joined(0, 3)
    one.membership.on_applied(1, 1, {0: "c", 1: "d"})
    assert one.applied == []
    one.membership.on_applied(0, 1, {0: "c", 1: "d"})
    assert one.applied == [(1, {0: "c", 1: "d"})]


def test_a_sum_passes_through_nodes_that_join() -> None:
    one = started(3)
    one.membership.join(3)
    one.membership.again()
    one.said()
    for number, summed in ((0, 0), (1, 1), (2, 1)):
        one.stand(number, summed)
    one.stand(3, 0, whole=False)
    assert one.said() == [(2, {"do": "roll", "epoch": 2, "nodes": 2})]
    one.membership.on_rolled(0, 2)
    one.membership.on_rolled(3, 2)
    assert one.said() == [(2, {"do": "transfer", "epoch": 2, "nodes": 1})]
    assert one.membership.pending() == "worker 3 to be given the state by a neighbour"
    one.membership.on_joined(3, 2)
    assert {message["do"] for _, message in one.said()} == {"resume"}


def test_a_state_that_nobody_has_is_lost() -> None:
    one = started(1)
    one.membership.join(1)
    one.membership.on_applied(0, 1, {0: "a"})  # the end of a step: node 1 is taken in
    one.membership.leave(0)
    one.stand(1, 0, whole=False)
    assert one.lost == ["nobody is left who has the state: nodes [1] were still to be given it"]
    assert not one.membership.at_work


def test_nodes_more_than_one_step_apart_are_no_ring() -> None:
    one = started(3)
    one.membership.again()
    for number, summed in ((0, 3), (1, 1), (2, 3)):
        one.stand(number, summed)
    assert one.lost == ["nodes stand at steps {0: 3, 1: 1, 2: 3}: more than one apart"]


def test_followers_of_those_that_have_something() -> None:
    assert followers((0, 1, 2, 3), {2}) == {1: 1}
    assert followers((0, 1, 2, 3), {0, 3}) == {2: 2}
    assert followers((0, 2, 5), {0, 2}) == {5: 2}
    assert followers((0, 1, 2, 3), {0, 2}) == {1: 1, 3: 1}
    assert followers((0, 1), set()) == {}
    assert followers((4,), set()) == {}
