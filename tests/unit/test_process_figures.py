"""Idle shares by cause, refusals, and what a loss cost, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.config import compose
from sweeps.process_figures import (
    CAUSES,
    OTHER,
    TIMED,
    compute_processes,
    idle_figures,
    read_figures,
    refusal,
    stall_figures,
    steps_lost,
)

PS = ["distribution=parameter_server", "executor.workers=1"]


def process(seconds: float, busy: float, copy: float = 0.0, **waits: float) -> dict[str, Any]:
    times = dict.fromkeys(CAUSES, 0.0) | {"busy": busy, "copy": copy, "oversubscribed": False} | waits
    return {"times": times, "step_seconds": seconds}


def test_causes_by_hand() -> None:
    # Of 10 s: 6 of work, 1 of packing; 2 of waiting for messages, 0.5 at the barrier, and 0.5 nobody knows for what.
    first = process(10.0, 6.0, 1.0, wait_recv=2.0, wait_barrier=0.5)
    # Of 10 s 8 are idle time, while waits of 16 s were noted, evaluations among them: each counts half.
    second = process(10.0, 2.0, wait_recv=12.0, wait_send=4.0)
    found = idle_figures({"worker 0": first, "worker 1": second, "server 0": process(10.0, 1.0, wait_recv=30.0)})
    expected = {
        "idle_mean": 0.55, "idle_max": 0.8,
        "wait_recv_mean": 0.4, "wait_recv_max": 0.6,
        "wait_barrier_mean": 0.025, "wait_barrier_max": 0.05,
        "wait_send_mean": 0.1, "wait_send_max": 0.2,
        "idle_other_mean": 0.025, "idle_other_max": 0.05,
        "idle_servers": 0.9,
    }  # fmt: skip
    assert found == pytest.approx(expected)


@given(st.tuples(*[st.floats(0.0, 100.0)] * 6))
def test_causes_add_up_to_the_idle_share_which_is_a_share(seconds: tuple[float, ...]) -> None:
    busy, copy, *waits, length = seconds
    said = process(length + 0.1, busy, copy, **dict(zip(CAUSES, waits, strict=True)))
    found = idle_figures({"worker 3": said})
    assert 0.0 <= found["idle_mean"] <= 1.0
    assert found["idle_mean"] == found["idle_max"]
    assert sum(found[f"{cause}_mean"] for cause in (*CAUSES, OTHER)) == pytest.approx(found["idle_mean"])
    assert found["idle_mean"] == pytest.approx(min(1.0, max(0.0, 1 - (busy + copy) / (length + 0.1))))


def test_a_process_of_no_step_has_no_share() -> None:
    assert idle_figures({"worker 0": process(0.0, 1.0)}) == {}


def test_processes_that_compute_are_workers_or_nodes() -> None:
    served = [*PS, "batch.micro_batches=3", "distribution.workers=3", "distribution.servers=2"]
    assert compute_processes(compose(served)) == 3
    assert compute_processes(compose(["distribution=ring_tmp", "distribution.nodes=4"])) == 4
    several = ["batch.micro_batches=3", "distribution=ring_tmp", "distribution.nodes=4", "distribution.rings=3"]
    assert compute_processes(compose(several)) == 12
    assert compute_processes(compose([])) == 1


def test_times_are_refused_where_cores_are_shared() -> None:
    quiet = {"worker 0": process(1.0, 1.0), "worker 1": process(1.0, 1.0)}
    assert refusal(2, 2, 1, quiet) == ""
    assert refusal(3, 2, 1, quiet) == "3 processes compute on 2 cores"
    assert "executor.workers=1" in refusal(2, 2, 0, quiet)
    held = quiet | {"worker 1": {"times": {"oversubscribed": True}}}
    assert refusal(2, 2, 1, held) == "others on the machine held worker 1 from a core"


def test_the_stall_is_that_of_the_slowest_step_without_the_first() -> None:
    steps = [9.0, 0.5, 0.5, 3.0, 0.5]
    assert stall_figures(steps, [{"seconds": 0.5}, {"lost": "worker 1"}]) == pytest.approx(
        {"stall": 2.5, "recover": 0.5, "detect": 2.0}
    )
    assert stall_figures(steps, []) == {}


def test_steps_lost_are_those_behind_the_checkpoint_that_was_gone_back_to() -> None:
    events = [
        {"kind": "lost", "step": 9, "back_to": 5},
        {"kind": "killed", "steps_run": 7, "steps_kept": 4},
        {"kind": "finished", "steps_run": 20, "steps_kept": 20},
    ]
    assert steps_lost(events) == 7.0


def written(directory: Path, steps: list[float]) -> Path:
    lines = [{"kind": "train", "step": number, "seconds": at} for number, at in enumerate(steps, start=1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def result(**changed: Any) -> dict[str, Any]:
    traffic = {
        "bytes_per_step": 40.0, "worker_sent_bytes_per_step": 10.0, "worker_received_bytes_per_step": 12.0,
        "server_sent_bytes_per_step": 20.0, "server_sent_messages_per_step": 99.0,
    }  # fmt: skip
    said = {
        "processes": {"worker 0": process(10.0, 5.0)}, "traffic": traffic, "memory": {"worker_bytes": 7},
        "lost": {"workers": 1, "links": 1}, "recoveries": [{"seconds": 0.25}],
    }  # fmt: skip
    return {"distribution": said | changed}


def test_figures_of_a_run_directory(tmp_path: Path) -> None:
    config, directory = compose([*PS]), written(tmp_path, [1.0, 1.5, 3.5, 4.0])
    found = read_figures(config, result(), {"cpu": {"cores": 2}}, directory)
    assert found.refused == ""
    chosen = {
        "idle_mean": 0.5, "node_bytes": 10.0, "busiest_bytes": 20.0, "all_bytes": 40.0, "node_memory": 7.0,
        "losses": 2.0, "steps_lost": 0.0, "stall": 1.5, "recover": 0.25, "detect": 1.25,
    }  # fmt: skip
    assert {name: found.values[name] for name in chosen} == chosen


def test_what_is_refused_are_the_times_alone(tmp_path: Path) -> None:
    config, directory = (
        compose([*PS, "distribution.workers=2", "batch.micro_batches=2"]),
        written(tmp_path, [1.0, 1.5, 3.5, 4.0]),
    )
    found = read_figures(config, result(), {"cpu": {"cores": 1}}, directory)
    assert found.refused == "2 processes compute on 1 core"
    assert not set(TIMED) & found.values.keys()
    assert found.values["node_bytes"] == 10.0


def test_one_process_and_earlier_versions_have_no_figures(tmp_path: Path) -> None:
    for report in ({}, {"distribution": None}, result(processes={"worker 0": {"times": {}}})):
        assert read_figures(compose([]), report, {}, tmp_path).values == {}
