"""The process of a worker whose buckets are summed by torch.distributed: gloo or NCCL."""

from __future__ import annotations

from typing import Any

import torch

from distributed.ddp.worker import Worker
from distributed.gradients import NodeGradients
from distributed.shards import MIB, cut


class EngineWorker(Worker):
    """Worker `job.number`: hands each bucket to the engine as soon as the backward pass has completed it.

    The buckets are those of the engine `own`, and are begun in the order of their numbers, which all workers share.
    """

    def _prepare_sums(self, bucket_mib: int) -> None:
        self._pieces = cut(self._flat.values.numel(), 1, bucket_mib * MIB).pieces
        self._gradients = NodeGradients(self._workload, self._model, self._flat, self._pieces, lambda pieces: None)

    def _gradient(self, step: int, tokens: int, probe: bool) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
        """Bring the step's whole gradient into the parameters; returns what the parent's does."""
        self._faults.reach("forward", step)
        ready: set[int] = set()
        sums: list[Any] = []

        def begin(index: int, gradient: torch.Tensor) -> None:
            self._faults.reach("backward", step)
            ready.add(index)
            while len(sums) in ready:
                sums.append(self._group.allreduce([self._pieces[len(sums)].of(gradient)]))

        each = self._workload.plan.slots_per_group
        leaves, gradient = self._gradients.compute(
            step, (self._slots.start // each, self._slots.stop // each), probe, begin
        )
        losses = [loss for leaf in leaves.values() for loss in leaf.losses]
        total = gradient.new_zeros(1, dtype=torch.float64)
        for loss in losses:
            total += loss
        sums.append(self._group.allreduce([total]))
        with self._timeline.main.wait_recv:
            for one in sums:
                one.wait()
        for name, parameter in self._model.named_parameters():
            parameter.grad = self._flat.view(gradient, name)
        self._flat.release(gradient)  # it is used again when the next step begins
        inner: dict[str, list[float]] = {}
        for leaf in leaves.values():
            for name, own in leaf.inner.items():
                inner.setdefault(name, []).extend(own)
        facts = {"tokens": tokens, "source_tokens": sum(leaf.source_tokens for leaf in leaves.values()), "inner": inner}
        return torch.tensor(losses), facts, total
