"""`distribution=ring_allreduce` as a user types it: a run of its own, the same bits again, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import in_a_session, stop_at_a_step

from nmt.runs import LocalRunStore

Command = Callable[..., tuple[int, str, str]]
TRAIN = [
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 400, validation_size: 20, test_size: 20}",
    "scale=smoke",
    "tracking=none",
    "device=cpu",
    "threads=1",
    "batch.size=32",
    "batch.micro_batches=4",
    "model.dropout_mix=0.1",
    "training.max_steps=12",
    "training.log_every_steps=1",
    "validation.every_steps=6",
]
RING = ["distribution=ring_allreduce", "distribution.workers=3"]
# Step 4 takes long: a signal that is sent once step 1 is told comes while steps are under way.
SLOW = "distribution.faults=[delay@worker0.forward:4:10]"


def the_run(runs: Path) -> tuple[str, Path, dict[str, Any]]:
    store = LocalRunStore(runs)
    (run_id,) = store.list_runs()
    result = store.read_json(run_id, "result.json")
    assert result is not None
    return run_id, store.directory(run_id), result


def losses(directory: Path) -> list[float]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [float.fromhex(line["loss_hex"]) for line in lines if line["kind"] == "train"]


def digests(directory: Path) -> list[str]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line["parameters_sha256"] for line in lines if line["kind"] == "evaluation"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nmt.cli import main

    runs = tmp_path_factory.mktemp("ring") / "runs"
    assert main(["train", *TRAIN, *RING, f"paths.runs={runs}"]) == 0
    return runs


def test_it_is_trained_told_and_drawn(
    nmt: Command, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, directory, result = the_run(undisturbed)
    assert nmt("train", *TRAIN, f"paths.runs={tmp_path / 'single'}")[0] == 0
    single_id, single, single_result = the_run(tmp_path / "single")
    assert run_id != single_id
    assert losses(directory) == pytest.approx(losses(single), rel=1e-5)
    assert result["target_tokens"] == single_result["target_tokens"]
    report = result["distribution"]
    assert list(report["processes"]) == ["worker 0", "worker 1", "worker 2"]
    assert 0.0 <= report["idle"]["workers"] < 1.0
    journals = {path.name for path in (directory / "journals").iterdir()}
    assert journals == {f"timeline-worker-{number}.jsonl" for number in range(3)}
    monkeypatch.setenv("NMT_RUNS", str(undisturbed))
    code, _, error = nmt("profile", f"run={run_id}", f"out={tmp_path / 'drawn'}")
    assert code == 0, error
    assert {path.suffix for path in (tmp_path / "drawn").iterdir()} == {".png", ".json"}


@pytest.mark.exhaustive
def test_a_run_that_is_stopped_and_typed_again_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nmt.cli", "train", *TRAIN, *RING, f"paths.runs={tmp_path}"]
    stop_at_a_step(in_a_session([*command, SLOW]))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert digests(the_run(tmp_path)[1]) == digests(the_run(undisturbed)[1])
    assert losses(the_run(tmp_path)[1]) == losses(the_run(undisturbed)[1])


@pytest.mark.exhaustive
def test_a_run_that_loses_a_worker_loses_no_step_and_no_bit(nmt: Command, undisturbed: Path, tmp_path: Path) -> None:
    faults = ["distribution.faults=[kill@worker1.reduce:7]", "distribution.replace_lost=false"]
    assert nmt("train", *TRAIN, *RING, *faults, f"paths.runs={tmp_path}")[0] == 0
    run_id, directory, result = the_run(tmp_path)
    assert run_id == the_run(undisturbed)[0]  # that something is lost is no part of what a run is
    assert (result["state"], result["steps"], result["distribution"]["lost"]["workers"]) == ("finished", 12, 1)
    assert losses(directory) == losses(the_run(undisturbed)[1])
    assert digests(directory) == digests(the_run(undisturbed)[1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["gloo"])
def test_an_engine_of_torch_is_a_run_of_its_own(nmt: Command, undisturbed: Path, tmp_path: Path, engine: str) -> None:
    assert nmt("train", *TRAIN, *RING, f"distribution.engine={engine}", f"paths.runs={tmp_path}")[0] == 0
    run_id, directory, _ = the_run(tmp_path)
    assert run_id != the_run(undisturbed)[0]
    assert losses(directory) == pytest.approx(losses(the_run(undisturbed)[1]), rel=1e-5)
