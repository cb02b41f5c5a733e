"""Nodes of the summation tree give the bits of the single process, in whatever order and however often they arrive."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from distributed.arithmetic import FlatParameters, PairwiseSum
from distributed.slot_tree import Node, TreeSum, cover, halves, shares


class Pool:
    """Buffers handed out and given back."""

    def __init__(self, size: int):
        self.size, self.out = size, 0

    def allocate(self) -> torch.Tensor:
        self.out += 1
        return torch.empty(self.size)

    def release(self, buffer: torch.Tensor) -> None:
        self.out -= 1


def leaves_of(total: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, generator=generator) * 10.0 ** (number % 5) for number in range(total)]


def reference(leaves: list[torch.Tensor]) -> torch.Tensor:
    flat = FlatParameters(torch.nn.Linear(8, 6, bias=True))
    tree = PairwiseSum(flat)
    for leaf in leaves:
        tree.add(leaf.clone())
    return tree.result()


def node_value(node: Node, leaves: list[torch.Tensor]) -> torch.Tensor:
    if node[1] - node[0] == 1:
        return leaves[node[0]]
    left, right = halves(node)
    return node_value(left, leaves) + node_value(right, leaves)


@pytest.mark.parametrize("total", range(1, 20))
def test_nodes_in_any_order_are_the_sum_of_the_single_process(total: int) -> None:
    leaves, pick = leaves_of(total), random.Random(total)
    wanted = reference(leaves)
    for parts in range(1, min(total, 6) + 1):
        nodes = [node for share in shares(total, parts) for node in cover(share, total)]
        for eager, give in itertools.product((True, False), repeat=2):
            pool = Pool(64)
            tree = TreeSum(total, pool.allocate, pool.release, eager)
            for node in pick.sample(nodes, len(nodes)):
                assert not tree.complete
                buffer = pool.allocate().copy_(node_value(node, leaves)) if give else node_value(node, leaves)
                assert tree.add(node, buffer, give)
            assert tree.complete
            result = tree.result()
            assert torch.equal(result, wanted)
            pool.release(result)
            assert pool.out == 0


def test_what_is_handed_in_is_never_changed() -> None:
    leaves = leaves_of(6)
    before = [leaf.clone() for leaf in leaves]
    pool = Pool(64)
    tree = TreeSum(6, pool.allocate, pool.release)
    for number, leaf in enumerate(leaves):
        tree.add((number, number + 1), leaf)
    tree.result().mul_(0.5)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))
    alone = TreeSum(1, pool.allocate, pool.release)
    alone.add((0, 1), leaves[0])
    alone.result().mul_(0.5)
    assert torch.equal(leaves[0], before[0])


@pytest.mark.parametrize("seed", range(30))
def test_nodes_that_come_twice_or_overlap_change_nothing(seed: int) -> None:
    pick = random.Random(seed)
    total = pick.randint(2, 12)
    leaves, pool = leaves_of(total, seed), Pool(64)
    every = [
        (start, stop)
        for start, stop in itertools.combinations(range(total + 1), 2)
        if cover(range(start, stop), total) == [(start, stop)]
    ]
    tree = TreeSum(total, pool.allocate, pool.release)
    held: frozenset[int] = frozenset()
    for node in [pick.choice(every) for _ in range(3 * len(every))] + [(leaf, leaf + 1) for leaf in range(total)]:
        new = tree.add(node, node_value(node, leaves))
        assert new == (not set(range(*node)) <= held)
        held |= frozenset(range(*node))
        assert tree.leaves == held
    assert torch.equal(tree.result(), reference(leaves))
    assert pool.out == 1


def test_leaves_can_be_left_out() -> None:
    leaves, pool = leaves_of(5), Pool(64)
    tree = TreeSum(5, pool.allocate, pool.release, eager=False)
    for number in (0, 1, 3, 4):
        tree.add((number, number + 1), leaves[number])
    assert torch.equal(tree.partial([0, 3, 4]), (leaves[0] + leaves[3]) + leaves[4])
    assert torch.equal(tree.partial([1]), leaves[1])
    assert torch.equal(tree.partial([0, 1, 3, 4]), ((leaves[0] + leaves[1]) + leaves[3]) + leaves[4])
    assert pool.out == 3  # the three sums, which are ours


def test_a_leaf_that_is_missing_or_inseparable_is_refused() -> None:
    leaves, pool = leaves_of(4), Pool(64)
    tree = TreeSum(4, pool.allocate, pool.release)
    tree.add((0, 2), leaves[0])
    with pytest.raises(ValueError, match="leaf 2 is not there"):
        tree.result()
    with pytest.raises(ValueError, match="cannot be had"):
        tree.partial([0])


def test_covers_and_shares() -> None:
    assert cover(range(3, 8), 8) == [(3, 4), (4, 8)]
    assert cover([0, 1, 2, 5], 6) == [(0, 2), (2, 3), (5, 6)]
    assert cover(range(4, 7), 7) == [(4, 7)]
    assert cover([], 3) == []
    assert [list(share) for share in shares(5, 2)] == [[0, 1], [2, 3, 4]]
    with pytest.raises(ValueError, match="not all among"):
        cover([3], 3)
