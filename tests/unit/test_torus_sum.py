"""Gradients summed across rings: the bits of the tree that one process adds by, and no more bytes than it takes."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.arithmetic import PairwiseSum
from distributed.errors import FrameError
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.parts import Gradients, Held, Part
from distributed.ring_tmp.scalars import StepFacts
from distributed.ring_torus.cross_sum import CrossSum
from distributed.ring_torus.routes import own_nodes, routes
from distributed.ring_torus.share import ShareSteps, share_tokens
from distributed.slot_tree import shares
from distributed.strategy import BatchPlan

SIZES = {0: 300, 2: 16, 5: 0}  # elements by stage: of several parts, of one holder's segment alone, of none
PART_BYTES = 4 * 64


class Column:
    """Holders whose messages come in any order that links allow; half of the payloads stay in the sender's memory."""

    def __init__(self, rings: int, groups: int, seed: int):
        self.pick, self.rings = random.Random(seed), rings
        self.queues: dict[tuple[int, int], deque[Any]] = {}
        self.sent = [0] * rings  # elements of gradients
        self.released: list[Tensor] = []
        self.holders = [
            CrossSum(position, rings, groups, SIZES, self._send_of(position), self.released.append, PART_BYTES)
            for position in range(rings)
        ]

    def _send_of(self, position: int) -> Any:
        def send(to: int, kind: Kind, step: int, tags: tuple[int, int], payload: Any) -> None:
            assert to in ((position + 1) % self.rings, (position - 1) % self.rings)
            if isinstance(payload, Tensor):
                self.sent[position] += payload.numel()
                payload = payload.clone() if self.pick.random() < 0.5 else payload
            self.queues.setdefault((position, to), deque()).append((kind, step, tags, payload))

        return send

    def run(self, steps: int, groups: list[list[dict[int, Tensor]]]) -> list[list[dict[int, Tensor]]]:
        """Steps of which `groups` says each group's gradient by stage; returns what each holder makes of each step."""
        todo = [deque((step, stage) for step in range(1, steps + 1) for stage in SIZES) for _ in self.holders]
        applied = [0] * self.rings
        made: list[list[dict[int, Tensor]]] = [[] for _ in self.holders]
        while min(applied) < steps:
            moves = [("come", link) for link, queue in self.queues.items() if queue]
            moves += [("make", one) for one in range(self.rings) if todo[one] and todo[one][0][0] == applied[one] + 1]
            what, where = self.pick.choice(moves)
            if what == "make":
                step, stage = todo[where].popleft()
                own = [self._sum(groups[step - 1], stage, range(*node)) for node in self.holders[where].nodes]
                self.holders[where].ready(step, stage, own)
            else:
                kind, step, tags, payload = self.queues[where].popleft()
                assert step <= applied[where[1]] + 2  # nobody is further ahead
                self.holders[where[1]].receive(where[0], kind, step, tags, payload)
                where = where[1]
            step = applied[where] + 1
            holder = self.holders[where]
            if not holder.is_whole(step):
                continue
            holder.say(step, StepFacts([float(where)], 1))
            facts, taken = holder.others(step), None
            if facts is not None:
                assert sorted(facts.losses) == [float(one) for one in range(self.rings) if one != where]
                taken = holder.take(step)
            if taken is not None:
                made[where].append({stage: gradient.clone() for stage, gradient in taken.items()})
                for gradient in taken.values():
                    gradient.fill_(-1e9)  # as if it were used for another step
                holder.forget(step)
                for buffer in self.released:
                    buffer.fill_(-1e9)
                applied[where] = step
        assert not any(self.queues.values())
        return made

    @staticmethod
    def _sum(groups: list[dict[int, Tensor]], stage: int, leaves: range) -> Tensor:
        tree = PairwiseSum(_Nowhere())
        for leaf in leaves:
            tree.add(groups[leaf][stage].clone())
        return tree.result()


class _Nowhere:
    def release(self, buffer: Tensor) -> None:
        """Nobody needs it."""


def gradients(steps: int, groups: int) -> list[list[dict[int, Tensor]]]:
    """Of each step, group and stage; of magnitudes whose sums are rounded in every addition."""
    made = torch.Generator().manual_seed(groups)
    return [
        [
            {stage: torch.randn(size, generator=made) * 10 ** (group % 5) for stage, size in SIZES.items()}
            for group in range(groups)
        ]
        for _ in range(steps)
    ]


