"""One process runs every slot of a step: the reference for all exact strategies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from distributed.arithmetic import FlatParameters, PairwiseSum, chunks, clip_, norm, square_sums
from distributed.optimizers import build_optimizer
from distributed.strategy import StepStats, Workload, WorkloadSpec


class SingleStrategy:
    """The canonical step of `distributed.strategy`, slot after slot."""

    exact = True

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model and the optimizer's buffers."""
        self.workload: Workload = spec.build()
        self.model = self.workload.build_model()
        self.stages = self.workload.stages(self.model)
        self.flat = FlatParameters(self.model)
        self.optimizer = build_optimizer(self.workload.optimizer)
        self.moments = {slot: torch.zeros_like(self.flat.values) for slot in self.optimizer.slots}
        self.updates = 0

    def step(self, index: int, rate_scale: float = 1.0) -> StepStats:
        """Run step `index`; an update whose loss or gradient norm is not finite is not applied."""
        workload, plan = self.workload, self.workload.plan
        tokens = workload.slot_tokens(index)
        target_tokens = sum(tokens)
        losses: list[torch.Tensor] = []
        source_tokens = 0
        tree = PairwiseSum(self.flat)
        for group in range(plan.groups):
            self.flat.collect_into(self.flat.new_buffer())
            first = group * plan.slots_per_group
            for number in range(first, first + plan.slots_per_group):
                if not tokens[number]:
                    continue
                slot = workload.slot(index, number)
                with workload.autocast():
                    loss = self._loss(slot)
                (loss / target_tokens).backward()
                losses.append(loss.detach())
                source_tokens += slot.source_tokens
            tree.add(self.flat.gradient)
        gradient = tree.result()
        gradient_norm = norm(square_sums(gradient))
        loss_per_token = math.fsum(torch.stack(losses).tolist()) / target_tokens
        rate = workload.learning_rate(index) * rate_scale
        if math.isfinite(gradient_norm) and math.isfinite(loss_per_token):
            clip_(gradient, gradient_norm, workload.optimizer.max_norm)
            self._update(gradient, rate)
        self.flat.release(gradient)
        return StepStats(
            index=index,
            loss=loss_per_token,
            target_tokens=target_tokens,
            source_tokens=source_tokens,
            gradient_norm=gradient_norm,
            learning_rate=rate,
        )

    def synchronize(self) -> None:
        """Nothing is ever outstanding."""

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU."""
        return {
            "parameters": self.flat.views(self.flat.values.detach().cpu().clone()),
            "optimizer": {slot: self.flat.views(buffer.cpu().clone()) for slot, buffer in self.moments.items()},
            "updates": self.updates,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state()` returned, bit for bit."""
        self._load(self.flat.values, state["parameters"])
        for slot, buffer in self.moments.items():
            self._load(buffer, state["optimizer"][slot])
        self.updates = int(state["updates"])

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        """The model itself: it has no mode, since dropout is handed in."""
        with torch.inference_mode():
            yield self.model

    def close(self) -> None:
        """Nothing to stop."""

    def _loss(self, slot: Any) -> torch.Tensor:
        carried: dict[str, torch.Tensor] = {}
        for stage in self.stages:
            carried = stage(slot, carried)
        return carried["loss"]

    def _update(self, gradient: torch.Tensor, rate: float) -> None:
        self.updates += 1
        with torch.no_grad():
            for values, part, *moments in chunks(self.flat.values, gradient, *self.moments.values()):
                state = dict(zip(self.moments, moments, strict=True))
                self.optimizer.apply(values, part, state, self.updates, rate)

    def _load(self, buffer: torch.Tensor, named: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, view in self.flat.views(buffer).items():
                view.copy_(named[name])
