"""The training loop with a strategy made of numbers: what is chosen, when it stops, what diverges."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.strategy import Probe, StateLost, StepStats, WorkloadSpec
from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.events import EVENTS, read_events
from nmt.provenance.trace import marks_of
from nmt.runs import LocalRunStore, RunStatus
from nmt.training.checkpoint import list_checkpoints, read_checkpoint
from nmt.training.energy import energy_figures
from nmt.training.observers import SilentObserver
from nmt.training.state import RunState
from nmt.training.stop_signals import StopSignals
from nmt.training.trainer import Interrupted, Trainer

RUN = "0123456789ab/s1"


class Counting:
    """A strategy whose only parameter counts steps; `losses` overrides the loss of named steps.

    It says that it begins `ahead` steps before it is asked for them, and writes a line a step into a journal. Its
    machine uses 2 J for a step and 5 J for an evaluation, where it is `metered`.
    """

    def __init__(self, losses: Mapping[int, float] | None = None, ahead: int = 0, metered: bool = False):
        self.metered, self.joules = metered, 1000.0  # what was used before training began
        self.parameter = torch.zeros(1)
        self.losses, self.ahead = losses or {}, ahead
        self.rate_scales: list[float] = []
        self.horizons: dict[int, int] = {}
        self.begun = 0
        self.unwritten = b""

    def start(self, spec: WorkloadSpec) -> None: ...

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        assert horizon is not None
        assert horizon >= index
        self.horizons[index] = horizon
        self.begun = max(self.begun, min(index + self.ahead, horizon))
        self.unwritten += b"step %d\n" % index
        self.joules += 2
        self.rate_scales.append(rate_scale)
        loss = self.losses.get(index, 1.0 / index)
        if math.isfinite(loss):
            self.parameter += 1
        seen = Probe({"a.b.c": 3.0, "a.b.d": 4.0, "e.f": 12.0}, {"a.b.c": 0.5}, {"decoder.0": 7.0}) if probe else None
        return StepStats(index, loss, 10, 9, 1.0, 0.1, seen)

    def halt(self) -> int:
        return self.begun

    def synchronize(self) -> None: ...

    def state(self) -> dict[str, Any]:
        assert self.begun == max(self.horizons, default=0)  # at rest
        return {"parameters": {"p": self.parameter.clone()}, "optimizer": {}, "updates": 0}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.parameter.copy_(state["parameters"]["p"])

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        self.joules += 5
        yield torch.nn.Identity()

    def journals(self) -> Mapping[str, bytes]:
        written, self.unwritten = self.unwritten, b""
        return {"trace/server0": written} if self.ahead else {}

    def report(self) -> Mapping[str, Any]:
        found = {"energy": {"joules": self.joules if self.metered else None, "reasons": ["nothing to read"]}}
        others = {"idle": {"worker0": 0.25, "deeper": {"down": 1}}, "lost": 2, "shm": True}
        return found | (others if self.ahead else {})

    def close(self) -> None: ...


def make(
    tmp_path: Path,
    overrides: list[str],
    scores: list[float],
    log_perplexity: float = 1.0,
    metric: str = "val/decode/bleu",
    **behaviour: Any,
) -> tuple[Trainer, Counting, LocalRunStore]:
    """A trainer whose n-th evaluation scores `scores[n]` (the last one repeats)."""
    config: RunConfig = compose(["scale=smoke", "training.max_steps=40", "validation.every_steps=5", *overrides])
    store = LocalRunStore(tmp_path)
    remaining = list(scores)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        score = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return {metric: score, "val/teacher_forced/log_perplexity": log_perplexity}

    strategy = Counting(**behaviour)
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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {1: 5, 4: 5, 5: 5, 6: 10, 36: 40, 40: 40}),
        (["training.checkpoint_every_steps=3"], {1: 3, 4: 5, 6: 6, 7: 9, 10: 10, 40: 40}),
        (["validation.every_steps=15"], {1: 15, 16: 30, 31: 40}),
        # A probed step stands alone, and the one before it goes no further.
        (["training.probe.every_steps=4"], {1: 3, 3: 3, 4: 4, 5: 5, 6: 7, 8: 8, 9: 10, 39: 39, 40: 40}),
        (["training.probe.every_steps=1"], {1: 1, 2: 2, 40: 40}),
        (["validation.every_steps=0", "validation.every_minutes=9"], {1: 40, 2: 40, 40: 40}),
    ],
)
def test_a_strategy_knows_how_far_it_may_go_ahead(
    tmp_path: Path, overrides: list[str], expected: dict[int, int]
) -> None:
    trainer, strategy, _ = make(tmp_path, overrides, [1.0], ahead=3)
    trainer.run()
    assert list(strategy.horizons) == list(range(1, 41))
    assert {step: strategy.horizons[step] for step in expected} == expected


def test_an_evaluation_by_the_clock_waits_for_the_steps_that_were_begun(tmp_path: Path) -> None:
    overrides = ["validation.every_steps=0", "validation.every_minutes=0.0125"]
    trainer, _, store = make(tmp_path, overrides, [1.0], ahead=2)
    trainer.clock = (0.125 * call for call in itertools.count()).__next__  # due after six steps
    trainer.run()
    fell = [r["step"] for r in records(store, "evaluation")]
    assert fell == [8, 16, 24, 32, 40]
    newest = store.directory(RUN) / "checkpoints/step-00000040.pt"
    newest.unlink()
    again, strategy, _ = make(tmp_path, overrides, [1.0], ahead=2)
    again.clock = (0.125 * call for call in itertools.count()).__next__
    again.run()
    assert strategy.horizons[33] == 40  # where it fell is known now
    assert [r["step"] for r in records(store, "evaluation")] == fell


def test_a_signal_stops_where_the_steps_that_were_begun_end(tmp_path: Path) -> None:
    class Stopping(SilentObserver):
        def trained(self, step: int, record: dict[str, Any] | None) -> None:
            if step == 6:
                signal.raise_signal(signal.SIGTERM)

    trainer, _, store = make(tmp_path, ["validation.every_steps=20"], [1.0], ahead=3)
    trainer.observer = Stopping()
    with pytest.raises(Interrupted, match="SIGTERM"):
        trainer.run()
    assert list_checkpoints(store, RUN) == [9]
    again, strategy, _ = make(tmp_path, ["validation.every_steps=20"], [1.0], ahead=3)
    again.run()
    assert next(iter(strategy.horizons)) == 10
    assert strategy.parameter.item() == 40


def test_a_stop_that_takes_the_other_processes_along_is_a_stop_and_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches every process of a terminal's group."""

    def lost(*_: Any) -> int:
        raise StateLost("server 0 is gone, and nobody shadows its shard")

    trainer, strategy, store = make(tmp_path, [], [1.0], ahead=3)
    monkeypatch.setattr(strategy, "halt", lost)
    with pytest.raises(StateLost):
        trainer.run()  # at the first evaluation, and nobody asked for a stop
    trainer, strategy, store = make(tmp_path, ["validation.every_steps=20"], [1.0], ahead=3)
    monkeypatch.setattr(strategy, "halt", lost)

    class Stopping(SilentObserver):
        def trained(self, step: int, record: dict[str, Any] | None) -> None:
            signal.raise_signal(signal.SIGINT)

    trainer.observer = Stopping()
    with pytest.raises(Interrupted, match="SIGINT"):
        trainer.run()
    (stop,) = read_events(store.directory(RUN) / EVENTS)
    assert (stop["kind"], stop["notice"]) == ("stop", "SIGINT; server 0 is gone, and nobody shadows its shard")


