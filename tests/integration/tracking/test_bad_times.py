"""A tracker while things go wrong around it: training goes on, one line tells of it, and nothing is lost for good."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys

import pytest

from nmt.config.identity import run_id
from sweeps.tracking import tracker as tracking
from sweeps.tracking.sync import main

pytestmark = pytest.mark.usefixtures("heard")


def steps(view, name: str) -> list[int]:
    seen = view()
    return [step for step, _ in seen.curve(seen.children()[name])]


def test_a_store_that_comes_back_is_brought_up_to_date(runs, view, caplog, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(tracking, "PATIENCE", 0)
    config = runs.config("additive")
    name = runs.begin(config)
    tracker = runs.tracker(runs.group(config, range(1, 2)))
    runs.train(name, range(10, 51, 10))
    tracker.poll()

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is away")

    for start in (60, 110):
        with monkeypatch.context() as outage:
            outage.setattr("mlflow.tracking.MlflowClient.log_batch", refuse)
            runs.train(name, range(start, start + 30, 10))
            tracker.poll()
            tracker.poll()
        runs.train(name, range(start + 30, start + 50, 10))
        tracker.poll()
    assert steps(view, name) == list(range(10, 151, 10))
    tracker.close()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4  # each outage and each return, however often it was tried
    assert all("the server is away" in line and "training goes on" in line for line in lines[::2])
    assert all("up to date again" in line for line in lines[1::2])


def test_a_store_that_fails_is_not_asked_all_the_time(runs, caplog, monkeypatch) -> None:
    config = runs.config("additive")
    runs.whole(config, 30.0)
    calls = []

    def refuse(*_: object, **__: object) -> None:
        calls.append(1)
        raise ConnectionError("the server is away")

    monkeypatch.setattr(tracking, "open_client", refuse)
    tracker = runs.tracker(runs.group(config, range(1, 2)))
    for _ in range(50):
        tracker.poll()
    assert len(calls) == 1
    tracker.close()  # a last chance
    assert len(calls) == 2 and len(caplog.records) == 1
    tracker.poll()
    assert len(calls) == 2


def test_a_directory_that_is_removed_while_it_is_mirrored(runs, view, caplog) -> None:
    one, two = [runs.config("additive", seed) for seed in (1, 2)]
    names = [runs.begin(config) for config in (one, two)]
    for name in names:
        runs.train(name, range(10, 51, 10))
    tracker = runs.tracker(runs.group(one))
    with runs.store.claim(names[0]), runs.store.claim(names[1]):
        tracker.poll()
    shutil.rmtree(runs.store.directory(names[0]))
    runs.train(names[1], range(60, 101, 10))
    runs.finish(two, 30.0)
    tracker.poll()
    tracker.close()
    children = view().children()
    assert {name: (run.info.status, run.data.tags["nmt.state"]) for name, run in children.items()} == {
        names[0]: ("KILLED", "removed"),
        names[1]: ("FINISHED", "finished"),
    }
    assert [step for step, _ in view().curve(children[names[1]])] == list(range(10, 101, 10))
    assert [record.getMessage() for record in caplog.records] == []


def test_a_finished_run_whose_directory_was_removed_stays_as_it_was(runs, view) -> None:
    config = runs.config("additive")
    name = runs.whole(config, 30.0)
    group = runs.group(config, range(1, 2))
    runs.tracker(group).close()
    shutil.rmtree(runs.store.directory(name))
    runs.tracker(group).close()
    child = view().children()[name]
    assert (child.info.status, child.data.tags["nmt.state"]) == ("FINISHED", "finished")


def test_a_damaged_line_costs_its_point_and_is_told(runs, view, caplog) -> None:
    config = runs.config("additive")
    name = runs.begin(config)
    tracker = runs.tracker(runs.group(config, range(1, 2)))
    runs.train(name, range(10, 31, 10))
    with (runs.store.directory(name) / "metrics.jsonl").open("a") as file:
        file.write("\0\0\0 a bad sector\n")
    tracker.poll()
    runs.train(name, range(50, 101, 10))
    runs.finish(config, 30.0)
    tracker.poll()
    tracker.close()
    assert steps(view, name) == [10, 20, 30, *range(50, 101, 10)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert name in line and "metrics.jsonl:5" in line


FULL_DISK = """
import resource, sys
from pathlib import Path
from nmt.config import load_run_config
from nmt.runs import LocalRunStore
from sweeps.tracking.tracker import open_for_run

store = LocalRunStore(sys.argv[1])
tracker = open_for_run(load_run_config(store.directory(sys.argv[2]) / "config.yaml"), store)
size = Path(sys.argv[1], "mlflow.db").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, size + 8192))  # as if the disk were full
tracker.poll()
tracker.poll()
tracker.close()
print("went on")
"""


def test_a_full_disk_costs_one_line_and_the_next_sync_brings_the_rest(runs, view, capsys) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    config = runs.config("additive")
    name = runs.whole(config, 30.0, steps=9000)
    command = [sys.executable, "-c", FULL_DISK, str(runs.root), name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")
    (line,) = done.stderr.splitlines()
    assert "training goes on" in line and "mlflow.db" in line
    assert main([f"runs={runs.root}"]) == 0
    seen = view("train@local")
    assert [step for step, _ in seen.curve(seen.children()[name])] == list(range(10, 9001, 10))
    assert run_id(config) == name
