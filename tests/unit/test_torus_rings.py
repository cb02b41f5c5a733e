"""Several rings compute what one process computes, to the bit, whatever comes when in them and across."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from simulated_stage_ring import StageRing, ToyWorkload, single
from test_stage_ring import assert_same

from distributed.errors import FrameError
from distributed.ring_tmp.mailbox import Mailbox
from distributed.ring_tmp.messages import Kind, Message, Outbox
from distributed.ring_tmp.parts import Gradients
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState
from distributed.ring_torus.node import TorusNode
from distributed.strategy import BatchPlan

STEPS = 4


class Torus:
    """Simulated rings, between whose nodes of equal stages messages come in every order that links allow."""

    def __init__(self, workload: ToyWorkload, owners: Sequence[int], rings: int, seed: int, through: int = STEPS):
        self.pick = random.Random(seed)
        self.queues: dict[tuple[int, int], deque[Message]] = {}  # across, by sender and receiver
        nodes = max(owners) + 1
        self.rings = []
        for ring in range(rings):
            own = [ring * nodes + owner for owner in owners]
            built: Any = self._builder(nodes, rings)
            self.rings.append(StageRing(workload, own, seed + ring, through, shadows=False, node=built))
        self.nodes: dict[int, Any] = {number: node for ring in self.rings for number, node in ring.nodes.items()}

    def _builder(self, nodes: int, rings: int) -> Callable[..., TorusNode]:
        def build(
            number: int,
            setup: Setup,
            outbox: Outbox,
            states: Mapping[int, PartState],
            placement: Placement,
            gradients: Gradients,
        ) -> TorusNode:
            column = [ring * nodes + number % nodes for ring in range(rings)]

            def across(to: int, message: Message) -> None:
                assert to in (column[column.index(number) - 1], column[(column.index(number) + 1) % rings])
                self.queues.setdefault((number, to), deque()).append(message)

            return TorusNode(number, setup, outbox, states, placement, gradients, Mailbox(), column, across)

        return build

    def run(self) -> None:
        """Until all nodes have applied the last step. Raises AssertionError where nothing moves before."""
        while not all(ring.is_at_rest() for ring in self.rings):
            moves: list[tuple[Callable[[Any], None], Any]] = [
                (self._cross, key) for key, one in self.queues.items() if one
            ]
            for ring in self.rings:
                for link in ring._links():
                    moves += [(ring._deliver, (link, to)) for to in link.ends if link.towards[to]]
                moves += [(ring._turn, number) for number in sorted(ring.live) if ring._has_work(number)]
            if not moves:
                raise AssertionError(f"nothing moves: {[ring.where() for ring in self.rings]}")
            move, what = self.pick.choice(moves)
            move(what)

    def _cross(self, key: tuple[int, int]) -> None:
        self.nodes[key[1]].receive_across(key[0], self.queues[key].popleft())


@pytest.mark.parametrize(("owners", "rings", "plan"), [
    ([0] * 6, 2, BatchPlan(6, 3)),
    ([0, 0, 1, 1, 2, 2], 3, BatchPlan(6, 3)),
    ([0, 1, 0, 1, 0, 1], 2, BatchPlan(8, 4)),
    ([0, 0, 0, 1, 1, 1], 4, BatchPlan(7, 7)),
    ([0, 0, 0, 1, 1, 1], 2, BatchPlan(2, 2)),  # of every second step the second ring has nothing to compute
])  # fmt: skip
def test_parameters_norms_and_losses_are_those_of_one_process(owners: list[int], rings: int, plan: BatchPlan) -> None:
    workload = ToyWorkload(plan=plan)
    wanted, stats = single(workload, STEPS)
    for seed in range(3):
        torus = Torus(workload, owners, rings, seed)
        torus.run()
        for ring in torus.rings:
            assert_same(ring.state(), wanted)
            for one in stats:
                for said in ring.applied[one.index].values():
                    assert (said.norm, said.loss) == (one.gradient_norm, one.loss)
                    assert (said.target_tokens, said.source_tokens) == (one.target_tokens, one.source_tokens)
                    assert one.probe is not None
                    assert said.inner == one.probe.inner
        assert not any(torus.queues.values())


def test_nobody_applies_a_step_before_every_sum_is_whole_everywhere() -> None:
    """One node across hears nothing: its ring cannot go on, and neither can any other."""
    torus = Torus(ToyWorkload(plan=BatchPlan(6, 3)), [0, 0, 0, 1, 1, 1], 3, 0)
    cross = torus._cross
    kept: list[tuple[int, int]] = []

    def but_one(key: tuple[int, int]) -> None:
        if key[1] == 3 and torus.queues[key][0].kind == Kind.ACROSS_GATHER:
            kept.append(key)
            torus.queues[key].clear()
        else:
            cross(key)

    torus._cross = but_one  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="nothing moves"):
        torus.run()
    assert kept
    assert {node.applied for node in torus.nodes.values()} == {0}


def test_who_is_behind_can_follow_since_all_sums_are_whole() -> None:
    """The second ring does not hear the first one's words, which the first ring does not need."""
    workload = ToyWorkload(plan=BatchPlan(6, 3))
    wanted, _ = single(workload, 1)
    torus = Torus(workload, [0, 0, 0, 1, 1, 1], 2, 0, through=1)
    cross = torus._cross

    def but_words(key: tuple[int, int]) -> None:
        if key[0] < 2 and torus.queues[key][0].kind == Kind.ACROSS_WORD:
            torus.queues[key].popleft()
        else:
            cross(key)

    torus._cross = but_words  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="nothing moves"):
        torus.run()
    assert [torus.nodes[number].applied for number in range(4)] == [1, 1, 0, 0]
    for node in torus.nodes.values():
        node.fenced()
        node.follow(torus.nodes[0].decision)
    assert_same(torus.rings[1].state(), wanted)
    fresh = Torus(workload, [0, 0, 0, 1, 1, 1], 2, 0)
    with pytest.raises(RuntimeError, match="step 1 was applied elsewhere, and is not whole here"):
        fresh.nodes[0].follow(torus.nodes[0].decision)


def test_behind_a_step_that_is_not_finite_no_ring_begins_another() -> None:
    workload = ToyWorkload(plan=BatchPlan(2, 2), bad_step=2)
    wanted, _ = single(workload, STEPS)
    torus = Torus(workload, [0, 0, 0, 1, 1, 1], 2, 1)
    with pytest.raises(AssertionError, match="nothing moves"):
        torus.run()
    assert {node.applied for node in torus.nodes.values()} == {2}
    for node in torus.nodes.values():
        node.allow(STEPS)
    torus.run()
    assert_same(torus.rings[1].state(), wanted)


def test_who_is_no_holder_of_the_same_stages_is_not_listened_to() -> None:
    torus = Torus(ToyWorkload(), [0, 0, 0, 1, 1, 1], 2, 1)
    node = torus.nodes[0]
    word = Message(Kind.ACROSS_WORD, node.placement.ring.epoch, 1, (1, 0), {})
    with pytest.raises(FrameError, match="node 3 does not hold the same stages"):
        node.receive_across(3, word)
    with pytest.raises(FrameError, match="comes to a node that has applied 0"):
        node.receive_across(2, word._replace(step=3))
    node.receive_across(2, word._replace(epoch=7, step=3))  # of rings that are over
