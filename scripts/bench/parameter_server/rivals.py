"""What is done over gloo instead of a parameter server: an all-reduce with a local update, and torch's DDP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as gloo
from torch.nn.parallel import DistributedDataParallel

from bench.parameter_server.workloads import RATE
from distributed.strategy import Workload, WorkloadSpec


class AllReduce:
    """The sum of a flat gradient over all members, and fused Adam on all of it, in every member.

    The gradient stays zero, so that sums of sums do not overflow, and no buffer has to be set to zero.
    """

    def __init__(self, rank: int, size: int, parameters: int, max_norm: float):
        self._max_norm = max_norm
        self._values = torch.zeros(parameters).fill_(0.0).requires_grad_()  # written, so that its pages are there
        self._values.grad = torch.zeros(parameters).fill_(0.0)
        self._optimizer = torch.optim.Adam([self._values], lr=RATE, fused=True)

    def step(self, index: int) -> None:
        """See `Loop.step`."""
        assert self._values.grad is not None
        gloo.all_reduce(self._values.grad)
        if self._max_norm:
            torch.nn.utils.clip_grad_norm_([self._values], self._max_norm)
        self._optimizer.step()


class _SlotLoss(torch.nn.Module):
    """A workload's model as a module that takes a slot, the form in which DDP wants it."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.model = workload.build_model()
        self._workload = workload
        self._stages = workload.stages(self.model)

    def forward(self, slot: Any) -> torch.Tensor:
        carried: Mapping[str, torch.Tensor] = {}
        with self._workload.autocast():
            for stage in self._stages:
                carried = stage(slot, carried)
        return carried["loss"]


class TorchDdp:
    """The training loop of torch's tutorials, on the slots of a workload: DDP, `clip_grad_norm_`, fused Adam.

    A step's slots are shared among the members in ranges of neighbours, as the parameter server's workers share them.
    """

    def __init__(self, rank: int, size: int, spec: WorkloadSpec):
        self._workload = workload = spec.build()
        share = workload.plan.micro_batches // size
        self._slots, self._size = range(rank * share, (rank + 1) * share), size
        self._module = DistributedDataParallel(_SlotLoss(workload), gradient_as_bucket_view=True)
        options = workload.optimizer.options
        self._optimizer = torch.optim.Adam(
            self._module.parameters(), lr=RATE, betas=(options["beta1"], options["beta2"]), fused=True
        )

    def step(self, index: int) -> None:
        """See `Loop.step`."""
        self._optimizer.zero_grad(set_to_none=False)
        tokens = sum(self._workload.slot_tokens(index))
        for slot in self._slots:
            self._module.require_backward_grad_sync = slot == self._slots[-1]
            loss = self._module(self._workload.slot(index, slot))
            (loss * self._size / tokens).backward()  # DDP takes the mean over members
        if self._workload.optimizer.max_norm:
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._workload.optimizer.max_norm)
        self._optimizer.step()
