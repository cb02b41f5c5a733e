"""JSON files of runs that make no sense: named on stderr, set aside, found out or trained again; the rest goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from nmt.events import read_events
from nmt.runs import LocalRunStore

SWEEP = """\
title: Four tiny rows
replicates: 1
overrides:
  - scale=smoke
  - search=greedy
  - data.options.test_size=20
  - validation.max_sentences=4
  - tracking=none
  - executor=inline
  - executor.workers=1
  - threads=1
rows:
  - {label: status}
  - {label: result, overrides: [optimizer.learning_rate=0.02]}
  - {label: decoding, overrides: [optimizer.learning_rate=0.03]}
  - {label: whole, overrides: [optimizer.learning_rate=0.04]}
"""
MEASURED = ("tokens_per_second", "convergence_seconds", "peak_memory_bytes", "code")


def nmt(*words: str, runs: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NMT_RUNS": str(runs)}
    command = [sys.executable, "-m", "nmt.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


def results(runs: Path) -> dict[str, dict[str, object]]:
    """The only replicate of each row, but for what was measured of its process."""
    record = json.loads((runs / "reports" / "four" / "sweep.json").read_text(encoding="utf-8"))
    return {
        row["label"]: {name: value for name, value in row["replicates"][0].items() if name not in MEASURED}
        for row in record["rows"]
    }


def test_a_sweep_goes_on_beside_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "four.yaml").write_text(SWEEP, encoding="utf-8")
    words, runs = ["sweep", f"sweep={tmp_path / 'four.yaml'}"], tmp_path / "runs"
    done = nmt(*words, runs=runs)
    assert done.returncode == 0, done.stdout + done.stderr
    before = results(runs)
    store = LocalRunStore(runs)
    run_ids = {label: str(row["run_id"]) for label, row in before.items()}
    (decoding,) = store.directory(run_ids["decoding"]).glob("decodes/*.json")
    damaged = [
        store.directory(run_ids["status"]) / "status.json",
        store.directory(run_ids["result"]) / "result.json",
        decoding,
    ]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    again = nmt(*words, runs=runs)
    assert again.returncode == 0, again.stdout + again.stderr
    for path in damaged:
        (line,) = [line for line in again.stderr.splitlines() if line.startswith(f"{path} is damaged")]
        moved, reason = sorted((store.directory(run_ids[_row_of(path, run_ids)]) / "quarantine").iterdir())
        assert str(moved) in line
        assert reason.name == f"{moved.name}.reason"
    assert results(runs) == before
    ends = {label: read_events(store.directory(name) / "events.jsonl")[-1] for label, name in run_ids.items()}
    # From its last checkpoint on there was nothing left to train, and what was whole was not touched.
    assert {label: (end["attempt"], end["steps_run"]) for label, end in ends.items()} == {
        "status": (1, before["status"]["steps"]),
        "result": (2, 0),
        "decoding": (2, 0),
        "whole": (1, before["whole"]["steps"]),
    }
    third = nmt(*words, runs=runs)
    assert (third.returncode, third.stderr) == (0, "")
    assert "nothing to train" in third.stdout


def _row_of(path: Path, run_ids: dict[str, str]) -> str:
    return next(label for label, run_id in run_ids.items() if run_id in path.as_posix())
