"""The same stages in torch's own pipeline: `torch.distributed.pipelining` over gloo."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as gloo
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from bench.parameter_server.workloads import RATE
from distributed.strategy import Stage, Workload, WorkloadSpec


class _Range(torch.nn.Module):
    """Neighbouring stages of a workload's model as a module from tensors to tensors, in the order of their names.

    Micro-batches come to it in ascending order; what of them is no activation, it takes from the workload as nodes of
    our ring do.
    """

    def __init__(self, workload: Workload, model: torch.nn.Module, stages: Sequence[Stage], reads: Sequence[str]):
        super().__init__()
        names = {name for stage in stages for name in stage.parameter_names()}
        self.own = torch.nn.ParameterList(one for name, one in model.named_parameters() if name in names)
        self._workload, self._stages, self._reads = workload, stages, reads
        self._step = self._slot = self._tokens = 0

    def begin(self, step: int) -> None:
        """The next micro-batch is the first of a step."""
        self._step, self._slot, self._tokens = step, 0, sum(self._workload.slot_tokens(step))

    def forward(self, *arrived: torch.Tensor) -> Any:
        """What is handed on; behind the last stage the micro-batch's share of the step's loss, [1]."""
        slot = self._workload.slot(self._step, self._slot)
        self._slot += 1
        carried = dict(zip(self._reads, arrived, strict=True)) if self._reads else {}
        with self._workload.autocast():
            for stage in self._stages:
                carried = stage(slot, carried)
        if "loss" in carried:
            return (carried["loss"] / self._tokens).reshape(1)
        return tuple(carried[name].contiguous() for name in sorted(carried))


class TorchPipeline:
    """The training loop of torch's tutorials: `Schedule1F1B`, the norm over all ranks, fused Adam.

    counts: fine stages of each rank.
    """

    def __init__(self, rank: int, size: int, spec: WorkloadSpec, counts: Sequence[int]):
        self._workload = workload = spec.build()
        model = workload.build_model(fine=True)
        stages = workload.stages(model, fine=True)
        runs = [stages[start:stop] for start, stop in pairwise([0, *accumulate(counts)])]
        borders = self._borders(runs)
        self._module = _Range(workload, model, runs[rank], sorted(borders[rank]))
        self._rank, self._last, slots = rank, size - 1, workload.plan.micro_batches
        self._numbers = torch.zeros(slots, 1)  # what torch cuts into micro-batches where nothing arrives
        examples = [[one[name].requires_grad_() for name in sorted(one)] for one in borders]
        stage = PipelineStage(
            self._module,
            rank,
            size,
            torch.device("cpu"),
            input_args=tuple(examples[rank]) if rank else (self._numbers[:1],),
            output_args=tuple(examples[rank + 1]) if rank < self._last else (torch.zeros(1).requires_grad_(),),
        )
        self._schedule = Schedule1F1B(stage, slots, loss_fn=lambda output, _: output.sum(), scale_grads=False)
        options = workload.optimizer.options
        self._optimizer = torch.optim.Adam(
            self._module.parameters(), lr=RATE, betas=(options["beta1"], options["beta2"]), fused=True
        )

    def step(self, index: int) -> None:
        """See `Loop.step`."""
        self._optimizer.zero_grad(set_to_none=False)
        self._module.begin(index)
        if self._rank == self._last:
            losses: list[torch.Tensor] = []
            self._schedule.step(target=self._numbers, losses=losses, return_outputs=False)
        elif self._rank:
            self._schedule.step(return_outputs=False)
        else:
            self._schedule.step(self._numbers, return_outputs=False)
        if self._workload.optimizer.max_norm:
            self._clip()
        self._optimizer.step()

    def _clip(self) -> None:
        own = list(self._module.parameters())
        norm = torch.nn.utils.get_total_norm([one.grad for one in own if one.grad is not None])
        square = norm * norm
        gloo.all_reduce(square)
        torch.nn.utils.clip_grads_with_norm_(own, self._workload.optimizer.max_norm, square.sqrt())

    def _borders(self, runs: Sequence[Sequence[Stage]]) -> list[dict[str, torch.Tensor]]:
        """By rank, tensors of the shapes that arrive there."""
        slot, carried, found = self._workload.slot(1, 0), {}, []
        with torch.no_grad(), self._workload.autocast():
            for run in runs:
                found.append({name: torch.zeros(one.shape, dtype=one.dtype) for name, one in carried.items()})
                for stage in run:
                    carried = stage(slot, carried)
        return found
