"""One process runs every slot of a step: the reference for all exact strategies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.arithmetic import (
    FlatParameters,
    PairwiseSum,
    chunks,
    clip_,
    clip_parameters_,
    norm,
    parameter_norms,
    square_sums,
)
from distributed.energy import EnergyOfHosts
from distributed.optimizers import build_optimizer
from distributed.process_meter import ProcessMeter
from distributed.state import from_state, to_state
from distributed.strategy import Probe, Slot, StepStats, Workload, WorkloadSpec


@dataclass
class _Totals:
    """What a step's slots add up to, beside the gradient; `inner` as in `Slot.inner_square_sums`."""

    losses: list[torch.Tensor] = field(default_factory=list)
    source_tokens: int = 0
    inner: dict[str, list[float]] = field(default_factory=dict)

    def add(self, slot: Slot, loss: torch.Tensor, probe: bool) -> None:
        self.losses.append(loss)
        self.source_tokens += slot.source_tokens
        if probe:
            for name, sums in slot.inner_square_sums().items():
                self.inner.setdefault(name, []).extend(sums)


class SingleStrategy:
    """The canonical step of `distributed.strategy`, slot after slot. Options are of no concern to one process."""

    def __init__(self, options: Mapping[str, Any] | None = None):
        self._last = 0

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model and the optimizer's buffers."""
        self.workload: Workload = spec.build()
        self._meter, self._energy = ProcessMeter(self.workload.device), EnergyOfHosts()
        self.model = self.workload.build_model()
        self.stages = self.workload.stages(self.model)
        self.flat = FlatParameters(self.model)
        self.optimizer = build_optimizer(self.workload.optimizer)
        self.moments = {slot: torch.zeros_like(self.flat.values) for slot in self.optimizer.slots}
        self.updates = 0

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """Run step `index`; an update whose loss or gradient norm is not finite is not applied."""
        self._last = index
        workload, specification = self.workload, self.workload.optimizer
        tokens = workload.slot_tokens(index)
        totals = _Totals()
        gradient = self._gradient(index, tokens, totals, probe)
        gradient_norm = norm(square_sums(gradient))
        loss_per_token = math.fsum(torch.stack(totals.losses).tolist()) / sum(tokens)
        rate = workload.learning_rate(index) * rate_scale
        gradients = parameter_norms(self.flat, gradient) if probe else {}
        before = self.flat.new_buffer().copy_(self.flat.values) if probe else None
        if math.isfinite(gradient_norm) and math.isfinite(loss_per_token):
            clip_(gradient, gradient_norm, specification.max_norm)
            clip_parameters_(self.flat, gradient, specification.parameter_max_norms)
            self._update(gradient, rate)
        self.flat.release(gradient)
        seen = None
        if before is not None:
            updates = parameter_norms(self.flat, before.sub_(self.flat.values))
            self.flat.release(before)
            seen = Probe(gradients, updates, {name: norm(sums) for name, sums in totals.inner.items()})
        return StepStats(
            index=index,
            loss=loss_per_token,
            target_tokens=sum(tokens),
            source_tokens=totals.source_tokens,
            gradient_norm=gradient_norm,
            learning_rate=rate,
            probe=seen,
        )

    def halt(self) -> int:
        """The last step that was asked for: none is ever begun before."""
        return self._last

    def synchronize(self) -> None:
        """Nothing is ever outstanding."""

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU."""
        return to_state(self.flat, self.flat.values, self.moments, self.updates)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state()` returned, bit for bit."""
        self.updates = from_state(state, self.flat, self.flat.values, self.moments)

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        """The model itself: it has no mode, since dropout is handed in."""
        with torch.inference_mode():
            yield self.model

    def journals(self) -> Mapping[str, bytes]:
        """None: a step tells all there is to tell."""
        return {}

    def report(self) -> Mapping[str, Any]:
        """The energy of this host."""
        said = self._meter.to_dict()
        self._energy.add([("the run", said["host"], said["energy"])])
        return {"energy": self._energy.to_dict()}

    def close(self) -> None:
        """Nothing to stop."""

    def _gradient(self, index: int, tokens: Sequence[int], totals: _Totals, probe: bool) -> torch.Tensor:
        """The step's gradient as a flat buffer, by the canonical tree."""
        workload, plan = self.workload, self.workload.plan
        target_tokens = sum(tokens)
        tree = PairwiseSum(self.flat)
        for group in range(plan.groups):
            self.flat.collect_into(self.flat.new_buffer())
            first = group * plan.slots_per_group
            for number in range(first, first + plan.slots_per_group):
                if not tokens[number]:
                    continue
                slot = workload.slot(index, number, probe)
                with workload.autocast():
                    loss = self._loss(slot)
                (loss / target_tokens).backward()
                totals.add(slot, loss.detach(), probe)
            tree.add(self.flat.gradient)
        return tree.result()

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
