"""What all nodes of a stage ring agree on before they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from distributed.optimizers import build_optimizer
from distributed.ring_tmp.parts import Part
from distributed.ring_tmp.shadow import PartState
from distributed.strategy import BatchPlan, OptimizerSpec


@dataclass(frozen=True)
class Setup:
    """The model's stages, the steps and the rule.

    parts: what each stage owns, by stage.
    tokens: target tokens of each slot of a step.
    rate: the learning rate of a step, the trainer's factor included.
    lag: see `executor.LAGS`.
    shadows: whether each stage has a second copy at the next node.
    look: where a step is probed, called with a stage that is stepped, its gradient and what the step took from its
        parameters, both [elements]; a stage and its second copy are stepped by two nodes.
    probed: whether a step is.
    own_tokens: as `tokens`, with none where a slot is computed by another of several rings; None where there is one.
    """

    parts: Sequence[Part]
    plan: BatchPlan
    tokens: Callable[[int], Sequence[int]]
    optimizer: OptimizerSpec
    rate: Callable[[int], float]
    lag: int = 0
    shadows: bool = True
    probed: Callable[[int], bool] = lambda step: False
    look: Callable[[int, torch.Tensor, torch.Tensor], None] = lambda stage, gradient, change: None
    own_tokens: Callable[[int], Sequence[int]] | None = None

    @property
    def computed(self) -> Callable[[int], Sequence[int]]:
        """Target tokens of each slot of a step, 0 of those that this node's ring does not compute."""
        return self.own_tokens or self.tokens

    def new_state(self, stage: int, step: int = 0) -> PartState:
        """An empty state of a stage, after `step`."""
        return PartState(self.parts[stage], build_optimizer(self.optimizer), self.optimizer, self.lag, step)
