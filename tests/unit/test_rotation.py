"""Nodes among which parameters rotate: the bits of the rule, whatever the timing and whoever dies; bytes; memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from rotation_rule import by_the_rule
from simulated_ring import at_moves
from simulated_rotation import SHARED, TOY, RotationNetwork

from distributed.parameter_server.messages import worker
from distributed.ring_rotate.formulas import bytes_sent, resident_bytes
from distributed.ring_rotate.messages import Kind
from distributed.ring_rotate.shard import scatter
from distributed.single import SingleStrategy, _Totals

STEPS = 3
LOST, COPY = "of the parameters is lost", "which had its second copy"


def finish(network: RotationNetwork, before_move: Callable[[], None] = lambda: None) -> None:
    network.run(lambda: bool(network.state_lost) or network.is_at_rest(STEPS), before_move)


@cache
def undisturbed(seats: int, spec: str = "toy") -> list[torch.Tensor]:
    """Parameters and moments after so many steps."""
    network = RotationNetwork(seats, 1, STEPS, SHARED if spec == "shared" else TOY)
    finish(network)
    return network.buffers()


def assert_as_undisturbed(network: RotationNetwork) -> None:
    assert not network.state_lost
    assert all(map(torch.equal, network.buffers(), undisturbed(network.seats)))
    for node in network.members():  # second copies have the bits of what they are copies of
        for seat, shard in node.shards.items():
            owner = network.nodes[network.membership.seating.owners[seat]]
            assert all(map(torch.equal, shard.buffers, owner.shards[seat].buffers))
            assert shard.updates == STEPS


@pytest.mark.parametrize("seats", [1, 2, 3])
@pytest.mark.parametrize("spec", ["toy", "shared"])
def test_nodes_have_the_bits_of_the_rule(spec: str, seats: int) -> None:
    """With clipping as a whole and by parameter, an empty slot, and parameters that lie on several shards."""
    wanted = by_the_rule(SHARED if spec == "shared" else TOY, [seats] * STEPS).buffers
    found = undisturbed(seats, spec)
    if spec == "toy":
        assert all(map(torch.equal, found, wanted))
    else:  # what the first and the last group add to a gradient is added as they come
        assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_bits_do_not_depend_on_timing(seed: int) -> None:
    network = RotationNetwork(2 + seed % 2, 100 + seed, STEPS)
    finish(network)
    assert_as_undisturbed(network)


@pytest.mark.parametrize("seats", [2, 3])
def test_it_is_one_process_but_for_rounding(seats: int) -> None:
    network = RotationNetwork(seats, 3, STEPS, probe=2)
    finish(network)
    single = SingleStrategy({})
    single.start(TOY)
    wanted = [single.step(step, probe=step == 2) for step in range(1, STEPS + 1)]
    for one in wanted:
        (told, *_) = network.applied[one.index]
        assert told["about"]["norm"] == pytest.approx(one.gradient_norm, rel=1e-6)
        losses = [
            loss for share in told["facts"].values() for leaf in share["leaves"].values() for loss in leaf["losses"]
        ]
        assert math.fsum(losses) / one.target_tokens == pytest.approx(one.loss, rel=1e-5)
    probe, facts = wanted[1].probe, network.applied[2][0]["facts"]
    assert probe is not None
    for name, length in probe.gradients.items():
        sums = [share["probed"][name] for share in facts.values() if name in share["probed"]]
        assert math.sqrt(math.fsum(sums)) == pytest.approx(length, rel=1e-5)
    assert not any(share["probed"] for share in network.applied[1][0]["facts"].values())


@pytest.mark.parametrize("seats", [2, 3])
@pytest.mark.parametrize("spec", ["toy", "shared"])
def test_gradients_agree_with_one_process_to_a_millionth_of_their_norm(spec: str, seats: int) -> None:
    workload = SHARED if spec == "shared" else TOY
    network = RotationNetwork(seats, 3, 1, workload)
    network.run(lambda: network.is_at_rest(1))
    single = SingleStrategy({})
    single.start(workload)
    wanted = single._gradient(1, single.workload.slot_tokens(1), _Totals(), False)
    found = torch.zeros_like(wanted)
    for number, node in network.nodes.items():
        scatter(network.plan, number, node.gradients.of(number), found)
    assert float((found - wanted).norm()) <= 1e-6 * float(wanted.norm())


@pytest.mark.parametrize(("seats", "shadows"), [(2, True), (3, True), (3, False)])
@pytest.mark.parametrize("spec", ["toy", "shared"])
def test_bytes_sent_and_bytes_held_are_those_of_the_formulas(spec: str, seats: int, shadows: bool) -> None:
    network = RotationNetwork(seats, 5, STEPS, SHARED if spec == "shared" else TOY, shadows=shadows)
    finish(network)
    for number in range(seats):
        for step in range(1, STEPS + 1):
            kinds = (Kind.GATHER, Kind.REDUCE, Kind.COPY)
            sent = sum(network.sent.get((number, step, kind), 0) for kind in kinds)
            assert sent == bytes_sent(network.plan, number, shadows)
            if not shadows:
                assert (number, step, Kind.COPY) not in network.sent
        most = resident_bytes(network.plan, moments=2, shadows=shadows)
        assert 0.8 * most < network.steps[number].most_bytes <= most
        assert not any(memory.bytes for memory in network.nodes[number]._memories)


# ----------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("seats", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_a_node_may_die_at_any_message(seats: int, seed: int) -> None:
    network = RotationNetwork(seats, seed, STEPS)
    victim, network.late = network.pick.randrange(seats), network.pick.randrange(-1, seats)
    finish(network, at_moves({network.pick.randrange(1, 200): lambda: network.kill(worker(victim))}))
    assert_as_undisturbed(network)


@pytest.mark.parametrize("seed", range(12))
def test_nodes_that_come_take_seats_whoever_dies_meanwhile(seed: int) -> None:
    network = RotationNetwork(3, seed, STEPS)
    pick = random.Random(seed)
    dies, comes = pick.randrange(1, 150), pick.randrange(1, 200)
    events: dict[int, Callable[[], None]] = {
        dies: lambda: network.kill(worker(seed % 3)),
        dies + comes: lambda: network.join(3),
        dies + comes + pick.randrange(1, 60): lambda: network.join(4),
    }
    if seed % 2:
        events[dies + comes + pick.randrange(61, 120)] = lambda: network.kill(worker(3))
    finish(network, at_moves(events))
    assert_as_undisturbed(network)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_who_is_given_a_shard_before_it_hears_of_the_newest_step_applies_that_step_all_the_same(late: int) -> None:
    network = RotationNetwork(3, late, STEPS)
    network.late = late
    network.run(lambda: network.nodes[(late + 2) % 3].applied == 1)
    assert network.nodes[late].applied == 0
    network.kill(worker((late + 1) % 3))  # its shard goes to the node before the late one, and from there to that
    finish(network)
    assert_as_undisturbed(network)


def test_who_comes_takes_half_of_the_seats_of_who_has_most() -> None:
    network = RotationNetwork(3, 4, STEPS)
    network.run(lambda: len(network.applied) == 1)
    network.kill(worker(1))
    network.run(lambda: network.membership.at_work and not network.unreported)
    assert network.membership.seating.owners == (0, 2, 2)
    network.join(5)
    assert network.membership.seating.owners == (0, 2, 2)  # a step is under way
    finish(network)
    assert network.membership.seating.owners == (0, 2, 5)
    assert network.membership.ring.order == (0, 2, 5)
    assert_as_undisturbed(network)


@pytest.mark.parametrize(("dead", "shadows", "sentence"), [
    ((1,), False, "shard 1 of 3 of the parameters is lost: worker 1 is gone"),
    ((1, 2), True, f"shard 1 of 3 {LOST}: worker 1 and worker 2, {COPY}, are gone"),
    ((2, 0), True, f"shard 2 of 3 {LOST}: worker 2 and worker 0, {COPY}, are gone"),
    ((0, 1, 2), True, "all nodes are gone, and the parameters with them"),
])  # fmt: skip
def test_what_is_lost_with_both_copies_is_said_in_a_sentence(
    dead: tuple[int, ...], shadows: bool, sentence: str
) -> None:
    network = RotationNetwork(3, 6, STEPS, shadows=shadows)
    network.run(lambda: len(network.applied) == 1)
    for number in dead:
        network.kill(worker(number))
    finish(network)
    assert network.state_lost == sentence


@pytest.mark.parametrize("seed", range(12))
def test_two_nodes_that_die_close_behind_each_other_cost_no_step_or_are_told(seed: int) -> None:
    network = RotationNetwork(3, seed, STEPS)
    pick = random.Random(seed)
    first = pick.randrange(1, 150)
    victims = pick.sample(range(3), 2)
    moves = [first, first + pick.randrange(1, 60)]
    finish(
        network,
        at_moves({move: lambda one=one: network.kill(worker(one)) for move, one in zip(moves, victims, strict=True)}),
    )
    if network.state_lost:
        owner, copy = victims if (victims[0] + 1) % 3 == victims[1] else victims[::-1]
        assert f"worker {owner} and worker {copy}, which had its second copy" in network.state_lost
    else:
        assert_as_undisturbed(network)
