"""Gradients of the steps that a node has begun and not applied, and of the newest one, which the next node may read.

All of them lie in buffers that are used again: a node that is in one ring after the other makes no new ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from distributed.ring_tmp.parts import Gradients, GroupSums
from distributed.ring_tmp.scalars import StepFacts
from distributed.strategy import BatchPlan


class Sums(Protocol):
    """What backward passes add to."""

    def buffer(self, slot: int) -> torch.Tensor:
        """The buffer [elements] of a slot."""

    def discard(self) -> None:
        """Give up what was added so far."""


@dataclass
class _OpenStep:
    """What is there of a step that is not applied."""

    sums: dict[int, Sums] = field(default_factory=dict)  # by stage, while backward passes add to it
    gradients: dict[int, torch.Tensor] = field(default_factory=dict)  # by stage: own ones, complete
    copies: dict[int, torch.Tensor] = field(default_factory=dict)  # by stage: of the node before, for the second copy
    facts: StepFacts = field(default_factory=StepFacts)


class OpenSteps:
    """What a node has of each step between its first backward pass and the next node's having read all of it."""

    def __init__(self, plan: BatchPlan, gradients: Gradients):
        self._plan, self._gradients = plan, gradients
        self._open: dict[int, _OpenStep] = {}
        self._sent: list[tuple[int, torch.Tensor]] = []  # step and gradient: the next node may be reading it

    def new_gradient(self, stage: int) -> torch.Tensor:
        """A buffer [elements of the stage's part] of zeros; links' threads ask for some, too."""
        return self._gradients.new(stage)

    def buffers(self, step: int, stages: Iterable[int], slot: int) -> dict[int, torch.Tensor]:
        """By stage, the buffer [elements of its part] to which a slot's backward pass is to add."""
        sums = self._step(step).sums
        found = {}
        for stage in stages:
            if stage not in sums:
                sums[stage] = self._new_sums(stage)
            found[stage] = sums[stage].buffer(slot)
        return found

    def add(self, step: int, facts: StepFacts) -> None:
        """Note what a backward pass tells of its slot."""
        self._step(step).facts += facts

    def complete(self, step: int, stage: int) -> torch.Tensor:
        """The gradient of a stage whose last backward pass is done."""
        opened = self._step(step)
        sums = opened.sums.pop(stage)
        assert isinstance(sums, GroupSums)
        gradient = opened.gradients[stage] = sums.result()
        return gradient

    def take_copy(self, step: int, stage: int, gradient: torch.Tensor) -> bool:
        """The gradient of a stage of the node before has come; False where it had come already."""
        copies = self._step(step).copies
        return copies.setdefault(stage, gradient) is gradient

    def refuse(self, gradient: torch.Tensor) -> None:
        """One has come that nobody wants any more."""
        self._gradients.release(gradient)

    def has_all(self, step: int, own: Collection[int], shadowed: Collection[int]) -> bool:
        """Whether all gradients of a step are here, of a node's own stages and of those whose copy it has."""
        opened = self._open.get(step)
        return opened is not None and len(opened.gradients) == len(own) and len(opened.copies) == len(shadowed)

    def own(self, step: int) -> tuple[Mapping[int, torch.Tensor], StepFacts]:
        """By stage, the complete gradients of a node's own stages; and what is known of the step's slots."""
        opened = self._open[step]
        return opened.gradients, opened.facts

    def all(self, step: int) -> dict[int, torch.Tensor]:
        """By stage, the gradients by which a node steps what it holds."""
        opened = self._open[step]
        return opened.gradients | opened.copies

    def close(self, step: int, *, shipped: bool) -> None:
        """A step is applied; `shipped`: its gradients were sent, so they stay until the next one is applied."""
        opened = self._open.pop(step)
        # All have spoken of this step, so they have applied the one before, and read what was sent of it.
        done = [gradient for before, gradient in self._sent if before < step]
        if shipped:
            self._sent = [(step, gradient) for gradient in opened.gradients.values()]
        else:
            self._sent, done = [], [*done, *opened.gradients.values()]
        self._release(done, opened.copies.values())

    def forget(self) -> None:
        """Give up the open steps. A walk has gone round behind all that was sent of them: nobody reads it any more."""
        for opened in self._open.values():
            for sums in opened.sums.values():
                sums.discard()
            self._release(opened.gradients.values(), opened.copies.values())
        self._open = {}

    def leave(self) -> None:
        """Give up everything: whoever could read what was sent is about to be given another state."""
        self.forget()
        self._release(gradient for _, gradient in self._sent)
        self._sent = []

    def _new_sums(self, stage: int) -> Sums:
        return GroupSums(self._plan, self._gradients, stage)

    def _step(self, step: int) -> _OpenStep:
        return self._open.setdefault(step, _OpenStep())

    def _release(self, *several: Iterable[torch.Tensor]) -> None:
        for some in several:
            for gradient in some:
                self._gradients.release(gradient)
