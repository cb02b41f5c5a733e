"""Ring all-reduce over simulated links: the promised bits and bytes, whatever the order of messages."""

from __future__ import annotations

import pytest
import torch
from simulated_ring import (
    BUCKETS,
    LEAVES,
    PART_BYTES,
    RingNetwork,
    first_values,
    gradient_of,
    reference,
    ring_sum,
)

from distributed.arithmetic import norm, square_sums
from distributed.links.frames import Frame
from distributed.links.link import DISCARD
from distributed.ring.all_reduce import RingAllReduce
from distributed.ring.messages import Kind, Ring
from distributed.ring.segments import RingCut

STEPS = 6


def finish(network: RingNetwork) -> None:
    network.run(lambda: network.is_at_rest(STEPS))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_all_nodes_have_the_bits_of_the_promised_order(nodes: int, seed: int) -> None:
    network = RingNetwork(nodes, seed, STEPS)
    finish(network)
    wanted = reference([nodes] * STEPS)
    for state in network.states.values():
        assert all(map(torch.equal, state.buffers, wanted))
    for finals in network.finals.values():  # each bucket once a step
        assert sorted(finals) == [(step, bucket) for step in range(1, STEPS + 1) for bucket in range(len(BUCKETS))]
    assert network.most_in_use <= 2
    assert network.ring_sizes() == [nodes] * STEPS
    for number in range(nodes):  # at rest nothing is held but what may be handed on
        node = network.nodes[number]
        assert node.gradient is not None
        assert node.pool._own.keys() == {one.data_ptr() for some in node.pool._spare.values() for one in some}


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_a_node_sends_what_the_formula_says(nodes: int) -> None:
    network = RingNetwork(nodes, 1, STEPS)
    finish(network)
    cut = RingCut(BUCKETS, nodes, PART_BYTES)
    for position in range(nodes):
        for step in range(1, STEPS + 1):
            sent = sum(network.sent.get((position, 1, step, kind), 0) for kind in (Kind.REDUCE, Kind.GATHER))
            assert sent == cut.bytes_sent(position)
    assert not [key for key in network.sent if key[3] not in (Kind.REDUCE, Kind.GATHER)]


def test_another_number_of_nodes_differs_by_rounding_alone() -> None:
    whole = gradient_of(first_values(), 1, range(LEAVES))
    for nodes in (2, 3, 4, 5):
        gradients = [gradient_of(first_values(), 1, range(LEAVES)[one::nodes]) for one in range(nodes)]
        error = norm(square_sums(ring_sum(gradients) - whole))
        assert error <= 1e-6 * norm(square_sums(whole))


class Hasty(RingAllReduce):
    """Gives a gradient back as soon as its own sum is whole."""

    def install(self, step: int, gradient: torch.Tensor | None, facts: object) -> None:
        super().install(step, gradient, facts)  # type: ignore[arg-type]
        if gradient is not None:
            self.gradient = gradient.clone()  # for its own update
            gradient.fill_(float("nan"))


def test_a_gradient_that_is_given_back_too_early_shows() -> None:
    """That the simulation finds what the order of releases is there to prevent."""
    with pytest.raises(AssertionError, match="given back"):
        for seed in range(20):
            finish(RingNetwork(3, seed, STEPS, sums=Hasty))


class Outbox:
    def __init__(self) -> None:
        self.frames: list[tuple[Kind, int, torch.Tensor | bytes]] = []

    def send(self, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        assert (frame.epoch, frame.step) == (1, 1)
        self.frames.append((Kind(frame.kind), frame.tags[0], payload))

    def tell(self, message: dict[str, object]) -> None: ...


def one_of_two() -> tuple[RingAllReduce, Outbox, list[torch.Tensor], list[tuple[int, int]]]:
    """Position 0 of two, with two buckets of two lines each, so parts 0 to 3: (bucket 0: 0, 1) and (bucket 1: 2, 3)."""
    outbox = Outbox()
    released: list[torch.Tensor] = []
    final: list[tuple[int, int]] = []
    sums = RingAllReduce(7, [(32, 64), (0, 32)], outbox, released.append, lambda *what: final.append(what))
    sums.enter(Ring(1, (7, 9)))
    return sums, outbox, released, final


def test_buckets_are_begun_in_the_order_of_their_numbers_and_parts_go_on_at_once() -> None:
    sums, outbox, released, final = one_of_two()
    gradient = torch.arange(64.0)
    sums.receive(Frame(Kind.REDUCE, 1, (1, 0, 0), 1), torch.full((16,), 100.0))  # early: nothing is ready
    sums.ready(1, 1, 1, gradient)
    assert outbox.frames == []
    sums.ready(1, 1, 0, gradient)
    assert [(kind, part) for kind, part, _ in outbox.frames] == [(Kind.REDUCE, 0), (Kind.GATHER, 1), (Kind.REDUCE, 2)]
    assert torch.equal(gradient[48:64], torch.arange(148.0, 164.0))
    assert outbox.frames[1][2].data_ptr() == gradient[48:].data_ptr()  # type: ignore[union-attr]
    assert final == []
    sums.receive(Frame(Kind.GATHER, 1, (0, 0, 0), 1), torch.full((16,), 5.0))
    assert final == [(1, 0)]
    assert sums.contribute(1, 1, gradient, b"mine")
    sums.receive(Frame(Kind.FACTS, 1, (9, 0, 0), 1), b"yours")
    sums.receive(Frame(Kind.GATHER, 1, (2, 0, 0), 1), torch.full((16,), 6.0))
    sums.receive(Frame(Kind.REDUCE, 1, (3, 0, 0), 1), torch.full((16,), 7.0))
    assert final == [(1, 0), (1, 1)]
    assert [(kind, tag) for kind, tag, _ in outbox.frames[3:]] == [(Kind.FACTS, 7), (Kind.GATHER, 3)]
    assert sums.summed == 1
    assert sums.gradient is gradient
    assert sums.facts == {7: b"mine", 9: b"yours"}
    assert released == []


def test_what_belongs_to_another_epoch_or_step_changes_nothing() -> None:
    sums, outbox, released, _ = one_of_two()
    gradient = torch.zeros(64)
    for frame in (Frame(Kind.REDUCE, 1, (1, 0, 0), 0), Frame(Kind.REDUCE, 2, (1, 0, 0), 1), Frame(Kind.GATHER, 0)):
        assert sums.place(frame) is DISCARD
        sums.receive(frame, torch.ones(16))
    assert not sums.wants(1, 2)
    sums.ready(1, 2, 0, gradient)
    sums.ready(0, 1, 0, gradient)
    assert not sums.contribute(0, 1, gradient, b"")
    assert outbox.frames == []
    assert torch.equal(gradient, torch.zeros(64))
    sums.ready(1, 1, 0, gradient)
    sums.ready(1, 1, 1, gradient)
    assert sums.contribute(1, 1, gradient, b"")
    assert not sums.wants(1, 1)
    sums.enter(Ring(2, (7, 9)))
    assert released[0] is gradient  # forgotten: it was given over
    assert sums.wants(2, 1)
