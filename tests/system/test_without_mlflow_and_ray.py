"""One run, and a sweep in child processes, where neither mlflow nor ray is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.runs import LocalRunStore

TINY = ["scale=smoke", "data.options.train_size=60", "data.options.test_size=4", "threads=1"]


HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow", "ray"):
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python finds neither mlflow nor ray."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "NMT_RUNS": str(tmp_path / "runs")}
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('mlflow', 'ray')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout == "[None, None]\n", found
    return environment


def nmt(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nmt.cli", *words], capture_output=True, text=True, env=environment, timeout=600
    )


def test_a_run_needs_neither(bare: dict[str, str], tmp_path: Path) -> None:
    done = nmt(bare, "train", *TINY, "tracking=none")
    assert done.returncode == 0, done.stderr
    assert len(LocalRunStore(tmp_path / "runs").list_runs()) == 1


def test_a_sweep_in_child_processes_needs_neither(bare: dict[str, str], tmp_path: Path) -> None:
    done = nmt(bare, "sweep", "sweep=quickstart", *TINY, "tracking=none", "executor=inline", "replicates=1")
    assert done.returncode == 0, done.stderr
    assert len(LocalRunStore(tmp_path / "runs").list_runs()) == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["train", *TINY], "tracking=none"), (["sweep", "sweep=quickstart", *TINY, "tracking=none"], "executor=inline")],
    ids=["mlflow", "ray"],
)
def test_asking_for_them_says_how_to_do_without(bare: dict[str, str], words: list[str], hint: str) -> None:
    done = nmt(bare, *words)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert hint in done.stderr.strip().splitlines()[-1]