def test_a_signal_that_comes_during_an_evaluation_stops_behind_it(tmp_path: Path) -> None:
    class Stopping(SilentObserver):
        def evaluated(self, record: dict[str, Any]) -> None:
            signal.raise_signal(signal.SIGTERM)

    trainer, _, store = make(tmp_path, [], [1.0], ahead=3)
    trainer.observer = Stopping()
    with pytest.raises(Interrupted):
        trainer.run()
    assert (trainer.state.step, list_checkpoints(store, RUN)) == (5, [5])


def test_a_divergence_is_scored_once_what_was_begun_behind_it_is_over(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, [], [1.0], losses={7: math.nan, 8: math.inf}, ahead=2)
    state, reason = trainer.run()
    assert (state, "step 7" in reason) == ("diverged", True)
    assert [r["step"] for r in records(store, "evaluation")] == [5, 9]


def test_journals_are_as_long_as_the_checkpoint_says(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, [], [1.0], ahead=1)
    trainer.run()
    journal = store.directory(RUN) / "journals/trace/server0"
    whole = journal.read_bytes()
    assert whole == b"".join(b"step %d\n" % step for step in range(1, 41))
    assert trainer.state.journal_bytes == {"trace/server0": len(whole)}
    (store.directory(RUN) / "checkpoints/step-00000040.pt").unlink()
    store.append_bytes(RUN, "journals/trace/server0", b"step 41, torn")
    store.append_bytes(RUN, "journals/of_nobody", b"written before a checkpoint that never was")
    again, _, _ = make(tmp_path, [], [1.0], ahead=1)
    again.run()
    assert journal.read_bytes() == whole
    assert [path.name for path in (store.directory(RUN) / "journals").rglob("*") if path.is_file()] == ["server0"]


