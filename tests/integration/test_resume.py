"""A run that is killed anywhere ends with the bits of one that was never disturbed, dropout on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nmt.runs import LocalRunStore

# Evaluations at 6, 12, 18; a checkpoint of its own at 9; four slots a step; dropout on; the best is not the last.
TRAIN = [
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 400, validation_size: 20, test_size: 20}",
    "scale=smoke",
    "data.max_sentences=0",
    "experiment=t5_add_512",
    "tracking=none",
    "device=cpu",
    "threads=1",
    "batch.size=32",
    "batch.micro_batches=4",
    "batch.groups=2",
    "optimizer.learning_rate=0.01",
    "model.dropout_mix=0.1",
    "training.max_steps=18",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=9",
    "validation.every_steps=6",
    "validation.max_sentences=0",
]
PATIENCE_SECONDS = 600.0  # for a training of a few steps, on a machine whose cores others have taken
TIMES = {"seconds", "evaluation_seconds", "tokens_per_second", "timing", "peak_memory_bytes", "convergence", "energy"}


def nmt(runs: Path, *words: str, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "nmt.cli", "train", *TRAIN, *words],
        env=os.environ | {"NMT_RUNS": str(runs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.wait(timeout=PATIENCE_SECONDS)
    return process


def bits(runs: Path) -> dict[str, Any]:
    """All that the one run in a directory recorded, but for times."""
    store = LocalRunStore(runs)
    (run_id,) = store.list_runs()
    return bits_of(store, run_id)


def bits_of(store: LocalRunStore, run_id: str) -> dict[str, Any]:
    """All that a run recorded, but for times."""
    lines = (store.directory(run_id) / "metrics.jsonl").read_text().splitlines()
    records = [
        {k: v for k, v in json.loads(line).items() if k not in TIMES and not k.startswith("energy/")} for line in lines
    ]
    result = store.read_json(run_id, "result.json")
    assert result is not None
    decodes = sorted((store.directory(run_id) / "decodes").glob("*.txt"))
    return {
        "records": records,
        "result": {k: v for k, v in result.items() if k not in TIMES},
        "convergence": {k: v for k, v in result["convergence"].items() if k != "seconds"},
        "decodes": {path.name: path.read_text() for path in decodes},
        "state": store.status(run_id).state,
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("undisturbed")
    process = nmt(runs)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    found = bits(runs)
    assert found["state"] == "finished"
    assert [r["step"] for r in found["records"] if r["kind"] == "evaluation"] == [6, 12, 18]
    return found


SAMPLED = ["recorded:12"]
ALL = [f"slot:{step}" for step in (1, 7, 9, 12, 18)] + [
    *(f"checkpoint:{step}" for step in (6, 9, 18)),
    *(f"evaluation:{step}" for step in (6, 18)),
    *(f"recorded:{step}" for step in (6, 18)),
]
KILLS = [*SAMPLED, *(pytest.param(point, marks=pytest.mark.exhaustive) for point in ALL)]


@pytest.mark.parametrize("point", KILLS)
def test_killed_and_resumed_is_the_undisturbed_run(undisturbed: dict[str, Any], tmp_path: Path, point: str) -> None:
    killed = nmt(tmp_path, f"faults=[kill@{point}]")
    assert killed.returncode == -signal.SIGKILL
    store = LocalRunStore(tmp_path)
    (run_id,) = store.list_runs()
    assert store.status(run_id).state == "interrupted"
    assert store.read_json(run_id, "result.json") is None
    resumed = nmt(tmp_path)
    assert resumed.returncode == 0, resumed.stderr and resumed.stderr.read()
    assert bits(tmp_path) == undisturbed
    leftovers = [path.name for path in store.directory(run_id).rglob("*.tmp")]
    assert leftovers == []


@pytest.mark.exhaustive
def test_killed_many_times_is_still_the_undisturbed_run(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    for point in ("slot:2", "checkpoint:6", "evaluation:6", "slot:10", "recorded:12", "checkpoint:18"):
        assert nmt(tmp_path, f"faults=[kill@{point}]").returncode == -signal.SIGKILL
    assert nmt(tmp_path).returncode == 0
    assert bits(tmp_path) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_a_signal_writes_a_checkpoint_and_the_same_command_goes_on(
    undisturbed: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    process = nmt(tmp_path, "faults=[stop@slot:7]", wait=False)
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert stopped is not None and stopped.si_code == os.CLD_STOPPED, process.stderr and process.stderr.read()
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    process.wait(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75
    store = LocalRunStore(tmp_path)
    (run_id,) = store.list_runs()
    assert store.status(run_id).state == "interrupted"
    assert list((store.directory(run_id) / "checkpoints").glob("*.pt"))
    assert nmt(tmp_path).returncode == 0
    assert bits(tmp_path) == undisturbed


def test_running_twice_does_nothing(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    assert nmt(tmp_path).returncode == 0
    store = LocalRunStore(tmp_path)
    (run_id,) = store.list_runs()
    before = {path: path.stat().st_mtime_ns for path in store.directory(run_id).rglob("*.json*")}
    again = nmt(tmp_path)
    assert again.returncode == 0
    assert again.stderr is not None
    assert "already trained" in again.stderr.read()
    result = store.directory(run_id) / "result.json"
    assert result.stat().st_mtime_ns == before[result]
    assert bits(tmp_path) == undisturbed


@pytest.mark.exhaustive
def test_threads_and_other_placement_change_no_bit(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    words = ["threads=2", "validation.search.batch_size=3", "search.batch_size=7", "training.keep_last=1"]
    assert nmt(tmp_path, *words).returncode == 0
    assert bits(tmp_path) == undisturbed


def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    assert nmt(tmp_path, "faults=[kill@slot:10]").returncode == -signal.SIGKILL
    store = LocalRunStore(tmp_path)
    (run_id,) = store.list_runs()
    newest = sorted((store.directory(run_id) / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    process = nmt(tmp_path)
    assert process.returncode == 2
    assert process.stderr is not None
    error = process.stderr.read().strip().splitlines()[-1]
    assert error.startswith("error:")
    assert newest.name in error


def test_a_checkpoint_of_another_config_names_the_keys_that_differ(tmp_path: Path) -> None:
    assert nmt(tmp_path, "faults=[kill@slot:10]").returncode == -signal.SIGKILL
    store = LocalRunStore(tmp_path)
    (first,) = store.list_runs()
    assert nmt(tmp_path, "faults=[kill@slot:1]", "loss.label_smoothing=0.3").returncode == -signal.SIGKILL
    (other,) = [run_id for run_id in store.list_runs() if run_id != first]
    foreign = sorted((store.directory(first) / "checkpoints").glob("*.pt"))[-1]
    target = store.directory(other) / "checkpoints" / foreign.name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(foreign.read_bytes())
    process = nmt(tmp_path, "loss.label_smoothing=0.3")
    assert process.returncode == 2
    assert process.stderr is not None
    assert "loss.label_smoothing: (neutral) != 0.3" in process.stderr.read()
