"""A stage's parameters and optimizer state, and the copy of them at the next node, which is stepped the same way.

A node sends the gradient of its stages, before clipping, to the next one, and that node steps its copy with the same
arithmetic, the same norm and the same rate. So both have the same bits after each step, and nothing but the gradient
travels: P / N words a step. Which of the two is the stage's and which is the copy, only the placement says.

A gradient is never changed: what was sent from shared memory may still be read by the next node. Clipping takes place
in a copy of some chunks at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distributed.arithmetic import CHUNK, chunks, clip_, norm, square_sums
from distributed.optimizers import Optimizer
from distributed.ring_tmp.parts import Part
from distributed.ring_tmp.scalars import Decision
from distributed.strategy import OptimizerSpec


class PartState:
    """What a stage has learned, as flat buffers of its `Part`.

    Parameters
    ----------
    part: what the stage owns.
    optimizer, specification: the rule, and how gradients are clipped.
    lag: of the schedule; with 1, the parameters before the newest update are kept too.
    step: the newest step that is in it.
    """

    def __init__(self, part: Part, optimizer: Optimizer, specification: OptimizerSpec, lag: int, step: int = 0):
        self.part, self.step, self.updates = part, step, 0
        self._optimizer, self._specification = optimizer, specification
        self._versions = [torch.zeros(part.size) for _ in range(1 + lag)]
        self._moments = {slot: torch.zeros(part.size) for slot in optimizer.slots}

    @property
    def values(self) -> torch.Tensor:
        """The newest parameters [elements]."""
        return self.of_version(self.step)

    def of_version(self, version: int) -> torch.Tensor:
        """The parameters after so many steps [elements]: the newest, or with lag 1 those before them."""
        return self._versions[version % len(self._versions)]

    def buffers(self) -> list[torch.Tensor]:
        """All that is in it after its `step`: parameters, the newest first, then moments in their order."""
        versions = [self.of_version(self.step - age) for age in range(len(self._versions))]
        return [*versions, *self._moments.values()]

    def load(
        self,
        facts: Mapping[str, Any],
        values: Mapping[str, torch.Tensor],
        moments: Mapping[str, Mapping[str, torch.Tensor]],
        previous: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Fill it from a checkpoint, by parameter name and in their shapes.

        facts: what `facts` returned.
        moments: by the optimizer's slot.
        previous: with lag 1, the parameters before the newest update; where there are none, those after it.
        """
        self.take_facts(facts)
        for buffer in self._versions:
            of_buffer = values if buffer is self.values or previous is None else previous
            for name in self.part.views:
                self.part.view(buffer, name).copy_(of_buffer[name])
        for slot, buffer in self._moments.items():
            for name in self.part.views:
                self.part.view(buffer, name).copy_(moments[slot][name])

    def moments(self) -> Mapping[str, torch.Tensor]:
        """The optimizer's state [elements], by slot."""
        return self._moments

    def facts(self) -> dict[str, Any]:
        """What belongs to it beside its buffers, as plain data."""
        return {"step": self.step, "updates": self.updates}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """What `facts` returned where the buffers came from."""
        self.step, self.updates = facts["step"], facts["updates"]

    def apply(
        self, gradient: torch.Tensor, decision: Decision, rate: float, probe: bool = False
    ) -> torch.Tensor | None:
        """Step it by a gradient [elements], which is not changed; the step is the decision's, as an update or as none.

        Returns, with `probe`, what the step has taken from the parameters [elements].
        """
        before, values = self.values, self.of_version(decision.step)
        kept = before.clone() if probe else None
        if values is not before:
            values.copy_(before)
        if decision.is_update:
            self.updates += 1
            factors = self._factors(gradient, decision)
            with torch.no_grad():
                start = 0
                for some, part, *moments in chunks(values, gradient, *self._moments.values()):
                    scratch = part.clone()
                    clip_(scratch, decision.norm, self._specification.max_norm)
                    for first, last, factor in factors:
                        scratch[max(0, first - start) : max(0, last - start)].mul_(factor)
                    state = dict(zip(self._moments, moments, strict=True))
                    self._optimizer.apply(some, scratch, state, self.updates, rate)
                    start += len(part)
        self.step = decision.step
        return None if kept is None else kept.sub_(values)

    def _factors(self, gradient: torch.Tensor, decision: Decision) -> list[tuple[int, int, float]]:
        """For parameters that are clipped by themselves: where they are, and what their gradient is multiplied by."""
        found = []
        for name, most in self._specification.parameter_max_norms.items():
            if name not in self.part.views or not most:
                continue
            start = self.part.views[name][0]
            stop = start + self.part.view(gradient, name).numel()
            if name in decision.clips:
                own = decision.clips[name]
            else:
                # From the border of the chunk on, so that pieces end where they do in the whole buffer.
                scaled = gradient[start // CHUNK * CHUNK : stop].clone()
                clip_(scaled, decision.norm, self._specification.max_norm)
                own = norm(square_sums(scaled, start % CHUNK))
            if own > most:
                found.append((start, stop, most / own))
        return found
