"""The prepare barrier: nothing of a step is applied before everything of it exists twice.

Each node says one word of a step (`distributed.ring_tmp.scalars.Contribution`), passes on the words that it hears up
to the node before the one that spoke, and so has heard all after N - 1 hops. It speaks when all its own gradients are
complete, when it holds the gradients of the node before it, for the second copy, and when the step before is applied.
So who has heard all knows that every gradient of the step exists twice, and that nobody is more than one step behind:
it may apply, and whoever is behind when a node is lost can follow.

Round 0 gives the norm and the losses. Parameters that lie on several nodes and are clipped by themselves have a round
each behind it, for the norm of what the first clipping has left of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch

from distributed.arithmetic import clip_
from distributed.errors import FrameError
from distributed.ring_tmp.parts import Part, chunk_pieces
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Contribution, Decision, Pieces, StepFacts, decide
from distributed.strategy import OptimizerSpec

Send = Callable[[int, int, int, bytes], None]
"""Takes step, number of the node that spoke, round and its word to the successor."""


class _Round:
    """All nodes' words, as they come."""

    def __init__(self, order: Sequence[int]):
        self._order = tuple(order)
        self.said: dict[int, Contribution] = {}

    @property
    def is_complete(self) -> bool:
        return len(self.said) == len(self._order)

    def take(self, me: int, origin: int, word: Contribution) -> bool:
        """Returns whether it is to be passed on."""
        if origin not in self._order:
            raise FrameError(f"node {origin} is no member, and speaks of a step")
        if origin in self.said:
            raise FrameError(f"node {origin} speaks of a step twice")
        self.said[origin] = word
        return self._order[(self._order.index(me) + 1) % len(self._order)] != origin


class PrepareBarrier:
    """Node `number`'s part in the barriers of an epoch.

    Parameters
    ----------
    parts, placement: what each stage owns, and who has the stages.
    specification: how gradients are clipped.
    tokens: target tokens of each slot of a step.
    send: to the successor.
    """

    def __init__(
        self,
        number: int,
        parts: Sequence[Part],
        placement: Placement,
        specification: OptimizerSpec,
        tokens: Callable[[int], Sequence[int]],
        send: Send,
    ):
        self.number = number
        self._specification, self._tokens, self._send = specification, tokens, send
        self._order = placement.ring.order
        self._names = _cut_names(parts, specification)
        ranges = [(0, parts[0].elements), *(_range_of(name, parts) for name in self._names)]
        self._pieces = [Pieces(chunk_pieces(*one), parts, placement) for one in ranges]
        self._rounds: dict[int, list[_Round]] = {}
        self._first: dict[int, Decision] = {}  # what round 0 gave
        self._gradients: dict[int, Mapping[int, torch.Tensor]] = {}

    def speak(self, step: int, gradients: Mapping[int, torch.Tensor], facts: StepFacts) -> None:
        """Say this node's word of a step, given the gradients of its stages, which stay as they are."""
        self._gradients[step] = gradients
        self._say(step, 0, gradients, facts)

    def hear(self, step: int, origin: int, round_: int, payload: bytes) -> None:
        """Take in a word from the predecessor. Raises FrameError for one that cannot be."""
        if round_ >= len(self._pieces):
            raise FrameError(f"a step has {len(self._pieces)} rounds, and node {origin} speaks in another")
        self._take(step, origin, round_, Contribution.from_bytes(payload))

    def decision(self, step: int) -> Decision | None:
        """What all nodes agree on; None while not all words are here."""
        if step not in self._first:
            return None
        first, rounds = self._first[step], self._rounds[step]
        if not first.is_update or not self._names:
            return first
        if not all(one.is_complete for one in rounds):
            return None
        norms = [pieces.norm(one.said) for pieces, one in zip(self._pieces[1:], rounds[1:], strict=True)]
        return replace(first, clips=dict(zip(self._names, norms, strict=True)))

    def forget(self, step: int) -> None:
        """A step is applied."""
        self._rounds.pop(step, None)
        self._first.pop(step, None)
        self._gradients.pop(step, None)

    def _say(self, step: int, round_: int, gradients: Mapping[int, torch.Tensor], facts: StepFacts) -> None:
        sums, elements = self._pieces[round_].contribution(self.number, gradients)
        self._take(step, self.number, round_, Contribution(asdict(facts), sums, elements))

    def _take(self, step: int, origin: int, round_: int, word: Contribution) -> None:
        if step not in self._rounds:
            self._rounds[step] = [_Round(self._order) for _ in self._pieces]
        heard = self._rounds[step][round_]
        if heard.take(self.number, origin, word):
            self._send(step, origin, round_, word.to_bytes())
        if round_ == 0 and heard.is_complete:
            self._end_of_first(step, heard)

    def _end_of_first(self, step: int, heard: _Round) -> None:
        facts = [StepFacts(**word.facts) for word in heard.said.values()]
        decision = decide(step, sum(self._tokens(step)), self._pieces[0].norm(heard.said), facts)
        self._first[step] = decision
        if not decision.is_update or not self._names:
            return
        clipped = {stage: gradient.clone() for stage, gradient in self._gradients[step].items()}
        for gradient in clipped.values():
            clip_(gradient, decision.norm, self._specification.max_norm)
        for round_ in range(1, len(self._pieces)):
            self._say(step, round_, clipped, StepFacts())


def _cut_names(parts: Sequence[Part], specification: OptimizerSpec) -> list[str]:
    """Parameters that are clipped by themselves and lie in several parts."""
    limits = specification.parameter_max_norms
    return [name for name in limits if limits[name] and sum(name in part.views for part in parts) > 1]


def _range_of(name: str, parts: Sequence[Part]) -> tuple[int, int]:
    held = [one for part in parts for one in part.held if one.name == name]
    return min(one.start for one in held), max(one.stop for one in held)
