"""`nmt sweep` as a person runs it: tiny real trainings, run twice, grown, interrupted and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.sweep import main

TINY = """\
title: Two tiny rows
replicates: 1
baseline: plain
overrides:
  - scale=smoke
  - search=greedy
  - data.options.test_size=20
  - tracking=none
rows:
  - {label: plain}
  - {label: additive, experiment: t5_add_512, published: {mean: 22.47}}
"""
PATIENCE_SECONDS = 600.0  # on a machine whose cores others have taken


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return f"sweep={path}"


def nmt(*words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nmt.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd)


def test_without_a_name_the_sweeps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "quickstart  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sweep=quickstrt"], "error: sweep: unknown sweep 'quickstrt'"),
        (["sweep=quickstart", "training.max_step=3"], "did you mean training.max_steps"),
        (["sweep=quickstart", "executor=rai"], "error: executor: unknown option 'rai'"),
        (["sweep=quickstart", "replicates=0"], "error: replicates: 0 is out of range"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(words: list[str], complaint: str, isolated_runs: Path) -> None:
    process = nmt("sweep", *words)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert complaint in out
    assert len(out.splitlines()) == 1
    assert not isolated_runs.exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(capsys: pytest.CaptureFixture[str], isolated_runs: Path) -> None:
    assert main(["sweep=quickstart", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert out.count(" queued ") == out.count(" train ") == 4
    assert "4 runs, 4 to do" in out
    assert "parameters at published size: 2 of 2 rows within 0.005M of the published figure" in out
    assert "66,325,135 │       66.33" in out
    assert "not as published: scale=local (sizes divided by 4)" in out
    assert not isolated_runs.exists()


def test_a_row_that_is_not_the_published_model_starts_nothing(
    tmp_path: Path, tiny: str, isolated_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(TINY.replace("{mean: 22.47}", "{mean: 22.47, params_M: 66.32}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"row 'additive': 66,325,135 parameters .* 66.32M were published"):
        main([f"sweep={wrong}", "executor=inline"])
    assert capsys.readouterr().out == ""
    assert not isolated_runs.exists()


def test_a_sweep_runs_once_and_grows(tiny: str, capsys: pytest.CaptureFixture[str], isolated_runs: Path) -> None:
    words = [tiny, "executor=inline"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "2 rows × 1 replicates: 2 of 2 runs to do" in first
    assert first.count("finished  test bleu") == 2
    assert "| plain (baseline) |" in first
    assert all(character.isprintable() or character == "\n" for character in first)
    report = json.loads((isolated_runs / "reports/tiny/sweep.json").read_text(encoding="utf-8"))
    assert [row["n"] for row in report["rows"]] == [1, 1]
    store = LocalRunStore(isolated_runs)
    assert len(store.list_runs()) == 2
    best = max(
        (replicate for row in report["rows"] for replicate in row["replicates"]),
        key=lambda replicate: replicate["metrics"]["bleu"],
    )
    assert f"nmt translate run={best['run_id']}" in first

    files = {path: path.stat().st_mtime_ns for run in store.list_runs() for path in store.directory(run).rglob("*")}
    assert main(words) == 0
    assert "all 2 runs are there, nothing to train" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in files} == files

    assert main([*words, "replicates=2"]) == 0
    grown = capsys.readouterr().out
    assert "2 of 4 runs to do, 2 there already" in grown
    assert grown.count("seed 2") > 0 == grown.count("seed 1")
    assert {path: path.stat().st_mtime_ns for path in files if path.is_file()} == {
        path: time for path, time in files.items() if path.is_file()
    }
    assert grown.count("±") >= 3  # both rows, and the legend


def standing_still(store: LocalRunStore) -> list[int]:
    """The processes of runs that have stopped at their fault."""
    running = (store.status(run) for run in store.list_runs())
    return [status.pid for status in running if status.state == "running" and state_of(status.pid) == "T"]


def state_of(pid: int) -> str:
    """A process's state as the kernel says it: T where it is stopped, nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_for_stop(store: LocalRunStore, process: subprocess.Popen[str]) -> None:
    """Until some run stands still."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if standing_still(store):
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no run came to its fault: {process.communicate()[0]}")


def ctrl_c(store: LocalRunStore, process: subprocess.Popen[str]) -> str:
    """What the sweep says to it; runs that stand still, or come to stand still meanwhile, go on and hear of it too."""
    process.send_signal(signal.SIGINT)
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        for pid in standing_still(store):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    return process.communicate(timeout=PATIENCE_SECONDS)[0]


def test_ctrl_c_leaves_checkpoints_and_the_same_command_goes_on(tiny: str, isolated_runs: Path) -> None:
    # Short enough to finish afterwards; evaluation is rare, so that it is the signal that makes the checkpoint.
    words = ["sweep", tiny, "executor=inline", "training.max_steps=200", "validation.every_steps=200"]
    store = LocalRunStore(isolated_runs)
    process = nmt(*words, "faults=[stop@slot:5]")
    wait_for_stop(store, process)
    out = ctrl_c(store, process)
    assert process.returncode == 75, out
    assert "the same command goes on" in out
    stopped = {run: store.status(run) for run in store.list_runs()}
    assert "interrupted" in {status.state for status in stopped.values()}
    assert not any(store.is_claimed(run) for run in stopped)
    interrupted = [run for run, status in stopped.items() if status.state == "interrupted" and status.step]
    assert all(list((store.directory(run) / "checkpoints").glob("*.pt")) for run in interrupted)

    process = nmt(*words)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, out
    for run in interrupted:
        assert store.status(run).state == "finished"
        lines = (store.directory(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]
        assert steps == list(range(2, 201, 2))  # each step once, in order, from both parts


@pytest.mark.ray
def test_through_ray_with_a_relative_path_and_ctrl_c(tiny: str, tmp_path: Path) -> None:
    words = ["sweep", tiny, "paths.runs=here", "training.max_steps=100000", "training.checkpoint_every_steps=10"]
    store = LocalRunStore(tmp_path / "here")
    process = nmt(*words, cwd=tmp_path)
    end = time.monotonic() + PATIENCE_SECONDS
    while not any(store.status(run).step >= 4 for run in store.list_runs()):
        assert process.poll() is None and time.monotonic() < end, process.kill() or process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, out
    assert {store.status(run).state for run in store.list_runs()} == {"interrupted"}
    assert not any(store.is_claimed(run) for run in store.list_runs())
    assert "Traceback" not in out
