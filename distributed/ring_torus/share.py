"""What a node adds up where its ring computes some of a step's groups: nodes of the tree that sums them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from distributed.ring_tmp.open_steps import OpenSteps
from distributed.ring_tmp.parts import Gradients, GroupSums
from distributed.ring_tmp.scalars import StepFacts
from distributed.slot_tree import Node
from distributed.strategy import BatchPlan


def share_tokens(
    tokens: Callable[[int], Sequence[int]], plan: BatchPlan, groups: range
) -> Callable[[int], Sequence[int]]:
    """Target tokens of a step's slots as one ring sees them: of the slots outside its groups there are none."""
    each = plan.slots_per_group
    slots = range(groups.start * each, groups.stop * each)
    return lambda step: [count if slot in slots else 0 for slot, count in enumerate(tokens(step))]


class ShareSums:
    """A stage's gradient of some nodes of the tree, each in a buffer of its own; slots come in ascending order."""

    def __init__(self, plan: BatchPlan, gradients: Gradients, stage: int, nodes: Sequence[Node]):
        self._plan = plan
        self._coming: Iterator[tuple[Node, GroupSums]] = (
            (node, GroupSums(plan, gradients, stage, node)) for node in nodes
        )
        self._gradients = gradients
        self._open: tuple[Node, GroupSums] | None = None
        self._done: list[torch.Tensor] = []

    def buffer(self, slot: int) -> torch.Tensor:
        """What a slot's backward pass is to add to. Raises ValueError where slots do not ascend."""
        group = slot // self._plan.slots_per_group
        while self._open is None or group >= self._open[0][1]:
            if not self._go_on():
                raise ValueError(f"slot {slot} is of none of the groups here")
        return self._open[1].buffer(slot)

    def results(self) -> list[torch.Tensor]:
        """The sums, by node; nothing may follow."""
        while self._go_on():
            pass
        return self._done

    def discard(self) -> None:
        """Give up what was added so far."""
        if self._open is not None:
            self._open[1].discard()
        for buffer in self._done:
            self._gradients.release(buffer)

    def _go_on(self) -> bool:
        """Close a node, and open the next one; False where there is none."""
        if self._open is not None:
            self._done.append(self._open[1].result())
        self._open = next(self._coming, None)
        return self._open is not None


class ShareSteps(OpenSteps):
    """Open steps of which a ring computes some groups only.

    Parameters
    ----------
    plan, gradients: as for `OpenSteps`.
    nodes: of the tree, those that cover the ring's groups.
    """

    def __init__(self, plan: BatchPlan, gradients: Gradients, nodes: Sequence[Node]):
        super().__init__(plan, gradients)
        self._nodes = nodes

    def share(self, step: int, stage: int) -> list[torch.Tensor]:
        """A stage's own sums, by node, once its last backward pass is done; the buffers are the caller's."""
        sums = self._step(step).sums.pop(stage, None)
        return (sums if isinstance(sums, ShareSums) else self._new_sums(stage)).results()

    def facts(self, step: int) -> StepFacts:
        """What is known of a step's slots."""
        return self._step(step).facts

    def put(self, step: int, stage: int, gradient: torch.Tensor) -> None:
        """The gradient of a stage over all rings is here."""
        self._step(step).gradients[stage] = gradient

    def _new_sums(self, stage: int) -> ShareSums:
        return ShareSums(self._plan, self._gradients, stage, self._nodes)
