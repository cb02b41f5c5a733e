"""A workload of several stages that costs next to nothing, for rings of nodes; processes import it by name."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import nmt  # noqa: F401  (it sets how products are rounded, in every process that builds a workload)
from distributed.strategy import BatchPlan, OptimizerSpec, WorkloadSpec
from nmt.models.watch import GradientWatch

UNITS, WORDS = 40, 900
CLIPPING: dict[str, Any] = {"max_norm": 0.05, "parameter_max_norms": {"layers.2": 0.01, "output": 0.02}}


def staged_spec(
    stages: int = 6,
    fails: str = "",
    bad_step: int = 0,
    shared: bool = False,
    units: int = UNITS,
    words: int = WORDS,
    groups: int = 3,
    each: int = 2,
) -> WorkloadSpec:
    """`stages` stages, the last with the loss.

    fails: `build` or a step, where all processes but the test's fail.
    bad_step: whose loss is not finite.
    shared: the first and the last stage read the same table.
    units, words: a layer is [units, units], the output table [words, units].
    groups: of `each` slots.
    """
    return WorkloadSpec(
        "staged_toy:StagedToy",
        {
            "stages": stages,
            "fails": fails,
            "bad_step": bad_step,
            "shared": shared,
            "units": units,
            "words": words,
            "groups": groups,
            "each": each,
        },
    )


class StagedModel(torch.nn.Module):
    """Layers, and an output table that has chunks of its own and ends in one that it shares."""

    def __init__(self, stages: int, units: int, words: int, is_outline: bool = False) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)

        def drawn(*shape: int) -> torch.nn.Parameter:
            if is_outline:
                return torch.nn.Parameter(torch.empty(shape, device="meta"))
            return torch.nn.Parameter(torch.randn(shape, generator=random) / units**0.5)

        self.output = drawn(words, units)
        self.layers = torch.nn.ParameterList(drawn(units, units) for _ in range(stages - 1))


@dataclass
class StagedSlot:
    """Random sentences of a slot; the layers' dropout masks follow from its address."""

    inputs: Tensor
    words: Tensor
    seed: int
    factor: float
    watch: GradientWatch | None = None

    @property
    def target_tokens(self) -> int:
        return len(self.words)

    @property
    def source_tokens(self) -> int:
        return 2 * len(self.words)

    def inner_square_sums(self) -> Mapping[str, Sequence[float]]:
        return self.watch.square_sums() if self.watch else {}

    def mask(self, layer: int) -> Tensor:
        random = torch.Generator().manual_seed(self.seed * 100 + layer)
        return (torch.rand(self.inputs.shape, generator=random) < 0.8) / 0.8


@dataclass
class Layer:
    """tanh(h W) with dropout, beside which the first inputs are handed on to the last stage."""

    number: int
    model: StagedModel
    shared: bool = False
    couples: str = ""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"layer {self.number}"

    def parameter_names(self) -> Sequence[str]:
        return [*(["output"] if self.shared else []), f"layers.{self.number}"]

    def __call__(self, slot: StagedSlot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        h = carried["h"] if carried else slot.inputs
        if self.shared:
            h = h + self.model.output[slot.words % 7]
        out = torch.tanh(h @ self.model.layers[self.number]) * slot.mask(self.number)
        if slot.watch is not None:
            slot.watch("even" if self.number % 2 == 0 else "odd", out)
        return {"h": out, "first": carried.get("first", out)}


@dataclass
class Output:
    model: StagedModel
    couples: str = ""
    name: str = "output"

    def parameter_names(self) -> Sequence[str]:
        return ["output"]

    def __call__(self, slot: StagedSlot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = (carried["h"] + carried["first"]) @ self.model.output.T
        return {"loss": functional.cross_entropy(logits, slot.words, reduction="sum") * slot.factor}


class StagedToy:
    """See `staged_spec`; slot 1 of every second step is empty."""

    device = "cpu"

    def __init__(
        self, stages: int, fails: str, bad_step: int, shared: bool, units: int, words: int, groups: int, each: int
    ):
        self.plan = BatchPlan(each * groups, groups)
        self.optimizer = OptimizerSpec("distributed.optimizers:Adam", {"epsilon": 1e-8}, **CLIPPING)
        self._stages, self._bad_step, self._shared = stages, bad_step, shared
        self._units, self._words = units, words
        self._fails = fails if multiprocessing.parent_process() is not None else ""
        if self._fails == "build":
            raise ValueError("this toy cannot be built here")

    def build_model(self, fine: bool = False) -> torch.nn.Module:
        return StagedModel(self._stages, self._units, self._words)

    def outline(self, fine: bool = True) -> torch.nn.Module:
        return StagedModel(self._stages, self._units, self._words, is_outline=True)

    def first_values(self, name: str, start: int, stop: int) -> Tensor:
        random, wanted = torch.Generator().manual_seed(1), torch.empty(0)
        for own, parameter in self.outline().named_parameters():  # in the order in which they are drawn
            drawn = torch.randn(parameter.shape, generator=random) / self._units**0.5
            if own == name:
                wanted = drawn.view(-1)[start:stop].clone()
        return wanted

    def stages(self, model: torch.nn.Module, fine: bool = False) -> Sequence[Layer | Output]:
        assert isinstance(model, StagedModel)
        layers = [Layer(number, model, self._shared and not number) for number in range(self._stages - 1)]
        return [*layers, Output(model)]

    def slot_tokens(self, index: int) -> Sequence[int]:
        return [
            0 if slot == 1 and index % 2 == 0 else 1 + (index + 3 * slot) % 5 for slot in range(self.plan.micro_batches)
        ]

    def slot(self, index: int, slot: int, probe: bool = False) -> StagedSlot:
        if self._fails == str(index):
            raise ValueError(f"this toy breaks at step {index}")
        seed = 1000 * index + slot
        random = torch.Generator().manual_seed(seed)
        tokens = self.slot_tokens(index)[slot]
        inputs = torch.randn(tokens, self._units, generator=random)
        words = torch.randint(self._words, (tokens,), generator=random)
        factor = math.inf if index == self._bad_step else 1.0
        return StagedSlot(inputs, words, seed, factor, GradientWatch() if probe else None)

    def learning_rate(self, index: int) -> float:
        return 0.01 / index

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()