def test_a_state_without_journals_is_what_it_was_before_there_were_any(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, ["training.max_steps=5"], [1.0])
    trainer.run()
    content = read_checkpoint(store.directory(RUN) / "checkpoints/step-00000005.pt")
    assert "journal_bytes" not in content["state"]
    assert RunState.from_dict(content["state"]).journal_bytes == {}
    assert not (store.directory(RUN) / "journals").exists()


def test_what_a_strategy_reports_stands_with_each_evaluation_and_is_no_bit_of_it(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, [], [1.0], ahead=1)
    trainer.run()
    (_, *_, last) = records(store, "evaluation")
    assert {name: value for name, value in last.items() if name.startswith("distribution")} == {
        "distribution/idle/worker0": 0.25,
        "distribution/lost": 2,
    }
    assert not any("distribution" in str(mark) for mark in marks_of(last))
    other, _, _ = make(tmp_path / "other", [], [1.0])
    other.run()
    assert marks_of(records(LocalRunStore(tmp_path / "other"), "evaluation")[-1]) == marks_of(last)


def test_joules_of_training_and_of_evaluation_are_told_apart_and_live_on_in_checkpoints(tmp_path: Path) -> None:
    trainer, _, store = make(tmp_path, [], [1.0], metered=True)
    trainer.run()
    expected = {
        "energy/joules_per_1000_tokens": 200.0,  # 2 J for 10 tokens
        "energy/training_joules": 80.0,
        "energy/evaluation_joules": 40.0,
        "energy/measured_tokens": 400,
    }
    last = records(store, "evaluation")[-1]
    assert {name: value for name, value in last.items() if name.startswith("energy")} == expected
    assert not any("energy" in str(mark) for mark in marks_of(last))
    (store.directory(RUN) / "checkpoints/step-00000040.pt").unlink()  # the newest is now that of step 35
    again, _, _ = make(tmp_path, [], [1.0], metered=True)
    again.run()
    assert {name: value for name, value in records(store, "evaluation")[-1].items() if name in expected} == expected


def test_a_run_of_which_a_part_was_not_measurable_is_divided_by_what_was(tmp_path: Path) -> None:
    first, _, store = make(tmp_path, [], [1.0])
    first.run()
    assert "energy" not in read_checkpoint(store.directory(RUN) / "checkpoints/step-00000040.pt")["state"]
    (last,) = records(store, "evaluation")[-1:]
    assert last["energy"] == "not measurable: nothing to read"
    assert energy_figures(first.state, {"reasons": ["nothing to read"]}) == {
        "joules_per_1000_tokens": "not measurable",
        "reason": "nothing to read",
    }
    for step in (35, 40):
        (store.directory(RUN) / f"checkpoints/step-{step:08d}.pt").unlink()  # that of step 5 is left
    second, _, _ = make(tmp_path, [], [1.0], metered=True)
    second.run()
    assert energy_figures(second.state, {"hosts": 1, "counters": ["package-0"]}) == {
        "joules_per_1000_tokens": 200.0,
        "training_joules": 70.0,
        "evaluation_joules": 35.0,
        "measured_tokens": 350,
        "hosts": 1,
        "counters": ["package-0"],
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(number: signal.Signals) -> None:
    reader, writer = os.pipe()
    child = os.fork()  # a process that has imported everything already
    if not child:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with StopSignals() as stop:
                signal.raise_signal(number)
                os.write(writer, str(stop.requested).encode())
                signal.raise_signal(number)
                os.write(writer, b" still here")
        finally:
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        assert said.read() == number.name
    assert os.waitstatus_to_exitcode(status) == -number
