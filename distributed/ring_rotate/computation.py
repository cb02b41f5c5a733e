"""The model at a node: its stages, group after group, for all micro-batches of the node's seats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from distributed.gradients import LeafFacts
from distributed.ring.segments import PART_BYTES, Range
from distributed.ring_rotate.plan import Pass, Phase, RotationPlan, Unit, rotation_plan
from distributed.ring_rotate.unit_memory import UnitMemory, mapped_zeros
from distributed.ring_tmp.stage_call import StageCall, StageCalls
from distributed.slot_tree import shares
from distributed.strategy import Workload

Tensors = dict[str, torch.Tensor]


def plan_of(
    workload: Workload, seats: int, named: Mapping[str, Range] | None = None
) -> tuple[RotationPlan, list[list[str]]]:
    """The plan of a workload's model, the same wherever it is made, and by group the names of its stages."""
    model = workload.outline()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    stages = workload.stages(model, fine=True)
    plan = rotation_plan(shapes, stages, seats, named)
    return plan, [[stage.name for stage in stages[start:stop]] for start, stop in plan.stages]


@dataclass
class _Slot:
    """A micro-batch on its way."""

    number: int
    seat: int
    content: Any
    carried: Tensors = field(default_factory=dict)  # what the next group is given
    gradients: Tensors = field(default_factory=dict)  # what the group before is given back
    calls: dict[int, StageCall] = field(default_factory=dict)  # by group
    loss: float = 0.0


class Computation:
    """Passes of groups.

    Of the model there are only outlines: its parameters are views of `memories`.

    Parameters
    ----------
    workload: says what the model and the slots are.
    seats: of the ring.
    wanted: called before each micro-batch of a pass; it may raise, and so end the computation.
    named, part_bytes: see `RotationPlan`.
    """

    def __init__(
        self,
        workload: Workload,
        seats: int,
        wanted: Callable[[], None] = lambda: None,
        named: Mapping[str, Range] | None = None,
        part_bytes: int = PART_BYTES,
    ):
        self._workload, self._wanted = workload, wanted
        model = workload.outline()
        stages = workload.stages(model, fine=True)
        self._parameters = dict(model.named_parameters())
        shapes = {name: one.shape for name, one in self._parameters.items()}
        self.plan = rotation_plan(shapes, stages, seats, named, part_bytes)
        self.memories = [UnitMemory(unit) for unit in self.plan.units]
        for memory in self.memories:
            for name in memory.unit.layout:  # they stay the ones that modules have, and get other contents
                parameter = self._parameters[name]
                torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.empty(0)))
                parameter.data = memory.unit.view(memory.flat, name)
        # Each group as if it were the whole: what readers of one parameter in several groups add to its gradient is
        # added as they come.
        self._calls = [StageCalls(model, stages[start:stop], 0, stop - start) for start, stop in self.plan.stages]
        self._leaves = shares(workload.plan.groups, seats)
        self._open: list[_Slot] = []
        self._step, self._probe, self._tokens = 0, False, 0
        self._gradients: dict[int, dict[int, torch.Tensor]] = {}  # by unit and seat
        self._facts: dict[int, dict[int, LeafFacts]] = {}  # by seat and leaf

    def begin(self, step: int, seats: Sequence[int], probe: bool) -> None:
        """Begin a step with the shares of these seats; what there was of another is given up."""
        self.forget()
        each, tokens = self._workload.plan.slots_per_group, self._workload.slot_tokens(step)
        self._step, self._probe, self._tokens = step, probe, sum(tokens)
        for seat in seats:
            self._facts[seat] = {leaf: LeafFacts() for leaf in self._leaves[seat]}
            for number in range(self._leaves[seat].start * each, self._leaves[seat].stop * each):
                if tokens[number]:
                    self._open.append(_Slot(number, seat, self._workload.slot(step, number, probe)))

    def forget(self) -> None:
        """Give up what there is of a step."""
        self._open, self._gradients, self._facts = [], {}, {}
        for parameter in self._parameters.values():
            parameter.grad = None

    def run(self, phase: Phase) -> dict[int, dict[int, torch.Tensor]]:
        """Compute a phase, whose units have to be there.

        Returns the gradients that are complete: by unit, and by seat a buffer [elements] that is the caller's.
        """
        if phase.goes_back:
            for unit in phase.needs:
                if unit not in self._gradients:
                    elements = self.plan.units[unit].elements
                    self._gradients[unit] = {seat: mapped_zeros(elements) for seat in self._facts}
        seat = -1
        for slot in self._open:
            self._wanted()
            if phase.goes_back and slot.seat != seat:
                seat = slot.seat
                self._collect(phase, seat)
            if phase.kind is not Pass.BACK:
                self._forward(slot, phase.group)
            if phase.goes_back:
                self._backward(slot, phase.group)
        for parameter in self._parameters.values():
            parameter.grad = None
        return {unit: self._gradients.pop(unit) for unit in phase.completes}

    @property
    def bytes(self) -> int:
        """Bytes of the gradients that are being added up."""
        return sum(one.nbytes for of_seats in self._gradients.values() for one in of_seats.values())

    def facts(self) -> dict[int, dict[str, Any]]:
        """By seat, what there is to say of its share once the last phase is computed; the step is forgotten."""
        each = self._workload.plan.slots_per_group
        for slot in self._open:
            of_leaf = self._facts[slot.seat][slot.number // each]
            of_leaf.losses.append(slot.loss)
            of_leaf.tokens += slot.content.target_tokens
            of_leaf.source_tokens += slot.content.source_tokens
            if self._probe:
                for name, sums in slot.content.inner_square_sums().items():
                    of_leaf.inner.setdefault(name, []).extend(sums)
        found = {
            seat: {
                "leaves": {str(leaf): asdict(one) for leaf, one in leaves.items()},
                "tokens": self._tokens,
                "rate": self._workload.learning_rate(self._step),
                "probe": self._probe,
            }
            for seat, leaves in self._facts.items()
        }
        self.forget()
        return found

    # ------------------------------------------------------------------------------------------------- inside

    def _forward(self, slot: _Slot, group: int) -> None:
        with torch.enable_grad(), self._workload.autocast():
            call = slot.calls[group] = self._calls[group].forward(slot.content, slot.carried, self._tokens)
        if "loss" in call.made:
            slot.loss, slot.carried = call.made["loss"].item(), {}
        else:
            slot.carried = call.handed_on

    def _backward(self, slot: _Slot, group: int) -> None:
        slot.gradients = slot.calls.pop(group).backward(slot.gradients)

    def _collect(self, phase: Phase, seat: int) -> None:
        """Let backward passes add to the gradients of a seat."""
        for number in phase.needs:
            unit: Unit = self.plan.units[number]
            for name in unit.layout:
                self._parameters[name].grad = unit.view(self._gradients[number][seat], name)
