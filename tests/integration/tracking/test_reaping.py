"""After a driver was killed: what MLflow shows as running is set right by whoever opens the store next."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from nmt.config.identity import run_id
from sweeps.launches import record_launch
from sweeps.plan import make_plan
from sweeps.spec import load_spec
from sweeps.tracking.sync import main

pytestmark = pytest.mark.usefixtures("heard")

DRIVER = """
import json, sys
from nmt.runs import LocalRunStore
from sweeps.tracking.tracker import ConfigurationGroup, open_for_sweep
groups = [ConfigurationGroup(*group) for group in json.loads(sys.argv[2])]
tracker = open_for_sweep("killed", "local", groups, LocalRunStore(sys.argv[1]))
tracker.poll()
print("mirrored", flush=True)
sys.stdin.read()
"""


def shown(view, **where) -> dict[str, tuple[str, str]]:
    """Status and state of every run of the killed sweep, by name."""
    found = view("killed@local", **where)
    return {run.info.run_name: (run.info.status, run.data.tags.get("nmt.state", "")) for run in found.runs}


@pytest.fixture
def killed(runs, view):
    """Four runs of three configurations while a driver mirrors them; then the driver is killed, and they go four ways.

    One dies with its driver, one comes to its end, one's directory is removed, and one goes on in this process.
    """
    both = [runs.config("both", seed) for seed in (1, 2)]
    lives = runs.config("lives", **{"training.max_steps": 77})
    removed = runs.config("removed", **{"training.max_steps": 78})
    configs = [*both, lives, removed]
    groups = [runs.group(both[0]), runs.group(lives, range(1, 2)), runs.group(removed, range(1, 2))]
    asked = json.dumps([[group.label, group.train_id, list(group.run_ids), group.config] for group in groups])
    with contextlib.ExitStack() as alive, contextlib.ExitStack() as dying:
        for config in configs:
            name = runs.begin(config)
            runs.train(name, range(10, 51, 10))
            (alive if config is lives else dying).enter_context(runs.store.claim(name))
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(runs.root), asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as driver:
            assert driver.stdout is not None and driver.stdout.readline() == "mirrored\n"
            driver.kill()
        names = ("both", "both · seed 1", "both · seed 2", "lives", "lives · seed 1", "removed", "removed · seed 1")
        assert shown(view) == dict.fromkeys(names, ("RUNNING", "running"))
        dying.close()
        runs.finish(both[1], 30.0)
        shutil.rmtree(runs.store.directory(run_id(removed)))
        yield lives


EXPECTED = {
    "both": ("KILLED", "finished, interrupted"),
    "both · seed 1": ("KILLED", "interrupted"),
    "both · seed 2": ("FINISHED", "finished"),
    "lives": ("RUNNING", "running"),
    "lives · seed 1": ("RUNNING", "running"),
    "removed": ("KILLED", "removed"),
    "removed · seed 1": ("KILLED", "removed"),
}


def test_the_next_sweep_sets_the_statuses_of_a_killed_one(runs, view, killed) -> None:
    runs.tracker(runs.group(runs.config("another", **{"training.max_steps": 79})), experiment="another@local").close()
    assert shown(view) == EXPECTED


def test_so_does_the_next_sync_whatever_it_knows_of_the_sweep(runs, view, killed) -> None:
    assert main([f"runs={runs.root}"]) == 0
    assert shown(view) == EXPECTED
    before = view("killed@local").raw()
    assert main([f"runs={runs.root}"]) == 0
    assert view("killed@local").raw() == before


def test_runs_of_another_directory_are_left_alone(runs, view, killed, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert main([f"runs={elsewhere}", f"uri=sqlite:///{runs.root}/mlflow.db"]) == 0
    assert {status for status, _ in shown(view).values()} == {"RUNNING"}


def test_a_run_that_goes_on_after_it_was_reaped_is_shown_as_running(runs, view) -> None:
    config = runs.config("additive")
    name = runs.begin(config)
    runs.train(name, range(10, 51, 10))
    group = runs.group(config, range(1, 2))
    tracker = runs.tracker(group)
    with runs.store.claim(name):
        tracker.poll()
    tracker._lock.release()  # killed; the next driver reaps it, and trains it again
    tracker = runs.tracker(group)
    with runs.store.claim(name):
        runs.train(name, range(60, 71, 10))
        tracker.poll()
        assert {run.info.status for run in view().runs} == {"RUNNING"}
    runs.finish(config, 30.0)
    tracker.close()
    assert {run.info.status for run in view().runs} == {"FINISHED"}


def test_a_sweep_that_was_killed_before_its_first_report_is_rebuilt(runs, view, capsys) -> None:
    plan = make_plan(load_spec("quickstart"), [f"paths.runs={runs.root}", "replicates=2"])
    record_launch(plan)
    begun, finished = plan.rows[0].runs[0].config, plan.rows[1].runs[0].config
    runs.train(runs.begin(begun), range(10, 51, 10))
    runs.whole(finished, 30.0)
    assert main([f"runs={runs.root}"]) == 0
    said = capsys.readouterr().out
    assert f"{2 * len(plan.rows)} runs of {len(plan.rows)} configurations in 1 experiments, 16 new points" in said
    seen = view(f"quickstart@{plan.config.scale.name}")
    statuses = {name: run.info.status for name, run in seen.parents().items()}
    waiting = dict.fromkeys((row.label for row in plan.rows), "SCHEDULED")
    assert statuses == waiting | {plan.rows[0].label: "KILLED"}
    assert set(seen.children()) == {run_id(begun), run_id(finished)}


def test_a_damaged_record_of_a_sweep_is_set_aside_and_named(runs, view, capsys) -> None:
    (runs.root / ".sweeps").mkdir(parents=True)
    (runs.root / ".sweeps" / "x@local.json").write_text("{")
    runs.whole(dataclasses.replace(runs.config("lone")), 5.0)
    assert main([f"runs={runs.root}"]) == 1
    said = capsys.readouterr()
    assert "x@local.json: is damaged, and was set aside" in said.err
    assert "1 runs of 1 configurations in 1 experiments" in said.out
