"""From a sweep that was just trained to evidence that others can check, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = """
title: Attention or none, in a few steps
baseline: None-State
overrides: [data=toy_reverse, scale=smoke, search=greedy, search.max_length=12, validation.search.max_length=12]
rows:
  - {label: Add-512, experiment: t5_add_512}
  - {label: None-State, experiment: t5_none_state}
"""
PLACES = ["executor=inline", "tracking=none", "device=cpu", "threads=1"]
WORDS = ["replicates=2", "data.options={train_size: 200, validation_size: 10, test_size: 20}", *PLACES]


def nmt(folder: Path, *words: str, code: int = 0) -> str:
    """What a command prints, run where only the runs are; it must end with this exit code."""
    environment = os.environ | {"NMT_RUNS": str(folder / "runs"), "PYTHONWARNINGS": "error::DeprecationWarning:sweeps"}
    done = subprocess.run(
        [sys.executable, "-m", "nmt.cli", *words], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep's YAML and its trained runs."""
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "few.yaml").write_text(SWEEP)
    nmt(folder, "sweep", "sweep=few.yaml", *WORDS)
    return folder


@pytest.fixture(scope="module")
def run_ids(folder: Path) -> list[str]:
    return sorted(path.parent.relative_to(folder / "runs").as_posix() for path in folder.glob("runs/*/*/result.json"))


def test_a_run_is_done_again_and_two_are_told_apart(folder: Path, run_ids: list[str]) -> None:
    assert "bit-equal over" in nmt(folder, "rerun", f"run={run_ids[0]}", "verify=true")
    out = nmt(folder, "why", f"a={run_ids[0]}", f"b={run_ids[1]}")
    assert "conclusion: other seed (seed 1 | 2): the runs part in" in out
    record = json.loads(nmt(folder, "why", f"a={run_ids[0]}", f"b={run_ids[2]}", "json=true"))
    assert record["training"]["model.attention.name"] and record["first_difference"]["step"]


def test_other_systems_stand_in_the_table_and_are_compared(folder: Path, run_ids: list[str]) -> None:
    outputs = sorted((folder / "runs" / run_ids[0] / "decodes").glob("*.txt"))[0]
    shutil.copy(outputs, folder / "theirs.txt")
    out = nmt(folder, "import", "system=theirs", "hyp=theirs.txt", "version=1.2", "sweep=few.yaml", *WORDS)
    assert "1 new, 0 there already" in out
    table = nmt(folder, "sweep", "sweep=few.yaml", *WORDS)
    assert "| theirs " in table and "imported: outputs of theirs 1.2, trained elsewhere" in table
    compared = nmt(folder, "analyse", "sweep=few.yaml", "a=None-State", "b=theirs", "by=length", *WORDS)
    assert "by words of the source sentence" in compared


def test_a_pack_is_verified_elsewhere_and_a_forged_one_is_not(folder: Path, run_ids: list[str], tmp_path: Path) -> None:
    out = nmt(folder, "pack", "sweep=few.yaml", "to=few.zip", *WORDS)
    assert "4 runs" in out
    shutil.copy(folder / "few.zip", tmp_path)
    assert "holds: " in nmt(tmp_path, "verify", "pack=few.zip")
    nmt(folder, "pack", "sweep=few.yaml", "to=forged", *WORDS)
    assert "bit-equal over" in nmt(folder, "rerun", f"run=forged/runs/{run_ids[0]}", "verify=true")
    table = folder / "forged" / "table.md"
    table.write_text(table.read_text().replace("Add-512", "Add-513"))
    assert "table.md has no row Add-512" in nmt(folder, "verify", "pack=forged", code=1)
