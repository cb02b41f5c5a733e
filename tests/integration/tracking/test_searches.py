"""The trials of a search in MLflow, from their files and run directories."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from nmt.config import to_dict
from nmt.config.identity import run_id
from sweeps.tracking.sync import main
from sweeps.tracking.tracker import open_for_search
from sweeps.tuning.trials import Trial

FOLDER = ".sweeps/rates-abc123.trials"


@pytest.fixture
def trials(runs) -> dict[int, Trial]:
    """Three proposals, one of them refused."""
    found = {}
    for number, rate in ((1, "1e-3"), (2, "1e-2")):
        config = runs.config("", **{"optimizer.learning_rate": rate})
        assignments = (("optimizer.learning_rate", rate), ("model/attention", "additive"))
        found[number] = Trial(number=number, assignments=assignments, run_id=run_id(config), config=to_dict(config))
    found[3] = Trial(number=3, assignments=(("optimizer.learning_rate", "-1"),), refused="is out of range")
    return found


def keep(runs, trial: Trial) -> None:
    runs.store.write_json(FOLDER, f"{trial.number:04}.json", dataclasses.asdict(trial))


def play(runs, trials, poll=lambda: None) -> None:
    """What a search writes: the first trial comes to its end, the second is stopped."""
    keep(runs, trials[1])
    poll()  # it has not begun
    first = runs.config("", **{"optimizer.learning_rate": "1e-3"})
    name = runs.begin(first)
    runs.train(name, range(10, 51, 10))
    with runs.store.claim(name):
        poll()
    keep(runs, trials[2])
    keep(runs, trials[3])
    second = runs.begin(runs.config("", **{"optimizer.learning_rate": "1e-2"}))
    runs.train(second, range(10, 51, 10))
    for step, bleu in ((20, 9.0), (40, 7.0)):
        runs.evaluate(second, step, bleu)
    with runs.store.claim(second):
        poll()
        keep(runs, dataclasses.replace(trials[2], stopped_at=40))
        poll()  # told to stop, and still there
    runs.state(second, "interrupted", step=50)
    poll()
    runs.train(name, range(60, 101, 10))
    runs.evaluate(name, 100, 31.0)
    runs.finish(first, 30.0)


def test_trials_are_shown_while_they_run(runs, view, trials) -> None:
    seen = []
    tracker = open_for_search("rates", "local", runs.root / FOLDER, runs.store)

    def poll() -> None:
        tracker.poll()
        found = {run.info.run_name: run for run in view("rates-search@local").runs}
        seen.append({name: (run.info.status, run.data.tags["nmt.state"]) for name, run in sorted(found.items())})

    play(runs, trials, poll)
    tracker.close()
    one, two = (f"trial {number} · {trials[number].label}" for number in (1, 2))
    assert seen == [
        {},
        {one: ("RUNNING", "running")},
        {one: ("KILLED", "interrupted"), two: ("RUNNING", "running")},
        {one: ("KILLED", "interrupted"), two: ("RUNNING", "running")},
        {one: ("KILLED", "interrupted"), two: ("KILLED", "stopped")},
    ]
    found = {run.info.run_name: run for run in view("rates-search@local").runs}
    assert set(found) == {one, two}
    finished, stopped = found[one], found[two]
    assert finished.info.status == "FINISHED" and finished.data.metrics["best_val_bleu"] == 31.0
    assert finished.data.params["optimizer.learning_rate"] == "0.001"
    assert finished.data.params["model/attention"] == "additive"
    assert finished.data.metrics["factor.optimizer.learning_rate"] == 1e-3
    assert stopped.data.tags["nmt.stopped_at"] == "40" and stopped.data.metrics["best_val_bleu"] == 9.0
    assert stopped.data.tags["nmt.search"] == "rates-abc123"
    assert [step for step, _ in view("rates-search@local").curve(stopped)] == [10, 20, 30, 40, 50]


def test_sync_rebuilds_a_search(runs, view, trials, tmp_path: Path, empty_store: Path, capsys) -> None:
    tracker = open_for_search("rates", "local", runs.root / FOLDER, runs.store)
    play(runs, trials, tracker.poll)
    tracker.close()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(empty_store, tmp_path / "elsewhere")
    assert main([f"runs={runs.root}", f"uri=sqlite:///{tmp_path}/elsewhere/mlflow.db"]) == 0
    # and the trials are not shown a second time, as runs that nobody asked for
    assert "2 runs of 2 configurations in 1 experiments, 18 new points" in capsys.readouterr().out
    here, there = view("rates-search@local"), view("rates-search@local", root=tmp_path / "elsewhere")
    assert there.everything() == here.everything()
    assert there.experiment.tags["mlflow.sharedViewState.nmt"] == here.experiment.tags["mlflow.sharedViewState.nmt"]
    before = there.raw()
    assert main([f"runs={runs.root}", f"uri=sqlite:///{tmp_path}/elsewhere/mlflow.db"]) == 0
    assert view("rates-search@local", root=tmp_path / "elsewhere").raw() == before


def test_a_damaged_trial_is_left_out_and_named(runs, view, trials, capsys) -> None:
    play(runs, trials)
    (runs.root / FOLDER / "0002.json").write_text('{"format_version": 1, "number": 2}')
    assert main([f"runs={runs.root}"]) == 1
    assert "left out trial 2 of rates-abc123" in capsys.readouterr().err
    assert len(view("rates-search@local").runs) == 1
