"""Which sums of gradients go which way across rings: pure functions.

A *column* are the nodes that hold the same stages, one of each ring, in the order of the rings. They are linked to a
ring of their own. Each ring computes neighbouring groups of a step's micro-batches, so each holder begins with the
nodes of the summation tree (`distributed.slot_tree`) that cover its ring's groups.

A gradient is cut into one segment for each holder, which owns it. The tree's nodes of a segment go to its owner along
the two arms of the column that end there: whoever stands on an arm adds what has come to what it has, as far as the
tree adds the two at all, and sends on what that gives. So every sum is one of the tree, and bits do not depend on how
many rings there are. From its owner a finished segment goes round the column once, in the order of the rings.

Where the arms part is chosen for each segment so that the least is sent. While every arm can add up to one node, which
holds for two rings, and for three or four whose shares are nodes of the tree, each holder sends 2 (R - 1) / R of the
gradient, which is the least there is (Patarasuk and Yuan 2009). Otherwise some parts are passed on side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from distributed.slot_tree import Node, cover, shares


@dataclass(frozen=True)
class Route:
    """How a segment comes to its owner.

    to: by position in the column, the neighbour to which it sends; None for the owner.
    sent: by position, the nodes of the tree that it sends, from left to right.
    """

    to: tuple[int | None, ...]
    sent: tuple[tuple[Node, ...], ...]

    def awaited(self, position: int) -> int:
        """How many nodes of the tree come to a position."""
        return sum(len(nodes) for to, nodes in zip(self.to, self.sent, strict=True) if to == position)


def routes(rings: int, groups: int) -> tuple[Route, ...]:
    """By segment, the route to its owner, which is the holder in the position of the segment's number."""
    return tuple(
        min(
            (_route(owner, cut, rings, groups) for cut in range(rings)),
            key=lambda route: sum(map(len, route.sent)),  # of equal ones the first
        )
        for owner in range(rings)
    )


def own_nodes(position: int, rings: int, groups: int) -> list[Node]:
    """The nodes of the tree with which a position begins."""
    return cover(shares(groups, rings)[position], groups)


def _route(owner: int, cut: int, rings: int, groups: int) -> Route:
    """The column as a line that begins at position `cut`, from whose ends everything goes to the owner."""
    line = [(cut + index) % rings for index in range(rings)]
    at = line.index(owner)
    to: list[int | None] = [None] * rings
    sent: list[tuple[Node, ...]] = [()] * rings
    for arm in (line[: at + 1], line[: at - 1 if at else None : -1]):
        _lay(arm, shares(groups, rings), groups, to, sent)
    return Route(tuple(to), tuple(sent))


def _lay(
    arm: Sequence[int],
    groups_of: Sequence[range],
    groups: int,
    to: list[int | None],
    sent: list[tuple[Node, ...]],
) -> None:
    """Write down what an arm sends, from its end to the owner, who stands last in it."""
    leaves: list[int] = []
    for position, following in pairwise(arm):
        leaves += groups_of[position]
        to[position], sent[position] = following, tuple(cover(leaves, groups))
