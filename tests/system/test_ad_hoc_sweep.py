"""`nmt sweep experiment=... grid=...` as a person types it: trained, saved, and run again from the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.runs import LocalRunStore
from sweeps.sweep import main

SMALL = ["scale=smoke", "search=greedy", "data.options.test_size=20", "training.max_steps=3"]
HERE = ["tracking=none", "executor=inline"]


def test_a_grid_is_trained_saved_and_run_again(
    tmp_path: Path, isolated_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    words = ["experiment=baseline", "grid=optimizer.learning_rate=1e-3,0.001,1e-4", *SMALL, *HERE]
    assert main([*words, f"save={path}"]) == 0
    first = capsys.readouterr().out
    assert f"nmt sweep sweep={path}" in first
    assert "3 rows × 1 replicates: 2 of 2 runs to do" in first
    said = "the same runs under several labels, trained once and shown with each: "
    assert f"{said}learning_rate=1e-3 and learning_rate=0.001" in first
    assert [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("| learning_rate")] == [
        "learning_rate=1e-3",
        "learning_rate=0.001",
        "learning_rate=1e-4",
    ]
    assert (isolated_runs / "reports" / "mine" / "table.csv").is_file()
    runs = LocalRunStore(isolated_runs).list_runs()
    assert len(runs) == 2
    again = next(line for line in first.splitlines() if line.startswith("add replicates"))
    assert again.split()[2:] == f"nmt sweep sweep={path} tracking=none executor=inline replicates=2".split()

    assert main([f"sweep={path}", *HERE]) == 0
    assert "all 2 runs are there, nothing to train" in capsys.readouterr().out
    assert main(words) == 0  # without save=, the report has a name made of the grid
    assert "all 2 runs are there, nothing to train" in capsys.readouterr().out
    (report,) = (isolated_runs / "reports").glob("baseline-learning_rate-*")
    assert (report / "table.csv").is_file()
    assert LocalRunStore(isolated_runs).list_runs() == runs
