"""Where the time and the memory of real steps go, told by what a strategy asks of its workload."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distributed.strategy import Stage, Strategy, Workload, WorkloadSpec
from nmt import registry
from nmt.profiling.attention_time import attention_timed
from nmt.profiling.counting import Allocations
from nmt.training.device import peak_memory_bytes
from nmt.training.workload import TranslationWorkload

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.data.prepare import PreparedData

DATA, UPDATE = "data", "update"


@dataclass(frozen=True)
class Measurements:
    """What steps of a run took, on average over `steps` of them. Times are in seconds, memory in bytes.

    phases: `data` (batches, and their way to the device), each stage of the model, the backward pass of each in the
        order in which they come (`backward_of`), `update` (sum over slots, norm and clipping of the gradient, and the
        update rule). They add up to the whole step.
    attention: what of a phase attention took; see `nmt.profiling.attention_time`.
    activation_bytes: the most that the forward pass of a slot of the first step left for its backward pass.
    state_bytes: parameters and the optimizer's state, by name.
    peak_bytes: the most memory that the process held: resident, or allocated on the GPU.
    """

    steps: int
    phases: dict[str, float]
    attention: dict[str, float]
    source_tokens: float
    target_tokens: float
    activation_bytes: int
    state_bytes: dict[str, int]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """A whole step."""
        return sum(self.phases.values())

    @property
    def tokens_per_second(self) -> float:
        """Target tokens trained on."""
        return self.target_tokens / self.seconds


def backward_of(stage: str) -> str:
    """The name of the phase in which the gradients of a stage are computed."""
    return f"{stage} backward"


class WatchedWorkload:
    """A workload that keeps time between the things it is asked for.

    A strategy asks for a slot and runs the stages on it; then its gradients pass, last stage first, what lies between
    two stages. Whatever time is between two of these events belongs to the phase that the former began.
    """

    def __init__(self, workload: Workload, synchronize: Callable[[], None]):
        self.inner, self.synchronize = workload, synchronize
        self.plan, self.optimizer, self.device = workload.plan, workload.optimizer, workload.device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.attention: defaultdict[str, float] = defaultdict(float)
        self.kept: Allocations | None = None  # set to have each slot's forward pass weighed
        self.most_kept = 0
        self._phase, self._mark = DATA, 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Steps inside are timed, on top of those before."""
        self._phase, self._mark = DATA, self.now()
        with attention_timed(self.now, self._add_attention):
            yield
        self._enter(DATA)

    def forget(self) -> None:
        """Count from nothing again."""
        self.seconds.clear()
        self.attention.clear()

    def build_model(self) -> torch.nn.Module:
        """See `Workload`."""
        return self.inner.build_model()

    def outline(self, fine: bool = True) -> torch.nn.Module:
        """See `Workload`."""
        return self.inner.outline(fine)

    def first_values(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Workload`."""
        return self.inner.first_values(name, start, stop)

    def scored_slot(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """See `Workload`."""
        return self.inner.scored_slot(batch)

    def stages(self, model: torch.nn.Module, fine: bool = False) -> Sequence[Stage]:
        """Those of the workload, timed."""
        stages = self.inner.stages(model, fine)
        return [_WatchedStage(self, stage, last=stage is stages[-1]) for stage in stages]

    def slot_tokens(self, index: int) -> Sequence[int]:
        """See `Workload`."""
        return self.inner.slot_tokens(index)

    def slot(self, index: int, slot: int, probe: bool = False) -> Any:
        """See `Workload`."""
        self._enter(DATA)
        try:
            return self.inner.slot(index, slot, probe)
        finally:
            self._enter(UPDATE)  # until a stage begins: what a strategy does of its own is part of that

    def learning_rate(self, index: int) -> float:
        """See `Workload`."""
        return self.inner.learning_rate(index)

    def autocast(self) -> AbstractContextManager[Any]:
        """See `Workload`."""
        return self.inner.autocast()

    def run_stage(self, stage: Stage, last: bool, slot: Any, carried: Mapping[str, torch.Tensor]) -> Any:
        """One stage on one slot; called by the stages that `stages` hands out."""
        self._enter(stage.name)
        with self.kept or nullcontext():
            result = stage(slot, carried)
        for tensor in result.values():
            if tensor.requires_grad:
                tensor.register_hook(partial(self._reach_backwards, stage.name, last))
        self._enter(UPDATE)
        return result

    def _reach_backwards(self, stage: str, last: bool, gradient: torch.Tensor) -> None:
        """The backward pass has come to what a stage put out."""
        if last:
            if self.kept:
                self.most_kept = max(self.most_kept, self.kept.alive)
                self.kept = Allocations()
            # torch's own distributed wrappers learn in this way that a backward pass is done.
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._enter, UPDATE))
        self._enter(backward_of(stage))

    def now(self) -> float:
        """The time, when the device has done what it was asked for."""
        self.synchronize()
        return time.perf_counter()

    def _enter(self, phase: str) -> None:
        now = self.now()
        self.seconds[self._phase] += now - self._mark
        self._phase, self._mark = phase, now

    def _add_attention(self, seconds: float) -> None:
        self.attention[self._phase] += seconds


@dataclass(frozen=True)
class _WatchedStage:
    watched: WatchedWorkload
    stage: Stage
    last: bool

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def couples(self) -> str:
        return self.stage.couples

    def parameter_names(self) -> Sequence[str]:
        return self.stage.parameter_names()

    def __call__(self, slot: Any, carried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.watched.run_stage(self.stage, self.last, slot, carried)
        return found


@dataclass(frozen=True)
class Given(WorkloadSpec):
    """A workload that is there already, for a strategy in this process."""

    workload: Any = None

    def build(self) -> Workload:
        """The workload."""
        workload: Workload = self.workload
        return workload


def measure(
    config: RunConfig, prepared: PreparedData, device: str, *, steps: int, warmup: int, trace: Path | None = None
) -> Measurements:
    """Train the first `warmup` + `steps` steps of a run in this process and measure the latter; nothing is kept.

    With `trace`, one more step under torch's profiler, written as a Chrome trace.
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    watched = WatchedWorkload(TranslationWorkload(config, device, prepared), synchronize)
    strategy: Strategy = registry.lookup("strategy", "single", "distribution.name")()
    try:
        strategy.start(Given("", {}, watched))
        watched.kept = Allocations()
        strategy.step(1)
        watched.kept = None
        for index in range(2, warmup + 1):
            strategy.step(index)
        watched.forget()
        with watched.watching():
            stats = [strategy.step(index) for index in range(warmup + 1, warmup + steps + 1)]
        watched.seconds[UPDATE] = watched.seconds.pop(UPDATE)  # the last one in a step, and so in a report
        phases, attention = (
            {phase: seconds / steps for phase, seconds in parts.items()}
            for parts in (watched.seconds, watched.attention)
        )
        if trace:
            with _traced(trace, device):
                strategy.step(warmup + steps + 1)
        state = strategy.state()
    finally:
        strategy.close()
    return Measurements(
        steps=steps,
        phases=phases,
        attention=attention,
        source_tokens=sum(one.source_tokens for one in stats) / steps,
        target_tokens=sum(one.target_tokens for one in stats) / steps,
        activation_bytes=watched.most_kept,
        state_bytes={"parameters": _bytes(state["parameters"])}
        | {name: _bytes(values) for name, values in state["optimizer"].items()},
        peak_bytes=peak_memory_bytes(device),
    )


def _bytes(named: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in named.values())


@contextmanager
def _traced(path: Path, device: str) -> Iterator[None]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler talks on stderr
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(path))
