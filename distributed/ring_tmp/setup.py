"""What all nodes of a stage ring agree on before they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """

    parts: Sequence[Part]
    plan: BatchPlan
    tokens: Callable[[int], Sequence[int]]
    optimizer: OptimizerSpec
    rate: Callable[[int], float]
    lag: int = 0
    shadows: bool = True

    def new_state(self, stage: int, step: int = 0) -> PartState:
        """An empty state of a stage, after `step`."""
        return PartState(self.parts[stage], build_optimizer(self.optimizer), self.optimizer, self.lag, step)
