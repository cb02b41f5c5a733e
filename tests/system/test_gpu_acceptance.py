"""scripts/gpu_acceptance.py rehearsed on a CPU, as a user types it, where neither mlflow nor ray is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_acceptance.py"
QUICK = "device,training,agreement,launches,graph"
ALL = ["device", "training", "resume", "determinism", "agreement", "beam", "bf16", "launches", "speed", "beam_speed",
       "staging", "parameter_server", "ddp", "peers", "graph"]  # fmt: skip


def rehearse(*words: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "device=cpu", "size=tiny", "threads=1", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | {"PYTHONPATH": ""})


@pytest.mark.exhaustive
def test_a_rehearsal_prints_verdicts_and_writes_figures(tmp_path: Path) -> None:
    done = rehearse("minutes=60", f"only={QUICK}", f"json={tmp_path / 'all.json'}", f"report={tmp_path / 'report.md'}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("# Acceptance on a CPU: a rehearsal, which says nothing about a GPU\n")
    assert (tmp_path / "report.md").read_text() == done.stdout
    found = json.loads((tmp_path / "all.json").read_text())
    assert list(found["checks"]) == QUICK.split(",")
    assert {check["verdict"] for check in found["checks"].values()} == {"pass"}
    assert found["checks"]["device"]["outcome"]["figures"]["gpu"] == "not on a cpu"
    rows = found["checks"]["launches"]["outcome"]["rows"]
    assert {row["of"] for row in rows} == {"training step", "decoder step", "search, a token"}
    assert all(row["launches"] == "not on a cpu" for row in rows)
    assert all(row["same bits"] for row in found["checks"]["graph"]["outcome"]["rows"])
    assert "## training: pass" in done.stdout and "- holds: test BLEU is at least 0" in done.stdout


@pytest.mark.exhaustive
def test_all_checks_can_be_rehearsed(tmp_path: Path) -> None:
    done = rehearse("minutes=60", f"json={tmp_path / 'all.json'}", timeout=3600)
    assert done.returncode == 0, done.stderr + done.stdout
    verdicts = {
        name: check["verdict"] for name, check in json.loads((tmp_path / "all.json").read_text())["checks"].items()
    }
    assert list(verdicts) == ALL
    assert verdicts.pop("peers") == "skipped"
    assert set(verdicts.values()) == {"pass"}


def test_checks_that_would_begin_too_late_are_skipped() -> None:
    done = rehearse("minutes=0", "only=training,beam")
    assert done.returncode == 0
    assert "| training | skipped | 0 | no time was left |" in done.stdout
    assert "| beam | skipped | 0 | no time was left |" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda"], "error: device: torch sees no GPU; device=cpu rehearses the checks"),
        (["only=trainig"], "error: only: 'trainig' is not a choice"),
        (["json=nowhere/all.json"], "error: json=nowhere/all.json: cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "device=cpu", *words],
        capture_output=True, text=True, timeout=300, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
