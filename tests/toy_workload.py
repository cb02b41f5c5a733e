"""A workload that costs next to nothing, for tests of what happens around steps; processes import it by name."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import nmt  # noqa: F401  (it sets how products are rounded, in every process that builds a workload)
from distributed.strategy import BatchPlan, OptimizerSpec, WorkloadSpec

UNITS, WORDS = 160, 640  # 128,000 parameters: four chunks, so that each of three servers has some
CLIPPING = {"max_norm": 0.05, "parameter_max_norms": {}}
BOTH_CLIPPINGS = {"max_norm": 0.05, "parameter_max_norms": {"output": 0.01}}


def workload_spec(groups: int = 4, clipping: Mapping[str, Any] = CLIPPING, fails: str = "") -> WorkloadSpec:
    """`groups` groups of two slots; `fails`: `build` or a step, where all processes but the test's fail."""
    return WorkloadSpec("toy_workload:ToyWorkload", {"groups": groups, "clipping": clipping, "fails": fails})


class ToyModel(torch.nn.Module):
    """Two tables that two stages read."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.hidden = torch.nn.Parameter(torch.randn(UNITS, UNITS, generator=random) / UNITS**0.5)
        self.output = torch.nn.Parameter(torch.randn(WORDS, UNITS, generator=random) / UNITS**0.5)


@dataclass
class ToySlot:
    """Random sentences of a slot, with a dropout mask of their own [tokens, UNITS]."""

    inputs: torch.Tensor
    words: torch.Tensor
    mask: torch.Tensor

    @property
    def target_tokens(self) -> int:
        return len(self.words)

    @property
    def source_tokens(self) -> int:
        return 2 * len(self.words)

    def inner_square_sums(self) -> Mapping[str, Sequence[float]]:
        return {}


@dataclass
class Stage:
    name: str
    model: ToyModel
    couples: str = ""

    def parameter_names(self) -> Sequence[str]:
        return [self.name]

    def __call__(self, slot: ToySlot, carried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.name == "hidden":
            return {"hidden": torch.tanh(slot.inputs @ self.model.hidden) * slot.mask}
        logits = carried["hidden"] @ self.model.output.T
        return {"loss": functional.cross_entropy(logits, slot.words, reduction="sum")}


class ToyWorkload:
    """See `workload_spec`."""

    device = "cpu"

    def __init__(self, groups: int, clipping: Mapping[str, Any], fails: str):
        self.plan = BatchPlan(2 * groups, groups)
        self.optimizer = OptimizerSpec("distributed.optimizers:Adam", {"epsilon": 1e-8}, **clipping)
        self._fails = fails if multiprocessing.parent_process() is not None else ""
        if self._fails == "build":
            raise ValueError("this toy cannot be built here")

    def build_model(self) -> torch.nn.Module:
        return ToyModel()

    def stages(self, model: torch.nn.Module, fine: bool = False) -> Sequence[Stage]:
        assert isinstance(model, ToyModel)
        return [Stage("hidden", model), Stage("output", model)]

    def slot_tokens(self, index: int) -> Sequence[int]:
        return [1 + (index + 3 * slot) % 5 for slot in range(self.plan.micro_batches)]

    def slot(self, index: int, slot: int, probe: bool = False) -> ToySlot:
        if self._fails == str(index):
            raise ValueError(f"this toy breaks at step {index}")
        random = torch.Generator().manual_seed(1000 * index + slot)
        tokens = self.slot_tokens(index)[slot]
        inputs = torch.randn(tokens, UNITS, generator=random)
        words = torch.randint(WORDS, (tokens,), generator=random)
        return ToySlot(inputs, words, (torch.rand(tokens, UNITS, generator=random) < 0.8) / 0.8)

    def learning_rate(self, index: int) -> float:
        return 0.01 / index

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()
