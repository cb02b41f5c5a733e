"""`scripts/bench_distributed.py` as a user types it. Times are not judged here: other tests run beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_distributed.py"
NAMED = ["ps_shm_vs_allreduce", "ps_tcp_vs_allreduce", "ps_step_vs_ddp", "bytes_vs_formula", "link_vs_loopback"]

RING = {
    "ring_vs_gloo": "at most 1.1",
    "ring_tcp_vs_gloo": "at most 1.1",
    "ring_step_vs_ddp": "at most 1.1",
    "ring_tmp_vs_torch_pipelining": "at most 1.1",
    "ring_softmax_gain": "at least 1.2",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment, timeout=900
    )


@pytest.mark.exhaustive
def test_the_parameter_server_is_measured_beside_its_rivals(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = run("--quick", "--only", "ps", "--json", str(path), "sizes=tiny", "rounds=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert list(found["ratios"])[: len(NAMED)] == NAMED
    assert all(isinstance(value, float) and value > 0 for value in found["ratios"].values())
    assert found["settings"] == {"sizes": ["tiny"], "rounds": 1, "quick": True}
    (exchange,) = found["parts"]["Communication of a step"]
    for link, way in (("tcp", "payload_bytes"), ("shm", "shared_bytes")):
        # Every gradient and every parameter goes once each way: 2 workers, 2 directions, 4 bytes.
        assert exchange["traffic"][link][way] == pytest.approx(2 * 2 * 4 * exchange["parameters"], rel=0.01)
        assert 1.0 <= found["ratios"][f"exchange/65536/{link}/bytes_over_formula"] <= 1.02
    assert found["ratios"]["bytes_vs_formula"] <= 1.02
    judged = {one["name"]: (one["value"], one["target"], one["met"]) for one in found["targets"]}
    assert list(judged)[: len(NAMED)] == NAMED
    assert judged["bytes_vs_formula"] == (found["ratios"]["bytes_vs_formula"], "1.00 to 1.02", True)
    assert "| ps_shm_vs_allreduce |" in done.stdout and "at most 0.8" in done.stdout
    for heading in ("## Links", "## Communication of a step", "## Steps of training"):
        assert heading in done.stdout
    (steps,) = found["parts"]["Steps of training"]
    assert all(one[f"{role}_cpu"] > 0 for one in steps["rounds"]["shm"] for role in ("worker", "server"))
    assert "load" in done.stdout.splitlines()[2]


@pytest.mark.exhaustive
def test_the_ring_is_measured_beside_gloo_and_ddp(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = run("--quick", "--only", "ring", "--json", str(path), "sizes=tiny", "rounds=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert list(found["ratios"])[: len(RING)] == list(RING)
    assert all(isinstance(value, float) and value > 0 for value in found["ratios"].values())
    assert {one["name"]: one["target"] for one in found["targets"]} == RING
    (sums,), (steps,) = found["parts"]["Ring all-reduce"], found["parts"]["Steps of training with a ring"]
    assert all(one["cpu"] > 0 for rounds in sums["rounds"].values() for one in rounds)
    assert {"shm", "tcp", "gloo", "stages", "shards"} < steps["rounds"].keys()
    (pipelines,) = found["parts"]["Steps of a ring of stages"]
    assert pipelines["cuts"]["torch's 1F1B"] == pipelines["cuts"]["shm"]
    (gain,) = found["parts"]["Gain of the ring softmax (emulated)"]
    names = [list(gain["rounds"][0][chunks]["stages"]) for chunks in ("1", "8")]
    assert [[name for name in own if name.startswith("output")] for own in names] == [
        ["output"],
        [f"output.{chunk}" for chunk in range(8)],
    ]


@pytest.mark.exhaustive
def test_memory_recovery_and_the_tutorials_server_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = run("quick=true", "only=wire,memory,recovery,ray", f"json={path}", "sizes=8M", "rounds=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    ratios = found["ratios"]
    assert (
        0 < found["seconds"]["recovery/server killed/detection"] < found["seconds"]["recovery/server stopped/detection"]
    )
    assert ratios["wire/bf16/bytes"] == 0.5
    for link in ("shm", "tcp"):
        assert ratios[f"memory/{link}/worker/over_formula"] == pytest.approx(1.0, abs=0.05)
        assert 0.5 < ratios[f"memory/{link}/server/over_formula"] < 1.15
    assert ratios["recovery/worker killed/longest_over_usual_step"] > 0
    assert ratios["ray/8M/shm/times_faster"] > 0


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["--only", "pss"], "only: 'pss' is not a choice"),
        (["--nosuch", "1"], "nosuch: unknown key"),
        ([f"json={tmp_path}/none/b.json"], "json: there is no directory"),
    ):
        wrong = run(*words)
        assert wrong.returncode == 2 and message in wrong.stderr and wrong.stderr.count("\n") == 1, wrong.stderr