@pytest.mark.parametrize(("rings", "groups"), [(2, 2), (2, 5), (3, 3), (3, 8), (4, 4), (5, 7), (6, 13)])
def test_the_sum_has_the_bits_of_one_process_whatever_comes_when(rings: int, groups: int) -> None:
    steps = 3
    given = gradients(steps, groups)
    for seed in range(4):
        made = Column(rings, groups, seed).run(steps, given)
        for step in range(steps):
            for stage in SIZES:
                expected = Column._sum(given[step], stage, range(groups))
                assert all(torch.equal(one[step][stage], expected) for one in made)


@pytest.mark.parametrize(("rings", "groups"), [(2, 2), (2, 8), (3, 3), (3, 4), (3, 12), (4, 4), (4, 16)])
def test_shares_that_are_nodes_of_the_tree_send_what_no_all_reduce_can_send_less_than(rings: int, groups: int) -> None:
    column = Column(rings, groups, 0)
    column.run(1, gradients(1, groups))
    assert sum(column.sent) == 2 * (rings - 1) * sum(SIZES.values())
    assert all(sum(map(len, route.sent)) == rings - 1 for route in routes(rings, groups))
    assert all(len(own_nodes(position, rings, groups)) == 1 for position in range(rings))


def test_other_shares_send_more_and_no_more_than_twice_and_a_quarter() -> None:
    def ratio(rings: int, groups: int) -> float:
        """What all holders send, there and round, beside the least."""
        least = rings * (rings - 1)
        return (sum(len(nodes) for route in routes(rings, groups) for nodes in route.sent) + least) / (2 * least)

    assert ratio(8, 8) == ratio(8, 64) == 8 / 7  # sums of four neighbours come from two sides, and pass one holder
    assert all(1.0 <= ratio(rings, groups) <= 2.25 for rings in range(2, 7) for groups in range(rings, 40))


def test_what_comes_twice_or_astray_is_refused() -> None:
    def holder(position: int, rings: int) -> CrossSum:
        return CrossSum(position, rings, rings, {0: 64}, lambda *message: None, lambda buffer: None, PART_BYTES)

    one, half = holder(0, 2), torch.zeros(32)
    one.receive(1, Kind.ACROSS_REDUCE, 1, (0, 0), half)
    for sender, kind, tags, payload, what in [
        (1, Kind.ACROSS_REDUCE, (0, 0), half, "twice from ring 1"),
        (1, Kind.ACROSS_REDUCE, (0, 1), half, "does not come from ring 1"),
        (1, Kind.ACROSS_REDUCE, (0, 2), half, "does not come from ring 1"),
        (1, Kind.ACROSS_REDUCE, (0, 0), half[:3], "3 elements come for 32"),
        (1, Kind.ACROSS_REDUCE, (1, 0), half, "of which nothing is held here"),
        (1, Kind.ACROSS_GATHER, (0, 1), half, "twice, or astray"),
        (1, Kind.ACROSS_WORD, (2, 0), {}, "the word of ring 2"),
        (1, Kind.ACROSS_WORD, (1, 0), {"what": 1}, "cannot be read"),
    ]:
        with pytest.raises(FrameError, match=what):
            one.receive(sender, kind, 1, tags, payload)
    with pytest.raises(FrameError, match="astray"):
        holder(0, 3).receive(1, Kind.ACROSS_WORD, 1, (1, 0), {})  # words go on in one direction


def test_a_share_of_the_groups_is_summed_by_nodes_of_the_tree() -> None:
    plan = BatchPlan(10, 5)
    part = Part("only", (Held("weight", 0, (4,)),), 4)
    tokens = share_tokens(lambda step: [step, 0, *range(3, 11)], plan, shares(5, 2)[1])
    assert tokens(7) == [0, 0, 0, 0, 5, 6, 7, 8, 9, 10]
    steps = ShareSteps(plan, Gradients([part]), own_nodes(1, 2, 5))
    for slot in (4, 6, 7, 9):  # slots 5 and 8 are empty
        steps.buffers(1, [0], slot)[0].add_(10.0**slot)
    assert [buffer[0].item() for buffer in steps.share(1, 0)] == [1e4 + 1e6 + 1e7, 1e9]
    assert [len(steps.share(2, 0)), len(own_nodes(1, 2, 5))] == [2, 2]  # zeros, where there was nothing to compute
    steps.buffers(3, [0], 4)
    with pytest.raises(ValueError, match="slot 10 is of none of the groups here"):
        steps.buffers(3, [0], 10)
    steps.forget()
