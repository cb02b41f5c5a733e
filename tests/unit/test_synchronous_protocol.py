"""BSP over simulated links: the bits of the single process, whatever the order of messages and whoever dies when."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from simulated_network import Network, Toy, setup_of, single_process

from distributed.arithmetic import CHUNK, FlatParameters, norm, parameter_norms
from distributed.parameter_server.messages import server, worker
from distributed.parameter_server.setup import Wire
from distributed.parameter_server.synchronous_worker import Grant
from distributed.strategy import OptimizerSpec

ELEMENTS = 3 * CHUNK + 64  # four chunks: every server of three has one, and they have several buckets
STEPS = 5
ADAM = OptimizerSpec("distributed.optimizers:Adam", {"epsilon": 1e-8}, max_norm=40.0)
WIRES = [Wire(), Wire(sparse=True), Wire("bf16"), Wire("bf16", sparse=True)]
CLIPPING = OptimizerSpec(
    "distributed.optimizers:Adam", {"epsilon": 1e-8}, max_norm=900.0, parameter_max_norms={"second": 0.5}
)


def build(workers: int, servers: int, seed: int, *, leaves: int = 5, shadows: bool = False, **changes: Any) -> Network:
    changes.setdefault("optimizer", ADAM)
    setup = setup_of(ELEMENTS, shards=servers, bucket_bytes=8 * CHUNK, leaves=leaves, workers=workers, **changes)
    network = Network(setup, ELEMENTS, workers, servers, shadows=shadows, seed=seed)
    network.allow(STEPS)
    return network


def finish(network: Network, before_move: Any = lambda: None) -> None:
    network.run(lambda: len(network.applied) == STEPS and network.is_at_rest(STEPS), before_move)


def assert_as_single(network: Network) -> None:
    values, moments, norms = single_process(network.setup, ELEMENTS, STEPS)
    assert [network.applied[step]["norm"] for step in range(1, STEPS + 1)] == norms
    assert torch.equal(network.values(), values)
    for slot, buffer in moments.items():
        assert torch.equal(network.moments(slot), buffer)
    for shard, one in enumerate(network.membership.table.shadow):
        if one is not None:
            primary = network.servers[network.membership.table.primary[shard]].shards[shard]
            assert all(map(torch.equal, network.servers[one].shards[shard].buffers, primary.buffers))


@pytest.mark.parametrize("optimizer", [ADAM, CLIPPING], ids=["clipped", "parameters clipped"])
@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_number_of_workers_and_servers_has_the_bits_of_one_process(
    workers: int, servers: int, optimizer: OptimizerSpec
) -> None:
    network = build(workers, servers, seed=workers * 10 + servers, optimizer=optimizer)
    finish(network)
    assert_as_single(network)


@pytest.mark.parametrize("wire", WIRES[1:], ids=str)
@pytest.mark.parametrize(("workers", "servers"), [(1, 2), (3, 2)])
def test_a_rounded_wire_has_the_bits_of_its_number_of_workers_and_any_other_those_of_one_process(
    workers: int, servers: int, wire: Wire
) -> None:
    network = build(workers, servers, seed=workers, wire=wire)
    finish(network)
    assert_as_single(network)
    for one in network.workers.values():
        sent = one.wire.sent
        size = {"fp32": 4, "bf16": 2}[wire.type]
        assert sent.bytes == sent.head_bytes + size * sent.elements + sent.place_bytes
        assert (sent.rows > 0) == (wire.sparse and workers == 3)  # one worker alone touches every row
        assert sent.fp32_bytes / sent.bytes > (1.15 if sent.rows else 1) * (1 - 1e-3) * 4 / size


def test_who_computes_a_rounded_sum_is_of_no_concern() -> None:
    """A step of three workers, computed by two, by four and by one."""
    setup = build(3, 1, seed=0, wire=Wire("bf16"), leaves=8).setup
    assert setup.units == ((0, 2), (2, 4), (4, 5), (5, 6), (6, 8))
    assert setup.owners(3) == [range(0, 2), range(2, 5), range(5, 8)]
    assert setup.owners(2) == [range(0, 4), range(4, 8)]
    assert setup.owners(4) == [range(0, 2), range(2, 4), range(4, 5), range(5, 8)]
    assert setup.owners(6)[0] == range(0)
    assert setup.nodes(range(8)) == list(setup.units)
    exact = build(3, 1, seed=0, leaves=8).setup
    assert exact.owners(8) == [range(leaf, leaf + 1) for leaf in range(8)]
    assert exact.nodes(range(8)) == [(0, 8)]


@pytest.mark.parametrize("seed", range(12))
def test_a_worker_may_die_at_any_message(seed: int) -> None:
    pick = random.Random(seed)
    network = build(3, 2, seed, shadows=bool(seed % 2), wire=WIRES[seed % 4])
    finish(network, network.kills([worker(pick.randrange(3))], [pick.randrange(1, 500)]))
    assert_as_single(network)


def test_what_a_dead_worker_has_said_to_some_servers_the_others_get_to_know() -> None:
    """Who was to compute its leaves again has its answers before, and says nothing: a server would wait for ever."""
    network = build(3, 3, seed=13, shadows=True)
    finish(network, network.kills([worker(1)], [188]))
    assert_as_single(network)


@pytest.mark.parametrize("seed", range(16))
def test_a_server_may_die_at_any_message_where_there_are_shadows(seed: int) -> None:
    pick = random.Random(seed)
    network = build(2, 3, seed, shadows=True, optimizer=CLIPPING if seed % 3 == 0 else ADAM, wire=WIRES[seed % 4])
    finish(network, network.kills([server(pick.randrange(3))], [pick.randrange(40, 600)]))
    assert not network.state_lost
    assert_as_single(network)


@pytest.mark.parametrize("seed", range(12))
def test_several_may_die_one_after_the_other_or_during_recovery(seed: int) -> None:
    """Two workers and a server at any moments; what may not be lost is a shard with its shadow."""
    pick = random.Random(1000 + seed)
    network = build(3, 3, seed, shadows=True, wire=WIRES[seed % 4])
    victims = [worker(0), worker(2), server(pick.randrange(3))]
    pick.shuffle(victims)
    finish(network, network.kills(victims, sorted(pick.sample(range(40, 400), 3))))
    assert not network.state_lost
    assert_as_single(network)


@pytest.mark.parametrize("seed", range(12))
def test_a_worker_may_join_at_any_message(seed: int) -> None:
    pick = random.Random(seed)
    network = build(2, 2, seed, shadows=bool(seed % 2), wire=WIRES[seed % 4])
    count, moves = 0, {pick.randrange(1, 300): 2, pick.randrange(1, 300): 3}

    def join() -> None:
        nonlocal count
        if count in moves:
            network.join(moves[count], STEPS)
        count += 1

    finish(network, join)
    assert_as_single(network)
    assert {number for number, step, _ in network.computed if step == STEPS} <= set(network.membership.table.workers)


def test_a_worker_that_joined_takes_its_share() -> None:
    network = build(2, 2, seed=3)
    network.allow(2)
    network.run(lambda: len(network.applied) == 2 and network.is_at_rest(2))
    network.join(2, STEPS)
    network.allow(STEPS)
    finish(network)
    assert_as_single(network)
    by_step = {step: {one for one, at, _ in network.computed if at == step} for step in range(1, STEPS + 1)}
    assert by_step[2] == {0, 1}
    assert by_step[STEPS] == {0, 1, 2}


def test_without_shadows_the_loss_of_a_server_is_said() -> None:
    network = build(2, 2, seed=1)
    network.run(lambda: len(network.applied) == 2)
    network.kill(server(1))
    network.run(lambda: bool(network.state_lost))
    assert network.state_lost == "shard 1 was on server 1 alone"


def test_a_shard_that_is_lost_with_its_shadow_is_said() -> None:
    network = build(2, 3, seed=1, shadows=True)
    network.run(lambda: len(network.applied) == 2)
    network.membership.leave(server(0), server(1))
    assert network.state_lost == "shard 0 was on servers 0 and 1, and both are gone"


@pytest.mark.parametrize("seed", range(16))
def test_leaves_of_a_lost_worker_can_be_dropped_the_same_on_every_server(seed: int) -> None:
    pick = random.Random(seed)
    network = build(3, 3, seed, shadows=bool(seed % 2), lost_leaves="drop", wire=WIRES[seed // 4])
    victims = [worker(1), server(2)] if seed % 4 == 3 else [worker(1)]
    finish(network, network.kills(victims, sorted(pick.sample(range(40, 500), len(victims)))))
    leaves = {step: [int(leaf) for leaf in decision["leaves"]] for step, decision in network.applied.items()}
    values, _, norms = single_process(network.setup, ELEMENTS, STEPS, leaves.__getitem__)
    assert [network.applied[step]["norm"] for step in range(1, STEPS + 1)] == norms
    assert torch.equal(network.values(), values)
    said = {(one["step"], leaf) for one in network.membership.dropped for leaf in one["leaves"]}
    assert {(step, leaf) for step, there in leaves.items() for leaf in range(5) if leaf not in there} <= said


@pytest.mark.parametrize("seed", range(12))
def test_a_step_does_not_wait_for_backup_workers(seed: int) -> None:
    pick = random.Random(seed)
    network = build(3, 2, seed, shadows=bool(seed % 2), backup=1, leaves=6)
    victims = [worker(pick.randrange(3))] if seed % 3 else []
    finish(network, network.kills(victims, pick.sample(range(1, 400), len(victims))))
    leaves = {step: [int(leaf) for leaf in decision["leaves"]] for step, decision in network.applied.items()}
    assert all(len(there) >= 2 for there in leaves.values())
    assert victims or any(len(there) == 4 for there in leaves.values())  # a third was left out at least once
    values, _, norms = single_process(network.setup, ELEMENTS, STEPS, leaves.__getitem__)
    assert [network.applied[step]["norm"] for step in range(1, STEPS + 1)] == norms
    assert torch.equal(network.values(), values)


def test_servers_say_what_they_wait_for() -> None:
    network = build(2, 2, seed=1, leaves=4)
    network.workers[1].allow(Grant())
    with pytest.raises(AssertionError, match="nothing moves"):
        finish(network)
    assert [one.missing() for one in network.servers.values()] == [
        f"gradients of groups 2, 3 for shard {shard}" for shard in (0, 1)
    ]
    network.servers[1].reconfigure(network.membership.table)
    assert network.servers[1].missing() == "the word to go on"


def test_probed_steps_tell_each_parameters_parts() -> None:
    network = build(2, 3, seed=2)
    network.allow(STEPS, probe=True)
    finish(network)
    flat = FlatParameters(Toy(ELEMENTS))
    values, _, _ = single_process(network.setup, ELEMENTS, 2)
    before, _, _ = single_process(network.setup, ELEMENTS, 1)
    wanted = parameter_norms(flat, before - values)
    parts: dict[str, list[float]] = {}
    for one in network.probed[2].values():
        for name, sums in one["updates"].items():
            parts.setdefault(name, []).extend(sums)
    assert {name: norm(sums) for name, sums in parts.items()} == wanted


def test_a_step_that_is_not_finite_is_not_applied_and_nobody_goes_on() -> None:
    network = build(2, 2, seed=4)
    network.run(lambda: len(network.applied) == 1 and network.is_at_rest(1))
    before = network.values()
    for one in network.workers.values():
        one.values.fill_(float("inf"))
    with pytest.raises(AssertionError, match="nothing moves"):
        network.run(lambda: len(network.applied) == STEPS)
    assert not network.applied[2]["finite"]
    assert torch.equal(network.values(), before)
    assert sorted(network.applied) == [1, 2]
