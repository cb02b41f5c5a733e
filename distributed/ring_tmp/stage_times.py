"""What stages cost, measured in this process: the figures that a cut of the model is judged by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distributed.ring_tmp.costs import StageCost
from distributed.ring_tmp.stage_call import StageCall, StageCalls
from distributed.strategy import Stage, Workload

ROUNDS = 3  # over all slots, after one that is not timed


@dataclass(frozen=True)
class StageTimes:
    """What one stage took and gave for a micro-batch. Seconds are medians over the slots, sizes their means.

    handed_on: bytes by name of what a cut behind the stage carries forward.
    returned: bytes by name of what a cut before it carries back.
    kept_bytes: of what the forward pass leaves for the backward pass, without what had arrived.
    parameters: elements by name of those that it reads; a shared one stands at each stage that reads it.
    couples: why it is not cut further.
    """

    name: str
    forward: float
    backward: float
    handed_on: Mapping[str, float]
    returned: Mapping[str, float]
    kept_bytes: float
    parameters: Mapping[str, int]
    couples: str

    @property
    def seconds(self) -> float:
        """Both passes."""
        return self.forward + self.backward

    def cost(self) -> StageCost:
        """As the partitioner takes it."""
        return StageCost(
            self.name,
            self.seconds,
            self.parameters,
            output_bytes=round(sum(self.handed_on.values())),
            kept_bytes=round(self.kept_bytes),
            couples=self.couples,
        )


def time_stages(
    workload: Workload,
    model: torch.nn.Module,
    stages: Sequence[Stage],
    slots: Sequence[Any],
    clock: Callable[[], float] = time.thread_time,
    memory: bool = True,
) -> list[StageTimes]:
    """Run slots through the stages, each alone as on a node of its own, and tell what each took.

    The times are those of this process with the threads that it has; call `torch.set_num_threads` before. The gradients
    of the parameters are left as they were.

    slots: what `workload.slot` gave, with target tokens.
    clock: by default this thread's CPU time, which others on the machine do not stretch; with several threads take
        `time.perf_counter`.
    memory: whether to find out `kept_bytes`, for which torch loads its compiler; else they are 0.
    """
    if not slots:
        raise ValueError("no slots to time")
    found = [_Figures() for _ in stages]
    calls = [StageCalls(model, stages, number, number + 1) for number in range(len(stages))]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    try:
        for slot in slots:
            _pass(workload, calls, slot, found, None, memory)
        for _ in range(ROUNDS):
            for slot in slots:
                _pass(workload, calls, slot, found, clock)
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
    elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [
        StageTimes(
            name=stage.name,
            forward=statistics.median(figures.forward),
            backward=statistics.median(figures.backward),
            handed_on={name: size / len(slots) for name, size in figures.handed_on.items() if name != "loss"},
            returned={name: size / len(slots) for name, size in figures.returned.items()},
            kept_bytes=figures.kept / len(slots),
            parameters={name: elements[name] for name in stage.parameter_names()},
            couples=stage.couples,
        )
        for stage, figures in zip(stages, found, strict=True)
    ]


class _Figures:
    """Of a stage: times of each pass, and sizes added up over the slots."""

    def __init__(self) -> None:
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.handed_on: dict[str, int] = {}
        self.returned: dict[str, int] = {}
        self.kept = 0


def _pass(
    workload: Workload,
    calls: Sequence[StageCalls],
    slot: Any,
    found: Sequence[_Figures],
    clock: Callable[[], float] | None,
    memory: bool = False,
) -> None:
    """A slot there and back; without a clock sizes are noted instead of times."""
    now = clock or float
    carried: dict[str, torch.Tensor] = {}
    waiting: list[StageCall] = []
    for call, figures in zip(calls, found, strict=True):
        if clock is None:
            with _Kept() if memory else nullcontext() as kept, workload.autocast():
                waiting.append(call.forward(slot, carried, slot.target_tokens))
            figures.kept += kept.alive if kept is not None else 0
            carried = waiting[-1].handed_on
            _add_sizes(figures.handed_on, carried)
            continue
        began = now()
        with workload.autocast():
            waiting.append(call.forward(slot, carried, slot.target_tokens))
        carried = waiting[-1].handed_on
        figures.forward.append(now() - began)
    gradients: dict[str, torch.Tensor] = {}
    for one, figures in zip(reversed(waiting), reversed(found), strict=True):
        began = now()
        gradients = one.backward(gradients)
        if clock is None:
            _add_sizes(figures.returned, gradients)
        else:
            figures.backward.append(now() - began)


def _add_sizes(sizes: dict[str, int], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        sizes[name] = sizes.get(name, 0) + tensor.numel() * tensor.element_size()


class _Kept(TorchDispatchMode):
    """Notes the memory of the tensors that are made in its context, each storage once."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def alive(self) -> int:
        """Bytes of those that are still in use, by a graph or by what a function keeps for it."""
        return sum(size for reference, size in self._storages.values() if not reference.expired())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), is_new=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, is_new=True)
        return result

    def _note(self, values: Any, is_new: bool) -> None:
        for value in tree_leaves(values):
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            known = self._storages.get(storage._cdata)
            if known is None or known[0].expired():  # freed, and its address used again
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes() if is_new else 0)
