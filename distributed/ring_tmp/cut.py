"""A model cut for a ring: what its stages own, what they cost, measured in this process, and which node gets which."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from distributed.optimizers import build_optimizer
from distributed.ring_tmp.costs import Chain, MemoryRule, NodeCapacity, StageCost
from distributed.ring_tmp.parts import Part, parts_of
from distributed.ring_tmp.sharing import Sharing, share_out
from distributed.ring_tmp.stage_times import time_stages
from distributed.strategy import Stage, Workload

SLOTS = 2  # that stages are timed with
SHORTEST = 1e-9  # seconds: what takes no time that can be told has a place, too: a cut has to be one of something


def parts_of_model(model: torch.nn.Module, stages: Sequence[Stage]) -> tuple[Part, ...]:
    """What each stage of a model owns."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return parts_of(shapes, [(stage.name, stage.parameter_names()) for stage in stages])


@dataclass(frozen=True)
class Cut:
    """Stages that can be shared out.

    parts: what each owns.
    costs: what each takes.
    micro_batches: of a step.
    memory: words a parameter that a node keeps.
    node_bytes: that each node has for its stages; infinite where nothing limits it.
    """

    parts: Sequence[Part]
    costs: Sequence[StageCost]
    micro_batches: int
    memory: MemoryRule
    node_bytes: float = math.inf

    def over(self, nodes: int) -> Sharing:
        """The best cut over so many equal nodes. Raises DistributedError where stages are too few, or no cut fits."""
        return self.among(dict.fromkeys(range(nodes), 1.0))

    def among(self, speeds: Mapping[int, float]) -> Sharing:
        """The best cut over nodes that have these speeds, by number, and their order."""
        return share_out(self.costs, speeds, self.micro_batches, self.memory, self.node_bytes)

    @cached_property
    def borders(self) -> list[int]:
        """Where the chain may be cut."""
        return Chain(self.costs, [NodeCapacity()], self.micro_batches, self.memory).borders

    @cached_property
    def seconds(self) -> list[float]:
        """Of a micro-batch, by stage."""
        return [one.seconds for one in self.costs]


def cut_model(workload: Workload, shadows: bool, lag: int = 0, node_bytes: float = math.inf) -> Cut:
    """Cut a workload's model wherever it can be, and time each stage on micro-batches of the first step.

    lag: of the schedule, see `executor.LAGS`: so many more versions of the parameters are kept.
    node_bytes: that each node has; where they are limited, it is found out what stages keep between their passes.
    """
    model = workload.build_model(fine=True)
    stages = workload.stages(model, fine=True)
    full = [slot for slot, tokens in enumerate(workload.slot_tokens(1)) if tokens]
    slots = [workload.slot(1, slot) for slot in full[:SLOTS]]
    times = time_stages(workload, model, stages, slots, stage_clock(), memory=math.isfinite(node_bytes))
    costs = [replace(one.cost(), seconds=max(one.seconds, SHORTEST)) for one in times]
    return Cut(parts_of_model(model, stages), costs, len(full), memory_rule(workload, shadows, lag), node_bytes)


def stage_clock() -> Callable[[], float]:
    """What stages are timed with here: a thread's own time does not grow with what else the machine does; of several
    threads only the wall knows."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def memory_rule(workload: Workload, shadows: bool, lag: int = 0) -> MemoryRule:
    """What a node keeps of each parameter in such a training."""
    moments = len(build_optimizer(workload.optimizer).slots)
    return MemoryRule(versions=1 + lag, moments=moments, groups=workload.plan.groups, shadows=shadows)
