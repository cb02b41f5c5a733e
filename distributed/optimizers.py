"""Update rules over flat parameter chunks.

Each rule is elementwise, so that it may be applied to any cut of the buffers, on any process, with the same bits.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch.optim.adam import adam

from distributed.strategy import OptimizerSpec, load

State = dict[str, torch.Tensor]


class Optimizer(Protocol):
    """An update rule."""

    slots: tuple[str, ...]
    """Names of the flat buffers of state that it keeps, each as long as the parameters and starting at zero."""

    def apply(self, values: torch.Tensor, gradient: torch.Tensor, state: State, update: int, rate: float) -> None:
        """Change `values` [elements] in place; `update` counts applied updates from 1."""


class Adam:
    """Adam (Kingma & Ba 2015) with the epsilon of TensorFlow or of torch.

    `epsilon_form="tf"` is the paper's "epsilon hat": it is added to sqrt(v) before the bias correction of v, which
    equals torch's form with epsilon / sqrt(1 - beta2^t).
    """

    slots: tuple[str, ...] = ("first_moment", "second_moment")

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, epsilon_form: str = "tf"):
        self.beta1, self.beta2, self.epsilon, self.epsilon_form = beta1, beta2, epsilon, epsilon_form

    def apply(self, values: torch.Tensor, gradient: torch.Tensor, state: State, update: int, rate: float) -> None:
        """One update of a chunk, by torch's fused kernel."""
        epsilon = self.epsilon
        if self.epsilon_form == "tf":
            epsilon /= math.sqrt(1.0 - self.beta2**update)
        adam(
            [values],
            [gradient],
            [state["first_moment"]],
            [state["second_moment"]],
            [],
            # Filled on the device: copying the number to a GPU would make the host wait for all that it has launched.
            [torch.full((), float(update - 1), device=values.device)],
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=rate,
            weight_decay=0.0,
            eps=epsilon,
            maximize=False,
        )


class Sgd:
    """Stochastic gradient descent; with momentum, v <- momentum v + g and x <- x - rate v."""

    def __init__(self, *, momentum: float = 0.0):
        self.momentum = momentum
        self.slots: tuple[str, ...] = ("velocity",) if momentum else ()

    def apply(self, values: torch.Tensor, gradient: torch.Tensor, state: State, update: int, rate: float) -> None:
        """One update of a chunk."""
        if self.momentum:
            gradient = state["velocity"].mul_(self.momentum).add_(gradient)
        values.sub_(gradient, alpha=rate)


def build_optimizer(spec: OptimizerSpec) -> Optimizer:
    """The rule that a specification names, imported now."""
    rule: Optimizer = load(spec.rule)(**spec.options)
    return rule
