"""`python -m bench.ring_softmax` as a user types it. Times are not judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.exhaustive
def test_chunks_of_one_process_and_of_a_ring_are_measured() -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "bench.ring_softmax", "640", "2048"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows] == ["chunks", "---", "1", "2", "4", "8", "nodes", "---", "4", "4", "8", "8"]
    assert {row[1]: row[4] for row in rows[-2:]} == {"kept": "0", "computed again": "0"}  # MB of 80 tokens
    assert all(float(row[1].replace(",", "")) > 0 for row in rows[2:6])
