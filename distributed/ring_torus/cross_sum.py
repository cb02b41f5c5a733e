"""The sum of gradients across rings at one of the holders of some stages, without threads or sockets.

What goes where is in `distributed.ring_torus.routes`. Once all sums of a step are whole here, this holder says its
*word*, with what its ring knows of the step beside gradients, and the word goes round the column. So who has heard the
words of all holders knows that every one of them has every sum, and all facts of all rings.

Why nobody reads a buffer that is overwritten
---------------------------------------------
What is sent is the memory of the gradient itself, which a neighbour may read in place. A part of it is overwritten by
the finished sum only, which does not exist before its owner has read everything that it was made of; and a finished sum
is changed by nobody. Buffers are given back when the step is applied, behind the words of all holders; who has said its
word reads nothing of the step any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from distributed.buffers import BufferPool
from distributed.errors import FrameError
from distributed.ring.segments import PART_BYTES, Part, RingCut
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.scalars import StepFacts
from distributed.ring_torus.routes import own_nodes, routes
from distributed.slot_tree import TreeSum

Send = Callable[[int, Kind, int, tuple[int, int], Any], None]
"""Takes the position that it is for (a neighbour's in the column), kind, step, tags and payload."""


@dataclass
class _StageSum:
    """What is there of a stage's gradient of a step."""

    trees: dict[int, TreeSum] = field(default_factory=dict)  # by part
    came: dict[int, int] = field(default_factory=dict)  # by part: how many nodes of the tree, from neighbours
    own: list[torch.Tensor] = field(default_factory=list)  # by own node of the tree; the first becomes the sum
    final: set[int] = field(default_factory=set)  # parts

    def discard(self) -> None:
        """Let go of what was made on the way."""
        for tree in self.trees.values():
            tree.clear()


@dataclass
class _Step:
    stages: dict[int, _StageSum] = field(default_factory=dict)
    words: dict[int, StepFacts] = field(default_factory=dict)  # by position
    is_taken: bool = False


class CrossSum:
    """The holder in `position` of a column.

    Parameters
    ----------
    rings, groups: how many there are.
    sizes: by stage that is held here, the elements of its gradient.
    send: to the neighbours in the column.
    release: takes back a buffer that `ready` was given and that `take` does not return.
    part_bytes: of a message, at most.
    """

    def __init__(
        self,
        position: int,
        rings: int,
        groups: int,
        sizes: Mapping[int, int],
        send: Send,
        release: Callable[[torch.Tensor], None],
        part_bytes: int = PART_BYTES,
    ):
        self.position, self._rings, self._groups = position, rings, groups
        self.nodes = own_nodes(position, rings, groups)
        """Of the summation tree, those that cover the groups of this holder's ring."""
        self._routes = routes(rings, groups)
        self._cuts = {stage: RingCut(((0, size),), rings, part_bytes) for stage, size in sizes.items()}
        self._send, self._release = send, release
        self._pool = BufferPool()
        self._steps: dict[int, _Step] = {}

    # ------------------------------------------------------------------------------------------------- own share

    def has(self, step: int, stage: int) -> bool:
        """Whether this holder's own sums of a stage are here."""
        return bool(self._stage(step, stage).own)

    def ready(self, step: int, stage: int, buffers: Sequence[torch.Tensor]) -> None:
        """Sum a stage's gradient, given this ring's own sums [elements], one for each of `nodes`.

        The buffers are given over, and are changed.
        """
        one = self._stage(step, stage)
        if one.own or len(buffers) != len(self.nodes):
            raise ValueError(f"{len(buffers)} sums of stage {stage} for {len(self.nodes)} nodes, or twice")
        one.own = list(buffers)
        for part in self._cuts[stage].parts:
            tree = self._tree(one, part)
            for node, buffer in zip(self.nodes, buffers, strict=True):
                tree.add(node, part.of(buffer), give=True)
            self._go_on(step, stage, part)

    def is_whole(self, step: int) -> bool:
        """Whether the sums of all stages are here."""
        stages = self._step(step).stages
        return all(
            stage in stages and stages[stage].own and len(stages[stage].final) == len(cut.parts)
            for stage, cut in self._cuts.items()
        )

    def say(self, step: int, facts: StepFacts) -> bool:
        """Say this holder's word of a step whose sums are whole; False where it has been said."""
        words = self._step(step).words
        if self.position in words:
            return False
        words[self.position] = facts
        self._pass_on(step, self.position, asdict(facts))
        return True

    def others(self, step: int) -> StepFacts | None:
        """What the other rings know, once all holders have said their words."""
        words = self._step(step).words
        if len(words) < self._rings:
            return None
        return sum((facts for position, facts in words.items() if position != self.position), start=StepFacts())

    def take(self, step: int) -> dict[int, torch.Tensor] | None:
        """By stage the sum over all rings, once all are whole; None before, and where they were taken.

        They are the caller's, who lets nobody write to them before the step is applied.
        """
        one = self._step(step)
        if one.is_taken or not self.is_whole(step):
            return None
        one.is_taken = True
        return {stage: one.stages[stage].own[0] for stage in self._cuts}

    def forget(self, step: int) -> None:
        """A step is applied: give back what nobody reads any more."""
        one = self._steps.pop(step, None)
        for sums in one.stages.values() if one is not None else ():
            sums.discard()
            for buffer in sums.own[1 if one is not None and one.is_taken else 0 :]:
                self._release(buffer)

    def discard(self) -> None:
        """Forget all steps."""
        for step in list(self._steps):
            self.forget(step)

    # ------------------------------------------------------------------------------------------------- neighbours

    def receive(self, sender: int, kind: Kind, step: int, tags: tuple[int, int], payload: Any) -> None:
        """Take in what the neighbour in a position has sent. Raises FrameError for what it would not send."""
        if kind == Kind.ACROSS_WORD:
            self._hear(sender, step, tags[0], payload)
            return
        stage, tag = tags
        parts = self._cuts[stage].parts if stage in self._cuts else ()
        if not parts:
            raise FrameError(f"a gradient comes for stage {stage}, of which nothing is held here")
        number, index = divmod(tag, len(parts))
        part = parts[index]
        if payload.numel() != part.elements:
            raise FrameError(f"{payload.numel()} elements come for {part.elements} of stage {stage}")
        if kind == Kind.ACROSS_REDUCE:
            self._reduce(sender, step, stage, part, number, payload)
        else:
            self._gather(sender, step, stage, part, payload)

    def _reduce(self, sender: int, step: int, stage: int, part: Part, number: int, payload: torch.Tensor) -> None:
        route, one = self._routes[part.segment], self._stage(step, stage)
        if route.to[sender] != self.position or number >= len(route.sent[sender]):
            raise FrameError(f"part {part.index} of stage {stage} does not come from ring {sender}")
        if not self._tree(one, part).add(route.sent[sender][number], payload):
            raise FrameError(f"part {part.index} of stage {stage} has come twice from ring {sender}")
        one.came[part.index] = one.came.get(part.index, 0) + 1
        self._go_on(step, stage, part)

    def _gather(self, sender: int, step: int, stage: int, part: Part, payload: torch.Tensor) -> None:
        one = self._stage(step, stage)
        before = (self.position - 1) % self._rings
        if sender != before or part.segment == self.position or not one.own or part.index in one.final:
            raise FrameError(f"the sum of part {part.index} of stage {stage} has come twice, or astray")
        part.of(one.own[0]).copy_(payload)
        self._finish(step, stage, part)

    def _hear(self, sender: int, step: int, origin: int, content: Mapping[str, Any]) -> None:
        words = self._step(step).words
        if sender != (self.position - 1) % self._rings or origin in words or origin >= self._rings:
            raise FrameError(f"the word of ring {origin} has come twice, or astray")
        try:
            words[origin] = StepFacts(**content)
        except TypeError:
            raise FrameError(f"the word of ring {origin} cannot be read") from None
        self._pass_on(step, origin, content)

    # ------------------------------------------------------------------------------------------------- inside

    def _step(self, step: int) -> _Step:
        return self._steps.setdefault(step, _Step())

    def _stage(self, step: int, stage: int) -> _StageSum:
        return self._step(step).stages.setdefault(stage, _StageSum())

    def _tree(self, one: _StageSum, part: Part) -> TreeSum:
        if part.index not in one.trees:
            one.trees[part.index] = TreeSum(self._groups, lambda: self._pool.take(part.elements), self._pool.give_back)
        return one.trees[part.index]

    def _go_on(self, step: int, stage: int, part: Part) -> None:
        """Once all of a part is here that comes here: send it on to its owner, or finish it."""
        one, route = self._stage(step, stage), self._routes[part.segment]
        if not one.own or one.came.get(part.index, 0) < route.awaited(self.position):
            return
        to, tree = route.to[self.position], one.trees[part.index]
        if to is not None:
            for number, (_, buffer) in enumerate(tree.nodes):
                tag = number * len(self._cuts[stage].parts) + part.index
                self._send(to, Kind.ACROSS_REDUCE, step, (stage, tag), buffer)
            return
        total, target = tree.result(), part.of(one.own[0])
        if total.data_ptr() != target.data_ptr():
            target.copy_(total)
            self._pool.give_back(total)
        self._finish(step, stage, part)

    def _finish(self, step: int, stage: int, part: Part) -> None:
        """A part is final here; it goes on round the column to those that lack it."""
        one, following = self._stage(step, stage), (self.position + 1) % self._rings
        one.final.add(part.index)
        if following != part.segment:
            self._send(following, Kind.ACROSS_GATHER, step, (stage, part.index), part.of(one.own[0]))

    def _pass_on(self, step: int, origin: int, content: Mapping[str, Any]) -> None:
        following = (self.position + 1) % self._rings
        if following != origin:
            self._send(following, Kind.ACROSS_WORD, step, (origin, 0), dict(content))
