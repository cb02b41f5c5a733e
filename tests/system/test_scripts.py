"""Scripts as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.runs import LocalRunStore, RunStatus

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = ["scale=smoke", "tracking=none", "threads=1", "data.options.train_size=60", "data.options.test_size=4"]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=os.environ | environment, timeout=1200
    )


def test_a_finished_run_is_archived_without_weights_and_without_places(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run("-m", "nmt.cli", "train", *TINY, NMT_RUNS=str(runs)).returncode == 0
    (run_id,) = LocalRunStore(runs).list_runs()
    done = run(str(SCRIPTS / "archive_runs.py"), f"runs={run_id}", f"store={runs}", f"to={tmp_path / 'archive'}")
    assert done.returncode == 0, done.stderr
    archive = tmp_path / "archive" / run_id
    names = {path.name for path in archive.iterdir()}
    assert names == {
        *("config.yaml", "identity.json", "env.json", "status.json", "result.json", "metrics.jsonl", "events.jsonl"),
        "decodes",
    }
    kinds = [json.loads(line)["kind"] for line in (archive / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["header", "evaluation", "evaluation"]
    for path in archive.rglob("*"):
        if path.is_file():
            assert str(tmp_path) not in path.read_text()
    assert LocalRunStore(tmp_path / "archive").status(run_id).state == "finished"


def test_an_interrupted_run_is_archived_as_far_as_it_went(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run("-m", "nmt.cli", "train", *TINY, "faults=[kill@evaluation:6]", NMT_RUNS=str(runs))
    (run_id,) = LocalRunStore(runs).list_runs()
    done = run(str(SCRIPTS / "archive_runs.py"), f"runs={run_id}", f"store={runs}", f"to={tmp_path / 'archive'}")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "archive" / run_id).iterdir()}
    assert {"config.yaml", "identity.json", "env.json", "metrics.jsonl"} < names and "result.json" not in names


def test_a_run_that_failed_is_not_archived(tmp_path: Path) -> None:
    store = LocalRunStore(tmp_path / "runs")
    store.write_text("0123456789ab/s1", "config.yaml", "seed: 1")
    store.set_status("0123456789ab/s1", RunStatus(state="failed"))
    script = str(SCRIPTS / "archive_runs.py")
    done = run(script, "runs=0123456789ab/s1", f"store={tmp_path / 'runs'}", f"to={tmp_path / 'archive'}")
    assert done.returncode == 2
    assert "is failed" in done.stderr
    assert not (tmp_path / "archive").exists()


TINY_MODEL = ["model.embedding.units=16", "model.encoder.units=8", "model.decoder.units=16", "model.attention.units=16"]


@pytest.mark.exhaustive
def test_the_benchmark_sets_what_is_achieved_against_the_floor(tmp_path: Path) -> None:
    words = ["rounds=3", "threads=1", "quick=true", "device=cpu", "shapes=recurrent_128", "precisions=fp32"]
    only, path = "only=training,memory,beam,data", tmp_path / "bench.json"
    done = run(str(SCRIPTS / "bench.py"), only, f"json={path}", *words, *TINY_MODEL)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert list(found["parts"]) == ["training", "memory", "beam", "data"]
    for heading in ("## Training", "## Memory of a training step", "## Beam search", "## Data"):
        assert heading in done.stdout
    (shape,) = found["parts"]["training"]
    (arm,) = shape["arms"]
    rounds = arm["rounds"]
    name = "training/recurrent_128/fp32/1_threads"
    achieved = [sum(one["useful_operations"].values()) / one["product_rate"] / one["seconds"] for one in rounds]
    assert found["ratios"][f"{name}/achieved_over_floor"] == sorted(achieved)[1]
    apart = [sum(one["phases"].values()) - one["seconds"] for one in rounds]  # what the watching itself costs
    assert min(apart) > -1e-9 and min(apart) < 0.1 * min(one["seconds"] for one in rounds)
    output = [one["floors"]["output"] / one["phases"]["output"] for one in rounds]
    assert found["ratios"][f"{name}/output"] == sorted(output)[1]
    assert found["ratios"]["beam/recurrent_128/beam_10/1_threads/achieved_over_floor"] > 0
    assert all(isinstance(value, float) for value in found["ratios"].values())
    assert found["machine"]["threads"] == [1] and "load" in done.stdout


def test_mistakes_in_what_is_to_be_measured_are_one_line(tmp_path: Path) -> None:
    script = str(SCRIPTS / "bench.py")
    for words, message in (
        (["only=trainign"], "only: 'trainign' is not a choice"),
        (["threads=two"], "threads: two are no numbers"),
        (["model.embedding.units=-1"], "model.embedding.units"),
        ([f"json={tmp_path}/none/b.json"], "json: there is no directory"),
    ):
        wrong = run(script, *words)
        assert wrong.returncode == 2 and message in wrong.stderr and wrong.stderr.count("\n") == 1, wrong.stderr


@pytest.mark.exhaustive
def test_the_published_tables_are_rewritten_from_the_configurations(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- table: table2_cells -->\nstale\n<!-- end -->\nAfter.\n")
    script = [str(SCRIPTS / "published_tables.py"), f"page={page}"]
    stale = run(*script, "check=true")
    assert stale.returncode == 1 and "would change" in stale.stdout
    assert run(*script).returncode == 0
    lines = page.read_text().splitlines()
    assert lines[0] == "Before." and lines[-1] == "After."
    assert lines[4] == "| LSTM | `t2_lstm` | 22.22 ± 0.08 (22.33) | 68,948,111 | 68.95 | -0.0019 |"
    assert run(*script, "check=true").returncode == 0
    page.write_text("<!-- table: tabel -->\n<!-- end -->\n")
    wrong = run(*script)
    assert wrong.returncode == 2 and "unknown sweep 'tabel'" in wrong.stderr


def test_the_cost_of_a_plan_is_a_line_a_stage() -> None:
    done = run(str(SCRIPTS / "plan_cost.py"), "rows=3", "replicates=2")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["stage"] for line in lines][:3] == ["rows", "plan", "work items"]
    assert all(line["cpu_seconds"] >= 0 and line["more_MB"] >= 0 for line in lines)
    assert run(str(SCRIPTS / "plan_cost.py"), "rows=0").stderr.startswith("error: rows: 0 is out of range")


@pytest.mark.exhaustive
def test_the_cost_of_many_runs_is_measured_and_a_second_sync_writes_nothing() -> None:
    done = run(str(SCRIPTS / "registry_cost.py"), "rows=2", "replicates=2", "points=10")
    assert done.returncode == 0, done.stderr
    status, first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (status["command"], status["runs"]) == ("nmt status", 4)
    assert (first["time"], first["runs"], first["new_points"]) == ("first", 4, 40)
    assert (second["time"], second["runs"], second["new_points"]) == ("second", 4, 0)
    assert run(str(SCRIPTS / "registry_cost.py"), "points=0").stderr.startswith("error: points: 0 is out of range")


@pytest.mark.exhaustive
def test_what_an_executor_costs_is_measured_beside_the_same_training_here() -> None:
    script = str(SCRIPTS / "executor_overhead.py")
    done = run(script, "executors=inline", "replicates=2", "steps=2")
    assert done.returncode == 0, done.stderr
    *_, header, here, inline = done.stdout.splitlines()
    assert header.split()[:2] == ["executor", "runs"]
    assert here.startswith("this process") and here.split()[-2] == "0.00"
    assert inline.split()[:2] == ["inline", "2"]
    done = run(script, "executors=nobody")
    assert (done.returncode, done.stderr.startswith("error: executor")) == (2, True), done.stderr
