"""A model cut by a process that has no memory for all of it: stages are timed one at a time, on values made up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.ring_tmp.costs import StageCost
from distributed.ring_tmp.cut import SHORTEST, SLOTS, Cut, memory_rule, parts_of_model, stage_clock
from distributed.ring_tmp.stage_call import StageCalls
from distributed.ring_tmp.stage_times import ROUNDS
from distributed.strategy import Workload

VALUE = 0.01  # of every parameter: pages of zeros would all be the same one, in the cache


def cut_outline(workload: Workload, shadows: bool, node_bytes: float = math.inf) -> Cut:
    """Cut a workload's model wherever it can be, and time each stage on micro-batches of the first step.

    No more than one stage's parameters and gradients are here at a time. What they hold says nothing, and costs what
    other values cost.

    node_bytes: that each node has; what stages keep of a micro-batch between their passes is not counted here.
    """
    model = workload.outline()
    stages = workload.stages(model, fine=True)
    parts = parts_of_model(model, stages)
    parameters = dict(model.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    for parameter in parameters.values():  # they stay the ones that modules have, and get other contents
        torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.empty(0, dtype=parameter.dtype)))
    full = [slot for slot, tokens in enumerate(workload.slot_tokens(1)) if tokens]
    slots = [workload.slot(1, slot) for slot in full[:SLOTS]]
    costs: list[StageCost] = []
    arrived: list[Mapping[str, torch.Tensor]] = [{} for _ in slots]
    for number, stage in enumerate(stages):
        own = {name: parameters[name] for name in stage.parameter_names()}
        for name, parameter in own.items():
            parameter.data = torch.full(shapes[name], VALUE)
            parameter.grad = torch.zeros(shapes[name])
        call = StageCalls(model, stages, number, number + 1)
        rounds = [_round(workload, call, slots, arrived) for _ in range(1 + ROUNDS)]
        arrived = rounds[-1][1]
        for parameter in own.values():
            parameter.grad, parameter.data = None, torch.empty(0)
        handed_on = sum(one.numel() * one.element_size() for made in arrived for one in made.values())
        costs.append(
            StageCost(
                stage.name,
                max(statistics.median(second for seconds, _ in rounds[1:] for second in seconds), SHORTEST),
                {name: shapes[name].numel() for name in own},
                output_bytes=0 if number == len(stages) - 1 else handed_on // len(slots),
                couples=stage.couples,
            )
        )
    return Cut(parts, costs, len(full), memory_rule(workload, shadows), node_bytes)


def _round(
    workload: Workload, call: StageCalls, slots: Sequence[Any], arrived: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[list[float], list[Mapping[str, torch.Tensor]]]:
    """A stage on each slot, there and back: seconds, and what it hands on."""
    clock = stage_clock()
    seconds: list[float] = []
    found: list[Mapping[str, torch.Tensor]] = []
    for slot, given in zip(slots, arrived, strict=True):
        began = clock()
        with workload.autocast():
            waiting = call.forward(slot, given, slot.target_tokens)
        spent = clock() - began
        found.append(waiting.handed_on)
        back = {name: torch.ones_like(one) for name, one in found[-1].items() if one.is_floating_point()}
        began = clock()
        waiting.backward(back)
        seconds.append(spent + clock() - began)
    return seconds, found
