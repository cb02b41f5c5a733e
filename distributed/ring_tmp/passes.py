"""A node's own copy of the model: it computes the node's stages with the parameters that lie in their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.ring_tmp.cut import parts_of_model
from distributed.ring_tmp.executor import Task
from distributed.ring_tmp.placement import StageRange
from distributed.ring_tmp.scalars import StepFacts
from distributed.ring_tmp.shadow import PartState
from distributed.ring_tmp.stage_call import StageCall, StageCalls
from distributed.strategy import StageSearch, Workload

Tensors = Mapping[str, torch.Tensor]


class Passes:
    """Forward and backward passes of ranges of stages.

    Of the model there are only outlines: the parameters of stages that this node runs are views of their states, and
    there are no others.
    """

    def __init__(self, workload: Workload):
        self._workload = workload
        self._model = workload.outline()
        self._stages = workload.stages(self._model, fine=True)
        self.parts = parts_of_model(self._model, self._stages)
        """What each stage owns."""
        self._parameters = dict(self._model.named_parameters())
        for parameter in self._parameters.values():  # they stay the ones that modules have, and get other contents
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.empty(0, dtype=parameter.dtype)))
        self._calls: dict[tuple[int, int], StageCalls] = {}
        self._open: dict[tuple[int, int, int], tuple[StageCall, Any]] = {}  # by first stage, step and slot
        self._search: tuple[Any, Sequence[StageSearch]] = (None, ())  # the newest, by what tells it from others
        self._versions: dict[int, int] = {}  # by step that is not over, of the parameters

    def forward(self, task: Task, arrived: Tensors | None, states: Mapping[int, PartState], probe: bool) -> Tensors:
        """Run a range; returns what it hands on."""
        assert task.range is not None
        start, stop = task.range.start, task.range.stop
        self._versions[task.step] = task.version
        self._use(task, states)
        slot = self._workload.slot(task.step, task.slot, probe)
        tokens = sum(self._workload.slot_tokens(task.step))
        with torch.enable_grad(), self._workload.autocast():
            call = self._calls_of(start, stop).forward(slot, arrived or {}, tokens)
        self._open[start, task.step, task.slot] = (call, slot)
        return {} if task.range.is_last else call.handed_on

    def backward(
        self,
        task: Task,
        arrived: Tensors | None,
        states: Mapping[int, PartState],
        buffers: Mapping[int, torch.Tensor],
        probe: bool,
    ) -> tuple[Tensors, StepFacts]:
        """Go back through a range; gradients of parameters are added to the buffers of their stages.

        Returns the gradients of what had arrived, and what is known of the slot now.
        """
        assert task.range is not None
        call, slot = self._open.pop((task.range.start, task.step, task.slot))
        self._use(task, states)
        for stage, buffer in buffers.items():
            part = self.parts[stage]
            for name in part.views:
                self._parameters[name].grad = part.view(buffer, name)
        gradients = call.backward(arrived or {})
        inner = slot.inner_square_sums() if probe else {}
        if not task.range.is_last:
            return gradients, StepFacts(inner=inner)
        return gradients, StepFacts([call.made["loss"].item()], slot.source_tokens, inner)

    def version_of(self, step: int) -> int | None:
        """Which version of the parameters a step has used that is over now; None where nothing of it was run here."""
        found = self._versions.get(step)
        self._versions = {one: version for one, version in self._versions.items() if one > step}
        return found

    def score(self, one: StageRange, batch: Tensors, arrived: Tensors, states: Mapping[int, PartState]) -> Tensors:
        """Take a batch of `Workload.scored_slot` through a range, forward only and without dropout."""
        self._use_newest(one, states)
        carried = dict(arrived)
        with torch.inference_mode(), self._workload.autocast():
            slot = self._workload.scored_slot(batch)
            for stage in range(one.start, one.stop):
                carried = self._stages[stage](slot, carried)
        return {name: tensor.contiguous() for name, tensor in carried.items()}

    def answer(
        self,
        one: StageRange,
        search: Any,
        call: str,
        given: Tensors,
        arrived: Tensors,
        states: Mapping[int, PartState],
    ) -> Tensors:
        """Take a call of a search (`Workload.search_stages`) through a range.

        search: which one. What its stages keep is given up when there is another, or by `end_search`.
        """
        if self._search[0] != search:
            self._search = (search, self._workload.search_stages(self._model))
        self._use_newest(one, states)
        carried = dict(arrived)
        with torch.inference_mode():
            for stage in range(one.start, one.stop):
                carried = self._search[1][stage](call, given, carried)
        return {name: tensor.contiguous() for name, tensor in carried.items()}

    def end_search(self) -> None:
        """Give up what stages keep of a search."""
        self._search = (None, ())

    def forget(self) -> None:
        """Give up what has gone forward and not back."""
        self._open.clear()

    def _use_newest(self, one: StageRange, states: Mapping[int, PartState]) -> None:
        """Have the model read the newest version of a range's parameters."""
        for stage in range(one.start, one.stop):
            part = self.parts[stage]
            for name in part.views:
                self._parameters[name].data = part.view(states[stage].values, name)

    def _use(self, task: Task, states: Mapping[int, PartState]) -> None:
        """Have the model read a task's version of the parameters.

        A graph refers to parameters and not to what they held in the forward pass. Where micro-batches of two steps
        are in flight, another version may have been read meanwhile.
        """
        assert task.range is not None
        for stage in range(task.range.start, task.range.stop):
            part, values = self.parts[stage], states[stage].of_version(task.version)
            for name in part.views:
                self._parameters[name].data = part.view(values, name)

    def _calls_of(self, start: int, stop: int) -> StageCalls:
        if (start, stop) not in self._calls:
            self._calls[start, stop] = StageCalls(self._model, self._stages, start, stop)
        return self._calls[start, stop]
