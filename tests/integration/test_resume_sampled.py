"""BPE-dropout, scheduled sampling and probes together: a killed run ends with the bits of an undisturbed one."""

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

# Two epochs of 9 steps; the probability of sampling still rises; evaluations at 8, 16, 18; a checkpoint every 5 steps.
TRAIN = [
    "data=toy_translation",
    "scale=smoke",
    "data.max_sentences=144",
    "data.options.test_size=10",
    "search=greedy",
    "tokenizer=spm_bpe_4k",
    "tokenizer.vocab_size=100",
    "tokenizer.dropout=0.2",
    "preset=master_2017_04",
    "experiment=t5_add_512",
    "tracking=none",
    "device=cpu",
    "threads=1",
    "batch.size=16",
    "batch.micro_batches=2",
    "optimizer.learning_rate=0.01",
    "model.dropout_mix=0.1",
    "training.max_steps=18",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=5",
    "training.scheduled_sampling.probability=0.5",
    "training.scheduled_sampling.ramp_steps=20",
    "validation.every_steps=8",
]
TIMES = {"seconds", "evaluation_seconds", "tokens_per_second", "timing", "energy"}
PROBE = ["training.probe.every_steps=4", "training.probe.sentences=20"]


def nmt(runs: Path, form: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "nmt.cli", "train", *TRAIN),
            *(f"training.scheduled_sampling.form={form}", *words),
        ],
        env=os.environ | {"NMT_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def records(runs: Path) -> list[dict[str, Any]]:
    """Every line of the run's metrics, without times."""
    store = LocalRunStore(runs)
    (run_id,) = store.list_runs()
    lines = (store.directory(run_id) / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMES and not k.startswith("energy/")} for line in lines
    ]


def undisturbed(runs: Path, form: str) -> list[dict[str, Any]]:
    done = nmt(runs, form, *PROBE)
    assert done.returncode == 0, done.stderr
    return records(runs)


def killed_and_resumed(runs: Path, form: str, points: list[str]) -> list[dict[str, Any]]:
    for point in points:
        killed = nmt(runs, form, *PROBE, f"faults=[kill@{point}]")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = nmt(runs, form, *PROBE)
    assert resumed.returncode == 0, resumed.stderr
    return records(runs)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), "embedding")


@pytest.mark.exhaustive
def test_killed_and_resumed_is_the_undisturbed_run(probed: list[dict[str, Any]], tmp_path: Path) -> None:
    assert [record["step"] for record in probed if record["kind"] == "probe"] == [4, 8, 12, 16]
    assert killed_and_resumed(tmp_path, "embedding", ["slot:7", "recorded:16"]) == probed


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("form", "points"),
    [("embedding", ["slot:5", "checkpoint:10"]), ("output", ["slot:1", "slot:12", "checkpoint:18"])],
    ids=["embedding", "output"],
)
def test_wherever_and_however_often_it_is_killed(tmp_path: Path, form: str, points: list[str]) -> None:
    expected = undisturbed(tmp_path / "undisturbed", form)
    assert killed_and_resumed(tmp_path / "killed", form, points) == expected


@pytest.mark.exhaustive
def test_probes_change_no_bit_of_a_run(probed: list[dict[str, Any]], tmp_path: Path) -> None:
    done = nmt(tmp_path, "embedding")
    assert done.returncode == 0, done.stderr
    beside = "train/teacher_forced/log_perplexity"
    assert all(beside in record for record in probed if record["kind"] == "evaluation")
    kept = [{k: v for k, v in record.items() if k != beside} for record in probed if record["kind"] != "probe"]
    assert kept == records(tmp_path)
