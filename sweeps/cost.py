"""What a sweep will cost, from what earlier runs of like shape in the store measured; "unknown" where there are none.

Two runs are of like shape where a step of both computes the same products: the same text and segmentation, model,
batch, precision and update rule. Seeds, budget, learning rate, schedule, first values and how much is dropped do not
matter.
Only runs on this machine's kind of processor count. The time is that of training: evaluations and decoding come on top.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmt.config.identity import digest, training_identity
from nmt.environment import cpu_model
from nmt.runs import LocalRunStore
from sweeps.aggregate import Statistics, describe
from sweeps.executors.placement import Placement, place, this_machine
from sweeps.plan import PlannedRun, SweepPlan

INDIFFERENT = ("initialisation", "forget_bias")  # keys of a model that change no product


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one ended run measured: target tokens a step and a second, and whether and how it shared the machine."""

    tokens_per_step: float
    tokens_per_second: float
    timing: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measurements of like shape summed up; `note` says where they were not placed as the plan will be."""

    tokens_per_step: Statistics
    tokens_per_second: Statistics
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """What is left of a row: runs and steps that no earlier row has, and the pace they go at, None where unknown."""

    label: str
    runs: int
    steps: int
    durations: tuple[float | None, ...]
    pace: Pace | None

    @property
    def tokens(self) -> float | None:
        """Target tokens of the steps."""
        return None if self.pace is None else self.steps * self.pace.tokens_per_step.mean

    @property
    def seconds(self) -> float | None:
        """Time of training, one run after the other."""
        return None if self.pace is None else sum(seconds or 0.0 for seconds in self.durations)

    @property
    def spread(self) -> float | None:
        """Standard deviation of `seconds`: that of the pace, taken to be shared by all runs. None from a single run."""
        if self.pace is None or self.pace.tokens_per_second.sd is None or self.seconds is None:
            return None
        return self.seconds * self.pace.tokens_per_second.sd / self.pace.tokens_per_second.mean


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The rows' costs, and the time that they take side by side; None where a row's is unknown."""

    rows: tuple[RowCost, ...]
    workers: int
    wall_seconds: float | None


def shape_of(identity: Mapping[str, Any]) -> str:
    """A digest of what decides how long a step takes, from a run's canonical form (`identity.json`)."""
    return digest(
        {
            "data": identity.get("data"),
            "tokenizer": identity.get("tokenizer"),
            "model": _products(identity.get("model", {})),
            "batch": identity.get("batch"),
            "loss": "vocab_chunks" in identity.get("loss", {}),
            "optimizer": identity.get("optimizer", {}).get("name"),
            "precision": identity.get("training", {}).get("precision"),
            "scheduled_sampling": identity.get("training", {}).get("scheduled_sampling"),
        }
    )


def estimate(plan: SweepPlan, device: str = "") -> Cost:
    """What is left of the plan. `device` names the processor or GPU it will run on, this machine's where it is empty.

    Reads one identity for each configuration in the store, and results only of runs of like shape.
    """
    items = plan.work_items()
    # What another cluster has, GPUs among it, is not known here: the cores of this machine have to stand for it.
    executor = dataclasses.replace(plan.config.executor, gpus_per_run=0.0, memory_gib_per_run=0.0)
    placement = place(executor, items, [this_machine()])
    shapes = {row.label: shape_of(training_identity(row.config)) for row in plan.rows}
    measured = measurements(plan.store, set(shapes.values()), device or device_name(plan.config.device))
    paces = {shape: pace_of(found, placement) for shape, found in measured.items()}
    counted: set[str] = set()
    rows = []
    for row in plan.rows:
        runs = [run for run in row.runs if run.todo in ("train", "anew", "resume") and run.run_id not in counted]
        counted |= {run.run_id for run in runs}
        rows.append(_row_cost(plan, row.label, runs, paces.get(shapes[row.label])))
    durations = [seconds for row in rows for seconds in row.durations]
    return Cost(
        rows=tuple(rows),
        workers=placement.workers,
        wall_seconds=side_by_side(durations, placement.workers),
    )


def measurements(store: LocalRunStore, shapes: set[str], device: str) -> dict[str, list[Measurement]]:
    """By shape, what ended runs in the store have measured on this device."""
    found: dict[str, list[Measurement]] = {}
    shape_by_train_id: dict[str, str] = {}
    for run_id in store.list_runs():
        name = run_id.partition("/")[0]
        if name not in shape_by_train_id:
            identity = store.read_json(run_id, "identity.json")
            if identity is None:
                continue
            shape_by_train_id[name] = shape_of(identity)
        shape = shape_by_train_id[name]
        if shape in shapes and (measurement := _measurement(store, run_id, device)):
            found.setdefault(shape, []).append(measurement)
    return found


def pace_of(found: Sequence[Measurement], placement: Placement) -> Pace | None:
    """The measurements that were placed as the plan will be, else all of them with a note; None of none."""
    alike = [one for one in found if (one.timing, one.threads) == (placement.timing, placement.threads)]
    per_step = describe(one.tokens_per_step for one in found)
    per_second = describe(one.tokens_per_second for one in alike or found)
    if per_step is None or per_second is None:
        return None
    note = "" if alike else f"measured {_placed(found)}, and will run {placement.timing} on {placement.threads}"
    return Pace(tokens_per_step=per_step, tokens_per_second=per_second, note=note)


def side_by_side(durations: Iterable[float | None], workers: int) -> float | None:
    """Seconds until all are done, each started in order as soon as a worker is free; None with an unknown one."""
    free = [0.0] * workers
    for seconds in durations:
        if seconds is None:
            return None
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def device_name(device: str) -> str:
    """The name of what `device` (a config's) means here. Imports torch."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_model()


def _row_cost(plan: SweepPlan, label: str, runs: Sequence[PlannedRun], pace: Pace | None) -> RowCost:
    steps = [run.config.training.max_steps - _reached(plan, run) for run in runs]
    durations = tuple(
        None if pace is None else left * pace.tokens_per_step.mean / pace.tokens_per_second.mean for left in steps
    )
    return RowCost(label=label, runs=len(runs), steps=sum(steps), durations=durations, pace=pace)


def _reached(plan: SweepPlan, run: PlannedRun) -> int:
    return plan.store.status(run.run_id).step if run.todo == "resume" else 0


def _measurement(store: LocalRunStore, run_id: str, device: str) -> Measurement | None:
    result, environment = store.read_json(run_id, "result.json"), store.read_json(run_id, "env.json") or {}
    if result is None or not result.get("steps") or not result.get("target_tokens"):
        return None
    if (environment.get("device") or {}).get("name") != device:
        return None
    return Measurement(
        tokens_per_step=result["target_tokens"] / result["steps"],
        tokens_per_second=float(result["tokens_per_second"]),
        timing=str(result.get("timing") or ""),
        threads=int(environment.get("threads") or 0),
    )


def _placed(found: Sequence[Measurement]) -> str:
    return " or ".join(dict.fromkeys(f"{one.timing} on {one.threads}" for one in found)) + " threads"


def _products(model: Any) -> Any:
    """A model's keys as far as they change what is multiplied: of a dropout only whether there is one."""
    if not isinstance(model, Mapping):
        return model
    return {
        name: bool(value) if name.startswith("dropout") else _products(value)
        for name, value in model.items()
        if name not in INDIFFERENT
    }
