"""Several processes prepare the same data at once, and one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = """
import json, os, signal, sys
from nmt.config import compose
from nmt.data.prepare import prepare

kill_at, *overrides = sys.argv[1:]
stages = []

def progress(stage, done, total):
    stages.append(stage)
    if stage == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

prepared = prepare(compose(overrides), progress)
print(json.dumps({"fingerprint": prepared.fingerprint, "prepared": bool(stages)}))
"""


def start(*overrides: str, kill_at: str = "", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, kill_at, "data.options.train_size=1500", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)


def result(process: subprocess.Popen[str]) -> dict[str, object]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    answer: dict[str, object] = json.loads(output)
    return answer


def test_one_prepares_and_the_others_wait(tmp_path: Path) -> None:
    answers = [result(process) for process in [start(f"paths.cache={tmp_path}/cache") for _ in range(3)]]
    assert sorted(answer["prepared"] for answer in answers) == [False, False, True]  # type: ignore[type-var]
    assert len({answer["fingerprint"] for answer in answers}) == 1


@pytest.mark.parametrize("stage", ["learning the vocabulary", "encoding training text"])
def test_a_killed_preparation_is_never_taken_for_complete(tmp_path: Path, stage: str) -> None:
    cache = tmp_path / "cache"
    killed = start(f"paths.cache={cache}", kill_at=stage)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    leftovers = {path.name for path in cache.iterdir() if path.suffix != ".lock"}
    assert leftovers and all(name.endswith(".tmp") for name in leftovers)
    assert result(start(f"paths.cache={cache}"))["prepared"]
    (complete,) = (path for path in cache.iterdir() if path.suffix != ".lock")
    assert not complete.name.endswith(".tmp")


@pytest.mark.parametrize(
    "tokenizer",
    [
        ["tokenizer=spm_unigram_8k", "tokenizer.vocab_size=200"],
        ["tokenizer=bpe32k", "tokenizer.merges=150", "tokenizer.vocab_size=120"],
    ],
)
def test_no_hash_seed_and_no_thread_count_shows(tmp_path: Path, tokenizer: list[str]) -> None:
    """Prepared apart from each other, under other hash seeds and thread counts: the same bytes."""
    processes = [
        start(*tokenizer, f"paths.cache={tmp_path}/{number}", PYTHONHASHSEED=number, OMP_NUM_THREADS=number)
        for number in ("1", "2")
    ]
    answers = [result(process) for process in processes]
    assert all(answer["prepared"] for answer in answers)
    assert answers[0]["fingerprint"] == answers[1]["fingerprint"]
    first, second = (sorted((tmp_path / number).glob("*/*")) for number in ("1", "2"))
    assert [path.name for path in first] == [path.name for path in second] != []
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
