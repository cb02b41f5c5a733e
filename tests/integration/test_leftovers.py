"""However a run ends, nothing of it is left on the machine: no process, port, socket or shared memory.

Each run stops itself behind the evaluation of step 8, is looked at, and then ends in its way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from leftovers import MARK, Possessions, left_over, possessions, processes

RUN = [
    "scale=smoke", "tracking=none", "threads=1", "device=cpu", "search=greedy", "seed=1",
    "data.options={train_size: 96, validation_size: 8, test_size: 8}", "batch.micro_batches=4",
    "training.max_steps=12", "validation.every_steps=4", "faults=[stop@recorded:8]",
]  # fmt: skip
SERVED = ["distribution=parameter_server", "distribution.workers=2", "distribution.servers=2", "distribution.shadows=1"]
RING = ["distribution=ring_allreduce", "distribution.workers=3"]
SOON = "distribution.deadline_seconds=5"  # and yet later than anybody who lives may be silent on a busy machine


@dataclass
class Stopped:
    """A run that stands still. `has`: what it has then."""

    process: subprocess.Popen[str]
    runs: Path
    mark: str
    has: Possessions

    def pid_of(self, role: str) -> int:
        """Of a process of the run, as its own timeline says it."""
        (path,) = self.runs.glob(f"*/s1/journals/timeline-{role}.jsonl")
        return int(json.loads(path.read_text().splitlines()[0])["pid"])

    def end(self, *signals: int) -> int:
        """Send signals to the run's process group, and wait for the end of its first process: the exit code."""
        for number in signals:
            os.killpg(self.process.pid, number)
        self.process.communicate(timeout=600)
        return self.process.returncode

    def assert_nothing_is_left(self) -> None:
        assert left_over(self.has, self.mark) == Possessions()


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Callable[..., Stopped]]:
    """Starts a run and waits until it has stopped itself."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, distribution: Sequence[str] = SERVED) -> Stopped:
        mark = uuid.uuid4().hex
        environment = os.environ | {MARK: mark, "NMT_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"}
        several = [*distribution, "distribution.heartbeat_seconds=0.3"]
        command = [sys.executable, "-m", "nmt.cli", "train", *RUN, *several, *words]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        status = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert status is not None
        assert status.si_code == os.CLD_STOPPED, process.communicate()[1]
        return Stopped(process, tmp_path, mark, possessions(processes(mark)))

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_a_run_whose_coordinator_is_killed(stopped: Callable[..., Stopped]) -> None:
    run = stopped()
    # The coordinator, two workers, two servers, the process that they were forked from, and Python's resource tracker.
    assert len(run.has.processes) == 7
    assert len(run.has.ports) == 3  # of the coordinator and of each server
    assert len([name for name in run.has.names if name.startswith("@seq2seq-studies")]) == 2
    assert len(run.has.memory) >= 4  # each worker's and each server's
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    run.assert_nothing_is_left()


@pytest.mark.exhaustive
def test_a_run_that_ends_well(stopped: Callable[..., Stopped]) -> None:
    run = stopped()
    assert run.end(signal.SIGCONT) == 0
    run.assert_nothing_is_left()


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [[], ["distribution.mode=asp", "batch.per=push"], ["distribution.link=tcp"]])
def test_a_run_that_is_interrupted(words: list[str], stopped: Callable[..., Stopped]) -> None:
    run = stopped(*words)
    assert run.end(signal.SIGINT, signal.SIGCONT) == 75
    run.assert_nothing_is_left()


@pytest.mark.exhaustive
def test_a_run_whose_worker_and_server_were_killed(stopped: Callable[..., Stopped]) -> None:
    run = stopped()
    for role in ("worker-0", "server-1"):
        os.kill(run.pid_of(role), signal.SIGKILL)
    assert run.end(signal.SIGCONT) == 0
    run.assert_nothing_is_left()
    (result,) = run.runs.glob("*/s1/result.json")
    assert json.loads(result.read_text())["distribution"]["lost"] == {"workers": 1, "servers": 1, "links": 0}


@pytest.mark.exhaustive
def test_a_run_with_processes_that_stand_still_when_it_ends(stopped: Callable[..., Stopped]) -> None:
    run = stopped(SOON)
    for role in ("worker-0", "server-1"):
        os.kill(run.pid_of(role), signal.SIGSTOP)
    assert run.end(signal.SIGCONT) == 0
    run.assert_nothing_is_left()


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["own", "gloo"])
def test_a_ring_whose_coordinator_is_killed(engine: str, stopped: Callable[..., Stopped]) -> None:
    run = stopped(f"distribution.engine={engine}", distribution=RING)
    # The coordinator, three workers, the process that they were forked from, and Python's resource tracker.
    assert len(run.has.processes) == 6
    if engine == "own":
        assert len(run.has.ports) == 4
        assert len(run.has.memory) >= 6  # two gradients of each
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    run.assert_nothing_is_left()


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_a_ring_that_lost_a_node_ends_well(link: str, number: signal.Signals, stopped: Callable[..., Stopped]) -> None:
    run = stopped(f"distribution.link={link}", SOON, distribution=RING)
    os.kill(run.pid_of("worker-1"), number)
    assert run.end(signal.SIGCONT) == 0
    run.assert_nothing_is_left()
    (result,) = run.runs.glob("*/s1/result.json")
    assert json.loads(result.read_text())["distribution"]["lost"]["workers"] == 1


@pytest.mark.exhaustive
def test_a_ring_that_is_interrupted(stopped: Callable[..., Stopped]) -> None:
    run = stopped(distribution=RING)
    assert run.end(signal.SIGINT, signal.SIGCONT) == 75
    run.assert_nothing_is_left()
