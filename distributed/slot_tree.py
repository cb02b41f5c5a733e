"""The fixed tree by which a step's groups are summed, seen as ranges of leaves.

Leaves are the groups of a step, numbered from 0. The tree over n leaves splits at the largest power of two below n,
which is the tree that `distributed.arithmetic.PairwiseSum` builds from left to right. A node is the range
`(start, stop)` of the leaves below it. Whoever owns neighbouring leaves adds up the nodes that lie wholly inside; the
rest of the tree is added where all of them arrive, in whatever order: the same additions, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

Node = tuple[int, int]


def halves(node: Node) -> tuple[Node, Node]:
    """The two nodes whose sum a node of at least two leaves is."""
    start, stop = node
    middle = start + (1 << ((stop - start - 1).bit_length() - 1))
    return (start, middle), (middle, stop)


def cover(leaves: Iterable[int], total: int) -> list[Node]:
    """The fewest nodes of the tree over `total` leaves that hold exactly the given leaves, from left to right."""
    wanted = frozenset(leaves)
    if not wanted <= frozenset(range(total)):
        raise ValueError(f"leaves {sorted(wanted)} are not all among {total}")
    return list(_cover((0, total), wanted)) if wanted else []


def _cover(node: Node, wanted: frozenset[int]) -> Iterator[Node]:
    inside = sum(leaf in wanted for leaf in range(*node))
    if inside == node[1] - node[0]:
        yield node
    elif inside:
        for half in halves(node):
            yield from _cover(half, wanted)


def shares(total: int, parts: int) -> list[range]:
    """Leaves 0 to `total` as `parts` ranges of neighbours whose lengths differ by one at most."""
    return [range(total * part // parts, total * (part + 1) // parts) for part in range(parts)]


class TreeSum:
    """The sum over a tree's leaves from nodes that arrive in any order, some of them perhaps twice.

    A buffer that is handed in without being given away is only read, so that its owner may send it again; sums go to
    buffers from `allocate`.

    Parameters
    ----------
    total: number of leaves.
    allocate, release: give a buffer of the leaves' length, and take it back.
    eager: add neighbours as soon as both are there. Without, nodes are kept apart until `result`, so that some leaves
        may still be left out.
    """

    def __init__(
        self,
        total: int,
        allocate: Callable[[], torch.Tensor],
        release: Callable[[torch.Tensor], None],
        eager: bool = True,
    ):
        self._total, self._allocate, self._release, self._eager = total, allocate, release, eager
        self._nodes: dict[Node, torch.Tensor] = {}
        self._own: set[Node] = set()

    def add(self, node: Node, buffer: torch.Tensor, give: bool = False) -> bool:
        """Take a node in; False where its leaves are there already, and nothing is changed.

        With `give` the buffer may be added to, and goes to `release` in the end.
        """
        if self._covered(node):
            if give:
                self._release(buffer)
            return False
        for inner in [one for one in self._nodes if node[0] <= one[0] and one[1] <= node[1]]:
            self._drop(inner)
        self._nodes[node] = buffer
        if give:
            self._own.add(node)
        if self._eager:
            self._merge_up(node)
        return True

    @property
    def leaves(self) -> frozenset[int]:
        """The leaves that are there."""
        return frozenset(leaf for node in self._nodes for leaf in range(*node))

    @property
    def nodes(self) -> list[tuple[Node, torch.Tensor]]:
        """What is there, from left to right: neighbours that were added are one node. The buffers stay the tree's."""
        return sorted(self._nodes.items(), key=lambda one: one[0])

    @property
    def complete(self) -> bool:
        """Whether every leaf is there."""
        return sum(stop - start for start, stop in self._nodes) == self._total

    def result(self) -> torch.Tensor:
        """The sum over all leaves, which uses the nodes up. The buffer is the caller's, who gives it to `release`.

        Raises ValueError where a leaf is missing.
        """
        self._gather((0, self._total))
        ((node, buffer),) = self._nodes.items()
        own = node in self._own
        self._nodes.clear()
        self._own.clear()
        return buffer if own else self._allocate().copy_(buffer)

    def partial(self, leaves: Iterable[int]) -> torch.Tensor:
        """The sum over some leaves, by the same tree with the others left out; the nodes stay as they are.

        The buffer is the caller's, who gives it to `release`. Raises ValueError where a leaf is missing, or stands in a
        node together with one that is not wanted.
        """
        wanted = frozenset(leaves)
        if not wanted:
            raise ValueError("a sum over no leaves")
        out, fresh = self._sum_of((0, self._total), wanted)
        return out if fresh else self._allocate().copy_(out)

    def clear(self) -> None:
        """Forget all nodes."""
        for node in list(self._nodes):
            self._drop(node)

    def _covered(self, node: Node) -> bool:
        inside = sum(max(0, min(stop, node[1]) - max(start, node[0])) for start, stop in self._nodes)
        return inside == node[1] - node[0]

    def _merge_up(self, node: Node) -> None:
        for parent in _ancestors(node, self._total):
            left, right = halves(parent)
            if left not in self._nodes or right not in self._nodes:
                return
            self._merge(parent, left, right)

    def _gather(self, node: Node) -> None:
        """Make `node` one buffer."""
        if node in self._nodes:
            return
        if node[1] - node[0] == 1:
            raise ValueError(f"leaf {node[0]} is not there; there are {sorted(self._nodes)}")
        left, right = halves(node)
        self._gather(left)
        self._gather(right)
        self._merge(node, left, right)

    def _sum_of(self, node: Node, wanted: frozenset[int]) -> tuple[torch.Tensor, bool]:
        """The sum over the wanted leaves of a node, and whether its buffer was made for it."""
        if node in self._nodes and all(leaf in wanted for leaf in range(*node)):
            return self._nodes[node], False
        if node in self._nodes or node[1] - node[0] == 1:
            raise ValueError(f"leaves {node} cannot be had: there are {sorted(self._nodes)}, wanted {sorted(wanted)}")
        sides = [half for half in halves(node) if any(leaf in wanted for leaf in range(*half))]
        sums = [self._sum_of(half, wanted) for half in sides]
        if len(sums) == 1:
            return sums[0]
        (one, one_is_fresh), (other, other_is_fresh) = sums
        out = one if one_is_fresh else other if other_is_fresh else self._allocate()
        torch.add(one, other, out=out)
        if one_is_fresh and other_is_fresh:
            self._release(other)
        return out, True

    def _merge(self, parent: Node, left: Node, right: Node) -> None:
        one, other = self._nodes.pop(left), self._nodes.pop(right)
        spare = [buffer for node, buffer in ((left, one), (right, other)) if node in self._own]
        out = spare.pop(0) if spare else self._allocate()
        self._nodes[parent] = torch.add(one, other, out=out)
        self._own -= {left, right}
        self._own.add(parent)
        for buffer in spare:
            self._release(buffer)

    def _drop(self, node: Node) -> None:
        buffer = self._nodes.pop(node)
        if node in self._own:
            self._own.discard(node)
            self._release(buffer)


def _ancestors(node: Node, total: int) -> Sequence[Node]:
    """The nodes above `node`, the nearest first."""
    path, at = [], (0, total)
    while at != node:
        path.append(at)
        left, right = halves(at)
        at = left if node[1] <= left[1] else right
    return path[::-1]
