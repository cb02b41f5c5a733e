"""The one interface between a training task and the backends that run it. Imports nothing of `nmt`, and no torch.

A *workload* (implemented by `nmt.training.workload`) says what a step computes; a *strategy* (implemented in
`distributed`) says where. A workload travels as a `WorkloadSpec`, an importable function plus plain data, so that any
process can build its own share: no tensor ever passes through the trainer.

The canonical step
------------------
A step is `plan.micro_batches` slots. Slots form `plan.groups` equal groups of neighbours. Inside a group gradients are
added in ascending order into one buffer; the groups' buffers are summed by the fixed pairwise tree of
`distributed.arithmetic.PairwiseSum`. A gradient is that of (sum of token losses of the slot) / (target tokens of the
whole step). The gradient's norm is the square root of `math.fsum` over fp64 square sums of fixed chunks. Exact
strategies only assign slots to processes and exchange partial nodes of this tree, so their results carry the same bits
as `single`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BatchPlan:
    """How a step is cut: `micro_batches` slots in `groups` equal groups of neighbouring slots."""

    micro_batches: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        if self.micro_batches < 1 or self.groups < 1 or self.micro_batches % self.groups:
            raise ValueError(f"{self.micro_batches} slots cannot form {self.groups} equal groups")

    @property
    def slots_per_group(self) -> int:
        """Number of slots whose gradients share one buffer."""
        return self.micro_batches // self.groups


@dataclass(frozen=True)
class OptimizerSpec:
    """Which update rule to apply to parameter chunks, and how.

    `max_norm` is the global gradient norm to clip to; 0 switches clipping off.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_norm: float = 0.0


@dataclass(frozen=True)
class WorkloadSpec:
    """A workload as an importable function (`"module:function"`) and its plain-data arguments."""

    factory: str
    arguments: Mapping[str, Any]

    def build(self) -> Workload:
        """Import the factory and call it in this process."""
        module, _, name = self.factory.partition(":")
        workload: Workload = getattr(importlib.import_module(module), name)(**self.arguments)
        return workload


@dataclass(frozen=True)
class StepStats:
    """What one step did. Losses are per target token, in nats.

    loss: the training objective (with label smoothing where configured).
    gradient_norm: before clipping.
    """

    index: int
    loss: float
    target_tokens: int
    source_tokens: int
    gradient_norm: float
    learning_rate: float


class Slot(Protocol):
    """One micro-batch, already on its device, with its dropout masks addressed by (seed, step, slot, layer)."""

    @property
    def target_tokens(self) -> int:
        """Number of target tokens whose losses are summed, the EOS of each sentence included."""

    @property
    def source_tokens(self) -> int:
        """Number of source tokens."""


class Stage(Protocol):
    """A part of the model that may live in another process than its neighbours.

    Stages run in order; what one returns, the next receives. The last returns `{"loss": ...}`, the slot's sum of token
    losses as a scalar tensor.
    """

    @property
    def name(self) -> str:
        """A stable name, used in maps and reports."""

    def __call__(self, slot: Any, carried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute this stage's share for `slot`; `carried` is empty for the first stage."""


class Workload(Protocol):
    """A training task, as a strategy sees it. Everything is a function of its arguments: nothing is consumed."""

    plan: BatchPlan
    optimizer: OptimizerSpec
    device: str

    def build_model(self) -> torch.nn.Module:
        """The model on its device with its first parameters: the same bits in every process."""

    def stages(self, model: torch.nn.Module) -> Sequence[Stage]:
        """The model's stages in order."""

    def slot_tokens(self, index: int) -> Sequence[int]:
        """Target tokens of each slot of step `index`, known without building the batch (0 for an empty slot)."""

    def slot(self, index: int, slot: int) -> Any:
        """Slot `slot` of step `index` (steps count from 1); see `Slot`."""

    def learning_rate(self, index: int) -> float:
        """Scheduled rate of step `index`."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which stages run (mixed precision or nothing)."""


class Strategy(Protocol):
    """Runs steps of a workload, in one process or many."""

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model and bring every process up."""

    def step(self, index: int, rate_scale: float = 1.0) -> StepStats:
        """Run step `index` (counted from 1) and apply its update.

        `rate_scale` multiplies the scheduled learning rate: what a plateau schedule learned from validation. An update
        whose loss or gradient norm is not finite is not applied; the returned stats show it.
        """

    def synchronize(self) -> None:
        """Wait until every step that was asked for is applied everywhere."""

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU: the same form whatever the strategy."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state()` returned, bit for bit."""

    def evaluation_model(self) -> AbstractContextManager[torch.nn.Module]:
        """The current model for decoding, in evaluation mode, complete in this process."""

    def close(self) -> None:
        """Stop every process. Safe to call twice."""
