"""What nodes among which parameters rotate are to come to, computed by one process that holds everything.

The rule: a share is the sum of its slots one by one; of each unit, segment s is the sum of the shares from share s on,
round the ring; lengths are made of a square sum for each shard. Then the usual update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distributed.arithmetic import FlatParameters, chunks, norm, square_sums
from distributed.optimizers import build_optimizer
from distributed.ring.segments import segments
from distributed.ring_rotate.computation import plan_of
from distributed.ring_rotate.plan import RotationPlan, Unit
from distributed.ring_rotate.shard import gathered
from distributed.slot_tree import shares
from distributed.state import to_state
from distributed.strategy import StepStats, WorkloadSpec


@dataclass
class Outcome:
    """Of some steps."""

    stats: list[StepStats]
    state: dict[str, Any]
    buffers: list[torch.Tensor]
    """Of the whole model [elements]: parameters, then moments."""


def by_the_rule(spec: WorkloadSpec, seats: Sequence[int]) -> Outcome:
    """Steps with so many nodes each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Rule(spec).outcome(seats)
    finally:
        torch.set_num_threads(threads)


class _Rule:
    def __init__(self, spec: WorkloadSpec):
        self.workload = spec.build()
        self.model = self.workload.build_model()
        self.flat = FlatParameters(self.model)
        self.rule = build_optimizer(self.workload.optimizer)
        self.buffers = [self.flat.values, *(torch.zeros_like(self.flat.values) for _ in self.rule.slots)]

    def outcome(self, seats: Sequence[int]) -> Outcome:
        stats = [self.step(step, plan_of(self.workload, count)[0]) for step, count in enumerate(seats, start=1)]
        moments = dict(zip(self.rule.slots, self.buffers[1:], strict=True))
        return Outcome(stats, to_state(self.flat, self.flat.values, moments, len(stats)), self.buffers)

    def step(self, index: int, plan: RotationPlan) -> StepStats:
        tokens, specification = self.workload.slot_tokens(index), self.workload.optimizer
        losses: list[float] = []
        source_tokens = 0
        of_shares = []
        each = self.workload.plan.slots_per_group
        for leaves in shares(self.workload.plan.groups, plan.seats):
            self.flat.collect_into(torch.zeros_like(self.flat.values))
            for number in range(leaves.start * each, leaves.stop * each):
                if tokens[number]:
                    slot = self.workload.slot(index, number)
                    carried: dict[str, torch.Tensor] = {}
                    for stage in self.workload.stages(self.model):
                        carried = stage(slot, carried)
                    (carried["loss"] / sum(tokens)).backward()
                    losses.append(carried["loss"].item())
                    source_tokens += slot.source_tokens
            of_shares.append(self.flat.gradient)
        gradient = torch.zeros_like(self.flat.values)
        for unit in plan.units:
            _put(unit, _ring_sum([_of_unit(unit, one) for one in of_shares]), gradient)
        own = [gathered(plan, seat, gradient) for seat in range(plan.seats)]
        length = norm([math.fsum(square_sums(one)) for one in own])
        most = specification.max_norm
        factor = most / length if most and length > most else 1.0
        clipped = gradient * factor if factor != 1.0 else gradient
        for name, limit in specification.parameter_max_norms.items():
            of_seats = [
                math.fsum(total for first, last in ranges for total in square_sums(own[seat], first, last))
                for seat in range(plan.seats)
                for ranges in [plan.parameters_of(seat).get(name)]
                if ranges
            ]
            if norm(of_seats) * factor > limit:
                self.flat.view(clipped, name).mul_(limit / (norm(of_seats) * factor))
        rate = self.workload.learning_rate(index)
        with torch.no_grad():
            for values, part, *moments in chunks(self.flat.values, clipped, *self.buffers[1:]):
                self.rule.apply(values, part, dict(zip(self.rule.slots, moments, strict=True)), index, rate)
        loss = math.fsum(losses) / sum(tokens)
        return StepStats(index, loss, sum(tokens), source_tokens, length, rate)


def _of_unit(unit: Unit, whole: torch.Tensor) -> torch.Tensor:
    """What of a flat buffer of the whole model is a unit's, as a buffer of its own."""
    buffer = torch.zeros(unit.elements)
    for one in unit.held:
        unit.view(buffer, one.name).copy_(whole[one.start : one.stop].view(one.shape))
    return buffer


def _put(unit: Unit, buffer: torch.Tensor, whole: torch.Tensor) -> None:
    for one in unit.held:
        whole[one.start : one.stop] = unit.view(buffer, one.name).flatten()


def _ring_sum(of_shares: Sequence[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(of_shares[0])
    for segment, (first, last) in enumerate(segments(0, len(total), len(of_shares))):
        part = of_shares[segment][first:last].clone()
        for turn in range(1, len(of_shares)):
            part += of_shares[(segment + turn) % len(of_shares)][first:last]
        total[first:last] = part
    return total
