"""Where the time and the memory of real steps go, told by what a strategy asks of its workload."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distributed.strategy import Stage, Strategy, Workload, WorkloadSpec
from nmt import registry
from nmt.profiling.costs import SavedForBackward
from nmt.training.device import peak_memory_bytes
from nmt.training.workload import TranslationWorkload

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.data.prepare import PreparedData

DATA, BACKWARD, UPDATE = "data", "backward", "update"


@dataclass(frozen=True)
class Measurements:
    """What steps of a run took, on average over `steps` of them. Times are in seconds, memory in bytes.

    phases: `data` (batches, and their way to the device), each stage of the model, `backward` (with the sum of
        gradients over slots and its norm), `update` (clipping and the update rule). They add up to the whole step.
    activation_bytes: the most that a slot of the first step kept for its backward pass.
    state_bytes: parameters and the optimizer's state, by name.
    peak_bytes: the most memory that the process held: resident, or allocated on the GPU.
    """

    steps: int
    phases: dict[str, float]
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


class WatchedWorkload:
    """A workload that keeps time between the things it is asked for.

    A strategy asks for a slot, runs the stages on it, and for the learning rate once all gradients are there. What lies
    between those calls is the strategy's own work, and the call before tells which.
    """

    def __init__(self, workload: Workload, synchronize: Callable[[], None]):
        self.inner, self.synchronize = workload, synchronize
        self.plan, self.optimizer, self.device = workload.plan, workload.optimizer, workload.device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.saved: SavedForBackward | None = None  # set to have each slot's forward pass weighed
        self.most_saved = 0
        self._own_work, self._mark = DATA, 0.0

    def begin(self) -> None:
        """A step begins."""
        self._own_work, self._mark = DATA, self._now()

    def end(self) -> None:
        """A step is done."""
        self._add(self._own_work)

    def build_model(self) -> torch.nn.Module:
        """See `Workload`."""
        self.model = self.inner.build_model()
        return self.model

    def stages(self, model: torch.nn.Module) -> Sequence[Stage]:
        """Those of the workload, timed."""
        stages = self.inner.stages(model)
        return [_WatchedStage(self, stage, last=stage is stages[-1]) for stage in stages]

    def slot_tokens(self, index: int) -> Sequence[int]:
        """See `Workload`."""
        return self.inner.slot_tokens(index)

    def slot(self, index: int, slot: int, probe: bool = False) -> Any:
        """See `Workload`."""
        self._add(self._own_work)
        try:
            return self.inner.slot(index, slot, probe)
        finally:
            self._own_work = DATA
            self._add(DATA)

    def learning_rate(self, index: int) -> float:
        """See `Workload`."""
        self._add(self._own_work)
        self._own_work = UPDATE
        return self.inner.learning_rate(index)

    def autocast(self) -> AbstractContextManager[Any]:
        """See `Workload`."""
        return self.inner.autocast()

    def run_stage(self, stage: Stage, last: bool, slot: Any, carried: Mapping[str, torch.Tensor]) -> Any:
        """One stage on one slot; called by the stages that `stages` hands out."""
        self._add(self._own_work)
        with self.saved or nullcontext():
            result = stage(slot, carried)
        if last and self.saved:
            self.most_saved = max(self.most_saved, self.saved.bytes)
            self.saved = SavedForBackward(self.model)
        self._add(stage.name)
        self._own_work = BACKWARD if last else stage.name
        return result

    def _add(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase] += now - self._mark
        self._mark = now

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class _WatchedStage:
    watched: WatchedWorkload
    stage: Stage
    last: bool

    @property
    def name(self) -> str:
        return self.stage.name

    def __call__(self, slot: Any, carried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.watched.run_stage(self.stage, self.last, slot, carried)
        return found


@dataclass(frozen=True)
class _Given(WorkloadSpec):
    """A workload that is there already, for a strategy in this process."""

    workload: Any = None

    def build(self) -> Workload:
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
        strategy.start(_Given("", {}, watched))
        watched.saved = SavedForBackward(watched.model)
        strategy.step(1)
        watched.saved = None
        for index in range(2, warmup + 1):
            strategy.step(index)
        watched.seconds.clear()
        stats = []
        for index in range(warmup + 1, warmup + steps + 1):
            watched.begin()
            stats.append(strategy.step(index))
            watched.end()
        phases = {phase: seconds / steps for phase, seconds in watched.seconds.items()}
        if trace:
            with _traced(trace, device):
                strategy.step(warmup + steps + 1)
        state = strategy.state()
    finally:
        strategy.close()
    return Measurements(
        steps=steps,
        phases=phases,
        source_tokens=sum(one.source_tokens for one in stats) / steps,
        target_tokens=sum(one.target_tokens for one in stats) / steps,
        activation_bytes=watched.most_saved,
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
