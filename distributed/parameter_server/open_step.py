"""The step that a BSP server has not applied yet: what workers pushed of it, what they said, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.arithmetic import norm, square_sums
from distributed.buffers import BufferPool
from distributed.parameter_server.setup import Setup
from distributed.shards import Piece
from distributed.slot_tree import Node, TreeSum


@dataclass
class _OpenShard:
    """The open step of a shard: trees until a piece is whole, then its gradient, in pieces of the shard.

    `shipped` says in which epoch the primary sent a shadow's piece: it is held only when it came in the present one, so
    that the primary does not change it while a repetition is still under way.
    """

    trees: dict[int, TreeSum] = field(default_factory=dict)
    whole: dict[int, torch.Tensor] = field(default_factory=dict)
    sums: dict[int, list[float]] = field(default_factory=dict)
    shipped: dict[int, int] = field(default_factory=dict)


@dataclass
class Agreement:
    """What the servers have told each other of the open step in the present epoch, by shard.

    sums: the square sums of the chunks of whole gradients.
    held: shards whose shadow has the whole gradient.
    clipped: square sums of the parts of parameters that are clipped one by one.
    """

    sums: dict[int, list[float]] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    clipped: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    def norms_of(self, names: Sequence[str]) -> dict[str, float]:
        """The norms of parameters that are clipped one by one."""
        parts = self.clipped.values()
        return {name: norm([one for part in parts for one in part.get(name, [])]) for name in names}


class OpenStep:
    """Gradients by shard and piece, and facts by leaf. `clear` makes room for the next step.

    Parameters
    ----------
    setup: the run.
    pool: where gradients arrive, and where they go back to.
    """

    def __init__(self, setup: Setup, pool: BufferPool):
        self._setup, self._pool = setup, pool
        self._of_shard = {shard: setup.shard_map.of_shard(shard) for shard in range(setup.shards)}
        self._shards: dict[int, _OpenShard] = {}
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        for shard in list(self._shards):
            self.drop(shard)
        self._shards = {shard: _OpenShard() for shard in range(self._setup.shards)}
        self.facts: dict[int, dict[str, Any]] = {}
        """What workers said of leaves beside gradients."""
        self.tokens, self.rate, self.probe = 0, 0.0, False
        self.wanted: frozenset[int] | None = None
        """The leaves that the step is made of; None while that is open."""
        if not self._setup.backup:
            self.wanted = frozenset(range(self._setup.leaves))

    def drop(self, shard: int) -> None:
        """Forget a shard."""
        for tree in self._shards[shard].trees.values():
            tree.clear()
        for gradient in self._shards[shard].whole.values():
            self._pool.give_back(gradient)
        self._shards[shard] = _OpenShard()

    # ------------------------------------------------------------------------------------------------- what comes in

    def say(self, said: Mapping[str, Any]) -> None:
        """Take in what a worker says of its leaves."""
        self.tokens, self.rate, self.probe = said["tokens"], said["rate"], said["probe"]
        for leaf, facts in said["leaves"].items():
            self.facts[int(leaf)] = facts

    def said(self) -> dict[str, Any]:
        """All that was said so far, for `say`."""
        return {"tokens": self.tokens, "rate": self.rate, "probe": self.probe, "leaves": self.facts}

    def add(self, piece: Piece, node: Node, gradient: torch.Tensor) -> bool:
        """Take in a piece of a node's gradient; False where it is not needed, and the caller's."""
        open_shard = self._shards[piece.shard]
        if piece.index in open_shard.whole:
            return False
        tree = open_shard.trees.get(piece.index)
        if tree is None:
            tree = open_shard.trees[piece.index] = TreeSum(
                self._setup.leaves,
                lambda: self._pool.take(piece.elements),
                self._pool.give_back,
                eager=self._setup.all_leaves_count,
            )
        tree.add(node, gradient, give=self._pool.owns(gradient))
        return True

    def hold(self, piece: Piece, gradient: torch.Tensor, epoch: int) -> None:
        """Take in a whole piece that a primary has sent to its shadow."""
        own = gradient if self._pool.owns(gradient) else self._pool.take(piece.elements).copy_(gradient)
        open_shard = self._shards[piece.shard]
        self._pool.give_back(open_shard.whole.get(piece.index))
        open_shard.whole[piece.index] = own
        open_shard.shipped[piece.index] = epoch

    def complete(self, shard: int, index: int | None = None) -> list[int]:
        """Sum up the pieces of which all wanted leaves are there; returns their numbers.

        index: the piece to look at; by default all.
        """
        open_shard, wanted = self._shards[shard], self.wanted
        done: list[int] = []
        if wanted is None:
            return done
        for one in [index] if index is not None else list(open_shard.trees):
            tree = open_shard.trees[one]
            if one in open_shard.whole or not wanted <= tree.leaves:
                continue
            if self._setup.all_leaves_count:
                gradient = tree.result()
                del open_shard.trees[one]
            elif wanted <= self.facts.keys():
                gradient = tree.partial(wanted)  # the nodes stay: a leaf may have to be left out yet
                part = self._tokens_of(wanted)
                if part != self.tokens:  # what was left out must not make the mean smaller
                    gradient.mul_(self.tokens / part)
            else:
                continue
            open_shard.whole[one] = gradient
            open_shard.sums[one] = square_sums(gradient)
            done.append(one)
        return done

    def change_leaves(self, leaves: frozenset[int], primary: Collection[int], epoch: int) -> None:
        """Make the step of other leaves; gradients that were made of more are made again once theirs are there.

        primary: the shards that are summed here; of others, what came in this epoch is made of the new leaves already.
        """
        if leaves != self.wanted:
            for shard, open_shard in self._shards.items():
                for index in list(open_shard.whole):
                    if shard in primary or open_shard.shipped.get(index) != epoch:
                        self._pool.give_back(open_shard.whole.pop(index))
                open_shard.sums.clear()
        self.wanted = leaves

    # ------------------------------------------------------------------------------------------------- what is there

    @property
    def is_said(self) -> bool:
        """Whether it is known which leaves count, and everything was said of them."""
        return self.wanted is not None and self.wanted <= self.facts.keys()

    def is_whole(self, shard: int) -> bool:
        """Whether all of a shard's gradient is summed up."""
        return len(self._shards[shard].whole) == len(self._of_shard[shard])

    def is_held(self, shard: int, epoch: int) -> bool:
        """Whether all of a shard's gradient came from its primary in this epoch."""
        shipped = self._shards[shard].shipped
        return all(shipped.get(piece.index) == epoch for piece in self._of_shard[shard])

    def gradients(self, shard: int) -> Mapping[int, torch.Tensor]:
        """The pieces of a shard's gradient that are whole, by number."""
        return self._shards[shard].whole

    def square_sums(self, shard: int) -> list[float]:
        """Those of the chunks of a shard's whole gradient."""
        open_shard = self._shards[shard]
        for piece in self._of_shard[shard]:
            if piece.index not in open_shard.sums:  # the gradient came to it as a shadow
                open_shard.sums[piece.index] = square_sums(open_shard.whole[piece.index])
        return [one for piece in self._of_shard[shard] for one in open_shard.sums[piece.index]]

    def leaves_there(self, shard: int) -> frozenset[int]:
        """Leaves that are there for every piece of a shard."""
        open_shard, there = self._shards[shard], frozenset(range(self._setup.leaves))
        for piece in self._of_shard[shard]:
            if piece.index not in open_shard.whole:
                tree = open_shard.trees.get(piece.index)
                there &= tree.leaves if tree else frozenset()
        return there

    def enough(self, workers: int) -> frozenset[int] | None:
        """With backup workers: the leaves to close the step with, once all but these of the workers pushed theirs."""
        there = self.leaves_there(0) & self.facts.keys()
        owners = sorted(map(len, self._setup.owners(workers)))
        return there if len(there) >= sum(owners[: max(1, len(owners) - self._setup.backup)]) else None

    def decide(self, step: int, sums: Mapping[int, list[float]]) -> dict[str, Any]:
        """What becomes of the step, from the square sums of all shards: the same on every server."""
        assert self.wanted is not None
        losses = [loss for leaf in sorted(self.wanted) for loss in self.facts[leaf]["losses"]]
        gradient_norm = norm([one for parts in sums.values() for one in parts])
        loss = math.fsum(losses) / self._tokens_of(self.wanted) if all(map(math.isfinite, losses)) else math.nan
        return {
            "step": step,
            "leaves": {str(leaf): self.facts[leaf] for leaf in sorted(self.wanted)},
            "loss": loss,
            "norm": gradient_norm,
            "rate": self.rate,
            "probe": self.probe,
            "finite": math.isfinite(loss) and math.isfinite(gradient_norm),
            "own_norms": {},
        }

    def _tokens_of(self, leaves: frozenset[int]) -> int:
        return sum(self.facts[leaf]["tokens"] for leaf in leaves)
