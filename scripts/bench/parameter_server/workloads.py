"""Workloads that need no corpus; agents import them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distributed.strategy import BatchPlan, OptimizerSpec, Stage, WorkloadSpec

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.training.workload import TranslationWorkload

TENSORS = 8  # that the synthetic model's parameters are, of one length
RATE = 1e-3


@dataclass(frozen=True)
class EmptySlot:
    """A micro-batch of one token in which there is nothing to compute."""

    number: int
    target_tokens: int = 1
    source_tokens: int = 1

    def inner_square_sums(self) -> Mapping[str, Sequence[float]]:
        """None: there is nothing inside."""
        return {}


class _Nearly(torch.autograd.Function):
    """A loss of zero whose gradient is a constant for one tensor; filling all would be the cost of a computation."""

    @staticmethod
    def forward(ctx: Any, value: float, tensor: torch.Tensor) -> torch.Tensor:
        ctx.value, ctx.shape = value, tensor.shape
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *losses: torch.Tensor) -> tuple[Any, ...]:
        return None, torch.full((), ctx.value).expand(ctx.shape)


class EmptyModel(torch.nn.Module):
    """Parameters without a computation. Their gradient is zero but for the last tensor's."""

    def __init__(self, parameters: int):
        super().__init__()
        tensors = [torch.nn.Parameter(torch.zeros(parameters // TENSORS)) for _ in range(TENSORS)]
        self.tensors = torch.nn.ParameterList(tensors)

    def loss(self, slot: EmptySlot) -> torch.Tensor:
        """Zero, with a backward pass."""
        return _Nearly.apply(1e-3 * (slot.number + 1), self.tensors[-1])


@dataclass(frozen=True)
class _EmptyStage:
    model: EmptyModel
    name: str = "empty"
    couples: str = ""

    def parameter_names(self) -> Sequence[str]:
        return [name for name, _ in self.model.named_parameters()]

    def __call__(self, slot: EmptySlot, carried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.model.loss(slot)}


class EmptyWorkload:
    """Steps that compute nothing: what is left is communication, sums and updates.

    parameters: their number, a multiple of 8. slots: micro-batches and groups of a step. max_norm: 0 for no clipping.
    """

    device = "cpu"

    def __init__(self, parameters: int, slots: int, max_norm: float):
        self._parameters = parameters
        self.plan = BatchPlan(slots, slots)
        self.optimizer = OptimizerSpec("distributed.optimizers:Adam", {"epsilon_form": "torch"}, max_norm)

    def build_model(self) -> EmptyModel:
        """Zeros."""
        return EmptyModel(self._parameters)

    def stages(self, model: torch.nn.Module, fine: bool = False) -> Sequence[Stage]:
        """One."""
        assert isinstance(model, EmptyModel)
        return [_EmptyStage(model)]

    def slot_tokens(self, index: int) -> Sequence[int]:
        """One token a slot."""
        return [1] * self.plan.micro_batches

    def slot(self, index: int, slot: int, probe: bool = False) -> EmptySlot:
        """See `EmptySlot`."""
        return EmptySlot(slot)

    def learning_rate(self, index: int) -> float:
        """Constant."""
        return RATE

    def autocast(self) -> AbstractContextManager[Any]:
        """Nothing."""
        return nullcontext()


def empty_spec(parameters: int, slots: int, max_norm: float = 0.0) -> WorkloadSpec:
    """`EmptyWorkload` as a specification."""
    arguments = {"parameters": parameters, "slots": slots, "max_norm": max_norm}
    return WorkloadSpec("bench.parameter_server.workloads:EmptyWorkload", arguments)


def translation_spec(config: RunConfig) -> WorkloadSpec:
    """Training of a translation model on synthetic sentences that have the lengths of Multi30k's."""
    from nmt.config import to_dict

    return WorkloadSpec("bench.parameter_server.workloads:translation_workload", {"config": to_dict(config)})


def translation_workload(config: Mapping[str, Any]) -> TranslationWorkload:
    """The factory that `translation_spec` names."""
    from nmt.config import from_dict
    from nmt.profiling.synthetic import synthetic_data
    from nmt.training.device import prepare_arithmetic
    from nmt.training.workload import TranslationWorkload

    complete = from_dict(config)
    prepare_arithmetic("cpu", complete.deterministic)
    return TranslationWorkload(complete, "cpu", synthetic_data(vocabulary=complete.tokenizer.vocab_size))
