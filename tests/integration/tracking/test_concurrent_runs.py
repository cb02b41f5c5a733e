"""Sixteen processes that write at full speed while a tracker mirrors them: no point is lost, none is there twice."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from nmt.config.identity import run_id

REPLICATES, STEPS = 16, 240

# Every second run is cut back to its checkpoint in the middle and trains on, at other speed, as one that was killed.
WRITER = """
import json, sys
from nmt.runs import LocalRunStore, RunStatus

root, run_id, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
seed = int(run_id.rpartition("/s")[2])
store = LocalRunStore(root)
path = store.directory(run_id) / "metrics.jsonl"

def train(held, begin, end, slowness):
    for step in range(begin, end):
        record = {"kind": "train", "step": step, "loss": 1 / step + seed, "learning_rate": 1e-3,
                  "gradient_norm": step / 7, "target_tokens": 10 * step, "seconds": slowness * step / 100}
        held.append_line(run_id, "metrics.jsonl", json.dumps(record))
        if step % 40 == 0:
            record = {"kind": "evaluation", "step": step, "seconds": slowness * step / 100, "evaluation_seconds": 0.1,
                      "val/decode/bleu": step / 10 + seed, "val/teacher_forced/log_perplexity": 1 / step}
            held.append_line(run_id, "metrics.jsonl", json.dumps(record))

with store.claim(run_id) as held:
    held.set_status(run_id, RunStatus(state="running"))
    print("ready", flush=True)
    sys.stdin.readline()
    train(held, 1, steps // 3, 1.0)
    checkpoint = path.stat().st_size
    train(held, steps // 3, 2 * steps // 3, 1.0)
    sys.stdin.readline()
    if seed % 2:
        held.truncate(run_id, "metrics.jsonl", checkpoint)
        train(held, steps // 3, steps + 1, 1.7)
    else:
        train(held, 2 * steps // 3, steps + 1, 1.0)
    held.set_status(run_id, RunStatus(state="finished", step=steps))
"""


@pytest.fixture(params=["sqlite", pytest.param("http", marks=pytest.mark.exhaustive)])
def uri(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("http_uri"))


def test_sixteen_runs_at_full_speed(runs, view, uri: str) -> None:
    config = runs.config("many")
    names = [runs.begin(dataclasses.replace(config, seed=seed)) for seed in range(1, REPLICATES + 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(runs.root), name, str(STEPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for name in names
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        tracker = runs.tracker(runs.group(config, range(1, REPLICATES + 1)), experiment="many@local", uri=uri)
        for _ in range(2):  # the second half begins when the mirror has seen a part of the first
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            tracker.poll()
        while any(process.poll() is None for process in processes):
            tracker.poll()
        tracker.close()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * REPLICATES

    seen = view("many@local", uri=uri)
    children = seen.children()
    assert set(children) == set(names) == {run_id(dataclasses.replace(config, seed=s)) for s in range(1, 17)}
    evaluated = list(range(40, STEPS + 1, 40))
    for name, child in children.items():
        seed = int(name.rpartition("/s")[2])
        assert seen.curve(child) == [(step, 1 / step + seed) for step in range(1, STEPS + 1)]
        assert seen.curve(child, "train/gradient_norm") == [(step, step / 7) for step in range(1, STEPS + 1)]
        assert seen.curve(child, "val/decode/bleu") == [(step, step / 10 + seed) for step in evaluated]
        for metric in ("train/seconds", "train/learning_rate", "evaluation_seconds"):  # times are an attempt's own
            steps = evaluated if metric == "evaluation_seconds" else list(range(1, STEPS + 1))
            assert [step for step, _ in seen.curve(child, metric)] == steps
        assert child.info.status == "FINISHED"
    parent = seen.parents()["many"]
    mean = sum(range(1, REPLICATES + 1)) / REPLICATES
    assert seen.curve(parent, "val/decode/bleu") == [(step, pytest.approx(step / 10 + mean)) for step in evaluated]
    assert [step for step, _ in seen.curve(parent)] == list(range(1, STEPS + 1))
