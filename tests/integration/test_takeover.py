"""Who may train a run: one process of many that ask at once, and nobody who slept through the loss of his lease."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from test_resume import TRAIN, bits, nmt

from nmt.events import read_events
from nmt.leases import LEASE_SECONDS
from nmt.runs import LocalRunStore

RUN = "0123456789ab/s1"
CLAIM = f"""
import sys
from nmt.runs import LocalRunStore, RunBusyError
store = LocalRunStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()  # the barrier: all are let go at once
try:
    with store.claim({RUN!r}) as held:
        print("holds", held.attempt.number, flush=True)
        sys.stdin.readline()
except RunBusyError:
    print("busy", flush=True)
"""


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    pipe: IO[str] | None = process.stdin
    assert pipe is not None
    pipe.write("\n")
    pipe.flush()


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None and found.si_code == os.CLD_STOPPED, process.stderr and process.stderr.read()


def let_expire(store: LocalRunStore, run_id: str) -> None:
    """Make the lease look as if nobody had touched it for long; its holder must be stopped."""
    past = time.time() - LEASE_SECONDS - 1
    os.utime(store.directory(run_id) / "lease", (past, past))


def content(store: LocalRunStore, run_id: str) -> dict[str, tuple[bytes, int]]:
    """Every file of a run with its time: what a process that changes nothing leaves as it is."""
    paths = [path for path in store.directory(run_id).rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_of_many_processes_that_claim_a_run_at_once_one_gets_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    crowd = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(6)
    ]
    assert [said(process) for process in crowd] == ["ready"] * 6
    for process in crowd:
        tell(process)
    answers = [said(process) for process in crowd]
    assert sorted(answers) == ["busy"] * 5 + ["holds 1"]
    winner = crowd[answers.index("holds 1")]
    tell(winner)
    assert [process.wait() for process in crowd] == [0] * 6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    process = nmt(runs)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    return runs


POINTS = ["checkpoint:12", *(pytest.param(at, marks=pytest.mark.exhaustive) for at in ("slot:8", "recorded:18"))]


@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_wakes_after_its_lease_changes_nothing(undisturbed: Path, tmp_path: Path, point: str) -> None:
    sleeper = nmt(tmp_path, f"faults=[stop@{point}]", wait=False)
    try:
        wait_until_stopped(sleeper)
        store = LocalRunStore(tmp_path)
        (run_id,) = store.list_runs()
        assert store.status(run_id).state == "running"

        refused = nmt(tmp_path)
        assert refused.returncode == 2
        assert refused.stderr is not None
        assert f"process {sleeper.pid} on " in refused.stderr.read().splitlines()[-1]

        let_expire(store, run_id)
        heir = nmt(tmp_path)
        assert heir.returncode == 0, heir.stderr and heir.stderr.read()
        assert bits(tmp_path) == bits(undisturbed)
        before = content(store, run_id)
    finally:
        sleeper.send_signal(signal.SIGCONT)
    _, errors = sleeper.communicate(timeout=600)
    assert sleeper.returncode == 2
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: {run_id}: attempt 1 was stopped for too long")
    assert "taken over by attempt 2" in last
    assert "Traceback" not in errors
    assert content(store, run_id) == before

    step = int(point.partition(":")[2])
    kept = {8: 6, 12: 9, 18: 12}[step]
    expired, resumed, *_, finished = read_events(store.directory(run_id) / "events.jsonl")[
        -len_of_heir(store, run_id) :
    ]
    assert (expired["kind"], expired["attempt"], expired["pid"]) == ("expired", 1, sleeper.pid)
    assert (expired["step_from"], expired["steps_kept"]) == (0, kept)
    assert (resumed["kind"], resumed["attempt"], resumed["step"]) == ("resume", 2, kept)
    assert (finished["kind"], finished["steps_run"], finished["steps_kept"]) == ("finished", 18 - kept, 18 - kept)


def len_of_heir(store: LocalRunStore, run_id: str) -> int:
    """Events from that of the takeover on."""
    kinds = [event["kind"] for event in read_events(store.directory(run_id) / "events.jsonl")]
    return len(kinds) - kinds.index("expired")


SWEEP = """\
title: Three tiny rows
replicates: 1
overrides: [tracking=none, executor=inline, executor.workers=1, search=greedy]
rows:
  - {label: slow}
  - {label: quick, overrides: [optimizer.learning_rate=0.02]}
  - {label: quicker, overrides: [optimizer.learning_rate=0.03]}
"""


def test_two_sweeps_on_one_store_train_every_run_once(tmp_path: Path) -> None:
    spec = tmp_path / "three.yaml"
    spec.write_text(SWEEP + "\n", encoding="utf-8")
    runs = tmp_path / "runs"
    shared = [word for word in TRAIN if not word.startswith(("experiment=", "tracking=", "optimizer."))]
    shared.append("validation.max_sentences=4")

    def sweep(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nmt.cli", "sweep", f"sweep={spec}", *shared, *words]
        environment = os.environ | {"NMT_RUNS": str(runs)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = sweep("faults=[stop@slot:3]")  # each of its runs stands still in its third step until it is told to go on
    while "started" not in (line := said(first)):
        assert first.poll() is None, line
    store = LocalRunStore(runs)
    (status,) = runs.glob("*/s*/status.json")
    busy = status.parent.relative_to(runs).as_posix()
    second = sweep()
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 1, out  # one replicate is missing: the other sweep has it
    assert store.status(busy).state == "running"
    assert f"slow: process {store.status(busy).pid} on " in out
    assert "1 replicates are missing" in out
    while first.poll() is None:
        now = store.status(busy)
        if now.state == "running":
            with contextlib.suppress(ProcessLookupError):
                os.kill(now.pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            first.communicate(timeout=0.2)
    assert first.returncode == 0
    assert len(store.list_runs()) == 3
    for run_id in store.list_runs():
        events = read_events(store.directory(run_id) / "events.jsonl")
        assert [event["kind"] for event in events if event["kind"] != "checkpoint"] == ["start", "ready", "finished"]
        assert events[-1]["steps_run"] == 18
        assert {event["attempt"] for event in events} == {1}
        assert store.status(run_id).state == "finished"
