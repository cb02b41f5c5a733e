"""The training loop with a strategy made of numbers: what is chosen, when it stops, what diverges."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.strategy import Probe, StepStats, WorkloadSpec
from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.runs import LocalRunStore, RunStatus
from nmt.training.checkpoint import list_checkpoints
from nmt.training.observers import SilentObserver
from nmt.training.trainer import Trainer

RUN = "0123456789ab/s1"


class Counting:
    """A strategy whose only parameter counts steps; `losses` overrides the loss of named steps."""

    def __init__(self, losses: Mapping[int, float] | None = None):
        self.parameter = torch.zeros(1)
        self.losses = losses or {}
        self.rate_scales: list[float] = []

    def start(self, spec: WorkloadSpec) -> None: ...

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False) -> StepStats:
        self.rate_scales.append(rate_scale)
        loss = self.losses.get(index, 1.0 / index)
        if math.isfinite(loss):
            self.parameter += 1
        seen = Probe({"a.b.c": 3.0, "a.b.d": 4.0, "e.f": 12.0}, {"a.b.c": 0.5}, {"decoder.0": 7.0}) if probe else None
        return StepStats(index, loss, 10, 9, 1.0, 0.1, seen)

    def synchronize(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {"parameters": {"p": self.parameter.clone()}, "optimizer": {}, "updates": 0}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.parameter.copy_(state["parameters"]["p"])

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        yield torch.nn.Identity()

    def close(self) -> None: ...


def make(
    tmp_path: Path,
    overrides: list[str],
    scores: list[float],
    log_perplexity: float = 1.0,
    metric: str = "val/decode/bleu",
    **losses: Any,
) -> tuple[Trainer, Counting, LocalRunStore]:
    """A trainer whose n-th evaluation scores `scores[n]` (the last one repeats)."""
    config: RunConfig = compose(["scale=smoke", "training.max_steps=40", "validation.every_steps=5", *overrides])
    store = LocalRunStore(tmp_path)
    remaining = list(scores)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        score = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return {metric: score, "val/teacher_forced/log_perplexity": log_perplexity}

    strategy = Counting(losses.get("losses"))
    trainer = Trainer(
        store, RUN, config, strategy, validate,
        vocabulary=100, timing="exclusive", status=RunStatus(state="running"), observer=SilentObserver(),
    )  # fmt: skip
    return trainer, strategy, store


def records(store: LocalRunStore, kind: str) -> list[dict[str, Any]]:
    lines = (store.directory(RUN) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_the_best_validation_score_chooses_the_checkpoint_and_the_first_wins_a_tie(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, [], [1.0, 3.0, 3.0, 2.0])
    assert trainer.run() == ("finished", "budget")
    best = trainer.state.best
    assert best is not None
    assert (best.step, best.target_tokens) == (10, 100)
    assert [r["best"] for r in records(store, "evaluation")] == [True, True] + [False] * 6
    assert list_checkpoints(store, RUN) == [10, 35, 40]


def test_of_error_rates_the_lowest_chooses_the_checkpoint_and_drives_plateau_and_patience(tmp_path: Path) -> None:
    overrides = ["validation.metric=ter", "validation.patience=2", "schedule=plateau", "schedule.plateau_patience=1",
                 "schedule.decay_rate=0.5"]  # fmt: skip
    trainer, strategy, store = make(tmp_path, overrides, [90.0, 60.0, 60.0, 120.0], metric="val/decode/ter")
    assert trainer.run() == ("finished", "patience")
    assert [r["best"] for r in records(store, "evaluation")] == [True, True, False, False]
    assert trainer.state.best is not None and trainer.state.best.step == 10
    assert strategy.rate_scales == [1.0] * 15 + [0.5] * 5


def test_a_teacher_forced_score_may_choose_the_checkpoint(tmp_path: Path) -> None:
    metric = "val/teacher_forced/token_accuracy"
    trainer, _, _ = make(tmp_path, ["validation.metric=token_accuracy"], [50.0, 70.0, 60.0], metric=metric)
    trainer.run()
    assert trainer.state.best is not None and trainer.state.best.metrics[metric] == 70.0


def test_patience_ends_training(tmp_path: Path) -> None:
    trainer, _, _ = make(tmp_path, ["validation.patience=2"], [1.0, 3.0, 2.0, 2.5, 9.0])
    assert trainer.run() == ("finished", "patience")
    assert trainer.state.step == 20


def test_an_evaluation_falls_on_the_last_step_whatever_the_schedule(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, ["validation.every_steps=15"], [1.0])
    trainer.run()
    assert [r["step"] for r in records(store, "evaluation")] == [15, 30, 40]


def test_plateau_multiplies_the_rate_after_its_patience(tmp_path: Path) -> None:
    overrides = ["schedule=plateau", "schedule.plateau_patience=2", "schedule.decay_rate=0.5"]
    trainer, strategy, _ = make(tmp_path, overrides, [5.0, 1.0])
    trainer.run()
    assert strategy.rate_scales == [1.0] * 15 + [0.5] * 10 + [0.25] * 10 + [0.125] * 5


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_recorded_divergence_with_a_scored_checkpoint(
    tmp_path: Path, loss: float
) -> None:
    trainer, strategy, store = make(tmp_path, [], [1.0], losses={7: loss})
    state, reason = trainer.run()
    assert state == "diverged"
    assert "step 7" in reason
    assert strategy.parameter.item() == 6
    assert records(store, "train")[-1]["loss_hex"] == float.hex(loss)
    assert [r["step"] for r in records(store, "evaluation")] == [5, 7]
    assert list_checkpoints(store, RUN) == [5, 7]
    again, _, _ = make(tmp_path, [], [1.0])
    assert again.run() == (state, reason)
    assert again.state.step == 7


def test_a_model_worse_than_guessing_has_collapsed(tmp_path: Path) -> None:
    trainer, _, _ = make(tmp_path, ["training.collapse_margin=0.5"], [1.0], log_perplexity=math.log(100) + 0.6)
    state, reason = trainer.run()
    assert state == "diverged"
    assert "worse than guessing" in reason
    trainer, _, _ = make(tmp_path / "other", ["training.collapse_margin=0.5"], [1.0], math.log(100) + 0.4)
    assert trainer.run()[0] == "finished"


def test_evaluations_by_the_clock_are_replayed_by_a_resumed_run(tmp_path: Path) -> None:
    overrides = ["validation.every_steps=0", "validation.every_minutes=0.0125", "training.keep_last=100"]
    trainer, _, store = make(tmp_path, overrides, [1.0])
    trainer.clock = (0.125 * call for call in itertools.count()).__next__  # six steps a time
    trainer.run()
    fell = [r["step"] for r in records(store, "evaluation")]
    assert fell == [6, 12, 18, 24, 30, 36, 40]
    for step in list_checkpoints(store, RUN)[1:]:
        store.delete(RUN, f"checkpoints/step-{step:08d}.pt")
    slow, _, _ = make(tmp_path, overrides, [1.0])
    slow.clock = (0.25 * call for call in itertools.count()).__next__  # this clock alone would say every second step
    slow.run()
    assert slow.state.seconds == 0.75 + 34 * 0.25
    assert [r["step"] for r in records(store, "evaluation")] == fell


def test_every_step_of_a_resumed_log_stands_once(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, ["training.log_every_steps=1", "training.max_steps=12"], [1.0])
    trainer.run()
    log = (store.directory(RUN) / "metrics.jsonl").read_text()
    store.append_line(RUN, "metrics.jsonl", '{"kind": "train", "step": 13, "torn')
    store.delete(RUN, "checkpoints/step-00000012.pt")
    again, _, _ = make(tmp_path, ["training.log_every_steps=1", "training.max_steps=12"], [1.0])
    again.run()

    def untimed(text: str) -> list[dict[str, Any]]:
        timed = {"seconds", "tokens_per_second", "evaluation_seconds"}
        return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text.splitlines()]

    assert untimed((store.directory(RUN) / "metrics.jsonl").read_text()) == untimed(log)


def test_probes_are_lines_of_their_own_by_module(tmp_path: Path) -> None:
    words = ["training.max_steps=7", "training.probe.every_steps=3"]
    trainer, _, store = make(tmp_path, words, [1.0])
    trainer.sample = lambda model: {"train/teacher_forced/log_perplexity": 0.25}
    trainer.run()
    first, second = records(store, "probe")
    assert (first["step"], second["step"]) == (3, 6)
    assert {name: value for name, value in first.items() if "/" in name} == {
        "probe/gradient/all": 13.0,
        "probe/gradient/a.b": 5.0,
        "probe/gradient/e": 12.0,
        "probe/update/all": 0.5,
        "probe/update/a.b": 0.5,
        "probe/state_gradient/decoder.0": 7.0,
    }
    evaluations = records(store, "evaluation")
    assert [record["train/teacher_forced/log_perplexity"] for record in evaluations] == [0.25, 0.25]
    assert trainer.state.best is not None
    assert "train/teacher_forced/log_perplexity" not in trainer.state.best.metrics  # results are those without a probe


def test_timing_is_shared_once_any_part_was(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, ["training.max_steps=5"], [1.0])
    trainer.timing = "shared"
    trainer.run()
    store.delete(RUN, "result.json")
    again, _, _ = make(tmp_path, ["training.max_steps=5"], [1.0])
    again.run()
    assert again.state.timing == "shared"


def test_observers_see_every_step_and_evaluation_once(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Watching(SilentObserver):
        def trained(self, step: int, record: dict[str, Any] | None) -> None:
            seen.append(("step", step))

        def evaluated(self, record: dict[str, Any]) -> None:
            seen.append(("evaluation", record["step"]))

        def ended(self) -> None:
            seen.append(("end", 0))

    trainer, _, _ = make(tmp_path, ["training.max_steps=6"], [1.0])
    trainer.observer = Watching()
    trainer.run()
    assert seen == [*(("step", n) for n in range(1, 6)), ("evaluation", 5), ("step", 6), ("evaluation", 6), ("end", 0)]


def test_status_shows_progress(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, [], [4.0])
    with store.claim(RUN):
        trainer.run()
        status = store.status(RUN)
    assert (status.state, status.step, status.latest["val/decode/bleu"]) == ("running", 40, 4.0)
    assert dataclasses.asdict(status)["tokens_per_second"] > 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_stops_at_once(name: str) -> None:
    code = f"""
import signal
from nmt.training.trainer import StopSignals
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignals() as stop:
    signal.raise_signal(signal.{name})
    print(stop.requested, flush=True)
    signal.raise_signal(signal.{name})
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n"
    assert done.returncode == -getattr(signal, name)
