"""What a seat owns of the model, and what all nodes make of what seats say of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.arithmetic import CHUNK, chunks, norm, square_sums
from distributed.optimizers import build_optimizer
from distributed.ring_rotate.plan import RotationPlan
from distributed.strategy import OptimizerSpec

Said = Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """What is done with a step, computed from the same facts by every node.

    norm: of the whole gradient, before clipping.
    factor: by which gradients are multiplied so that the whole is not too long; 1.0: they are left as they are.
    own_factors: by parameter that is clipped by itself, the same for what is left of it.
    rate: the learning rate.
    finite: whether it is an update at all.
    """

    norm: float
    loss: float
    rate: float
    factor: float = 1.0
    own_factors: Mapping[str, float] = field(default_factory=dict)
    finite: bool = True
    probe: bool = False


def decide(said: Sequence[Said], specification: OptimizerSpec) -> Decision:
    """The decision, from what was said of all seats, in their order.

    Each says `squares`, the square sum of its shard's gradient; `clipped` and, in a probed step, `probed`, the square
    sums of what it has of parameters, by name; and of its share `tokens` (of the whole step), `rate`, and by group of
    micro-batches the `losses`.
    """
    whole = norm([one["squares"] for one in said])
    losses = [float(loss) for one in said for leaf in one["leaves"].values() for loss in leaf["losses"]]
    loss = math.fsum(losses) / said[0]["tokens"]
    most = specification.max_norm
    factor = most / whole if most and whole > most else 1.0
    own_factors = {}
    for name, limit in specification.parameter_max_norms.items():
        own = norm_of(said, "clipped", name) * factor
        if limit and own > limit:
            own_factors[name] = limit / own
    finite = math.isfinite(whole) and math.isfinite(loss)
    return Decision(whole, loss, said[0]["rate"], factor, own_factors, finite, said[0]["probe"])


def norm_of(said: Sequence[Said], what: str, name: str) -> float:
    """The norm of something of a parameter, from the square sums that seats say by parameter's name."""
    return norm([one[what][name] for one in said if name in one[what]])


class Shard:
    """Parameters and optimizer state of a seat, as flat buffers.

    Parameters
    ----------
    plan, seat: which.
    specification: the rule, and how gradients are clipped.
    """

    def __init__(self, plan: RotationPlan, seat: int, specification: OptimizerSpec):
        self._rule = build_optimizer(specification)
        elements = plan.shard_elements(seat)
        self.values = torch.zeros(elements)
        """[elements]"""
        self.moments = {slot: torch.zeros(elements) for slot in self._rule.slots}
        self.updates = 0
        """How many were made."""
        self._parameters = plan.parameters_of(seat)
        self._scratch = torch.empty(0)

    @property
    def buffers(self) -> list[torch.Tensor]:
        """All that is in it: parameters, then moments in their order."""
        return [self.values, *self.moments.values()]

    def square_sum(self, buffer: torch.Tensor) -> float:
        """The square sum of a buffer [elements], in fp64; not finite where an element is not."""
        return _total(square_sums(buffer))

    def squares(self, buffer: torch.Tensor, names: Sequence[str] | None = None) -> dict[str, float]:
        """By parameter, the square sum of what a buffer [elements] has of it; of those named, or of all."""
        wanted = self._parameters if names is None else [name for name in names if name in self._parameters]
        return {
            name: _total(one for start, stop in self._parameters[name] for one in square_sums(buffer, start, stop))
            for name in wanted
        }

    def apply(self, gradient: torch.Tensor, decision: Decision) -> torch.Tensor | None:
        """Step it by a gradient [elements], which stays as it is; nothing is done where the decision is not finite.

        Returns, in a probed step, what was taken from the parameters [elements].
        """
        before = self.values.clone() if decision.probe else None
        if decision.finite:
            self.updates += 1
            with torch.no_grad():
                start = 0
                for values, part, *moments in chunks(self.values, gradient, *self.moments.values(), size=8 * CHUNK):
                    part = self._clipped(part, start, decision)
                    state = dict(zip(self.moments, moments, strict=True))
                    self._rule.apply(values, part, state, self.updates, decision.rate)
                    start += len(values)
        return None if before is None else before.sub_(self.values)

    def _clipped(self, part: torch.Tensor, start: int, decision: Decision) -> torch.Tensor:
        """Elements of a gradient from `start` on, in memory of their own where they are clipped."""
        ranges = [
            (max(first - start, 0), min(last - start, len(part)), factor)
            for name, factor in decision.own_factors.items()
            for first, last in self._parameters.get(name, [])
            if first < start + len(part) and start < last
        ]
        if decision.factor == 1.0 and not ranges:
            return part
        if self._scratch.numel() < part.numel():
            self._scratch = torch.empty_like(part)
        clipped = torch.mul(part, decision.factor, out=self._scratch[: part.numel()])
        for first, last, factor in ranges:
            clipped[first:last].mul_(factor)
        return clipped


def _total(sums: Iterable[float]) -> float:
    known = list(sums)
    return math.fsum(known) if all(map(math.isfinite, known)) else sum(known)  # nan and inf pass through


def scatter(plan: RotationPlan, seat: int, buffer: torch.Tensor, whole: torch.Tensor) -> None:
    """Write a buffer of a seat's shard to its places of a flat buffer of the whole model."""
    for one in plan.copies[seat]:
        whole[one.whole : one.whole + one.elements] = buffer[one.offset : one.offset + one.elements]


def gathered(plan: RotationPlan, seat: int, whole: torch.Tensor) -> torch.Tensor:
    """What of a flat buffer of the whole model belongs to a seat's shard, as a buffer of its own."""
    found = torch.zeros(plan.shard_elements(seat))
    for one in plan.copies[seat]:
        found[one.offset : one.offset + one.elements] = whole[one.whole : one.whole + one.elements]
    return found
