"""Shared by all tests: where the real corpus is, and a store of runs that no other test sees."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As shells start what stands before an `&`; the commands under test would inherit that no Ctrl-C reaches them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def multi30k() -> Path:
    """The folder of the Multi30k corpus; skips with a reason where it is absent."""
    candidates = [os.environ.get("NMT_MULTI30K"), ROOT.parent / "shared" / "data" / "multi30k"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "train.en.gz").is_file():
            return Path(candidate)
    pytest.skip("the Multi30k corpus is not here: set NMT_MULTI30K, or run scripts/fetch_corpus.py")


@pytest.fixture(autouse=True)
def isolated_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and caches of a test live in its own folder, whatever the environment says."""
    monkeypatch.setenv("NMT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("NMT_CACHE", raising=False)
    return tmp_path / "runs"
