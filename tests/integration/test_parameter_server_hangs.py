"""Threads hang while their process lives, processes end before they have said a word: the run goes on, or says why."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parameter_server_examples import IMPATIENT, STEPS, Undisturbed, running, train, undisturbed

from distributed.errors import DistributedError
from distributed.launchers import processes
from distributed.strategy import Strategy
from nmt.config import compose
from nmt.errors import UserError
from nmt.events import EVENTS, read_events
from nmt.runs import LocalRunStore
from nmt.train import train as train_run

# Whoever gets no core for some seconds on a busy machine, while others do, must not be taken for one that hangs.
WATCHED = ["workers=2", "servers=3", "shadows=1", "watchdog_seconds=5", *IMPATIENT]
SECONDS = 60.0  # far more than it takes until a loss is told, or processes have ended


@pytest.fixture(scope="module")
def wanted() -> Undisturbed:
    return undisturbed()


def exhaustive(*faults: str) -> list[Any]:
    return [pytest.param(fault, marks=pytest.mark.exhaustive) for fault in faults]


@pytest.mark.parametrize("fault", [
    "hang@worker1.forward:3",
    *exhaustive("hang@worker0.forward:1", "hang@worker0.pushed:3", f"hang@worker0.pushed:{STEPS}",
                "hang@server0.push:3", "hang@server1.apply:3", "hang@server2.applied:3",
                f"hang@server1.applied:{STEPS}"),
])  # fmt: skip
def test_a_thread_that_hangs_costs_its_process_and_no_bit(
    fault: str, wanted: Undisturbed, caplog: pytest.LogCaptureFixture
) -> None:
    role, number = fault.split("@")[1].split(".")[0][:-1], fault.split(".")[0][-1]
    with caplog.at_level(logging.WARNING), running(*WATCHED, faults=[fault]) as strategy:
        stats = train(strategy, 1, STEPS)
        wanted.assert_equal(stats, strategy.state())
        report = strategy.report()
    (recovery,) = report["recoveries"]
    assert recovery["lost"] == f"{role} {number}"
    assert "reach (faults.py:" in recovery["reason"]  # where in the code it hangs
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("members")]
    assert lines == [
        f"run 0123456789ab/s1: {role} {number} {recovery['reason']}: it is given up",
        f"run 0123456789ab/s1: {role} {number} was lost at step {recovery['step']} ({recovery['reason']}); "
        f"the others went on after {recovery['seconds']:.2f} s",
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["hang@worker1.forward:4", "hang@server1.push:4"])
def test_a_hang_without_barriers_is_noticed_though_others_go_on(fault: str) -> None:
    words = ["mode=asp", *WATCHED[:1], "servers=2", *WATCHED[2:]]
    # Who is given a ticket of which step is chance: it hangs in the first of these that it takes part in.
    point, _, step = fault.rpartition(":")
    faults = [f"{point}:{one}" for one in range(int(step), 1000)]
    with running(*words, faults=faults) as strategy:
        stats = train(strategy, 1, 60)
        end = time.monotonic() + SECONDS
        while not (lost := lost_processes(strategy)) and time.monotonic() < end:
            stats += train(strategy, len(stats) + 1, len(stats) + 10)
    assert [one.index for one in stats] == list(range(1, len(stats) + 1))
    assert lost == 1


def lost_processes(strategy: Strategy) -> int:
    lost = strategy.report()["lost"]
    return int(lost["workers"] + lost["servers"])


@pytest.mark.exhaustive
def test_a_word_that_is_lost_ends_the_run_with_who_owes_what() -> None:
    with running(*WATCHED) as strategy:
        train(strategy, 1, 2)
        coordinator: Any = strategy._coordinator
        send = coordinator._send
        coordinator._send = lambda member, word: (
            None if (str(member), word["do"]) == ("worker 1", "grant") else send(member, word)
        )
        with pytest.raises(DistributedError) as ended:
            train(strategy, 3, STEPS)
    owed = "messages of step 3 (gradients of groups 2, 3 for shard"
    assert "waited in vain for step 3, nobody has stirred for 5 s: " in str(ended.value)
    assert all(f"server {number} waits for {owed} {number})" in str(ended.value) for number in range(3))
    # It says 3 where the answers to step 2 came before it could begin to wait for them.
    assert re.search(r"worker 1 waits for something to compute, behind its share of step [23]", str(ended.value))
    assert str(ended.value).endswith("; the same command goes on from the last checkpoint")


@pytest.mark.exhaustive
def test_a_breakpoint_in_a_worker_trips_nothing(wanted: Undisturbed, tmp_path: Path) -> None:
    """Who looks at a process may hold it for as long as it takes: here strace plays the debugger."""
    tracer = subprocess.run(["which", "strace"], capture_output=True, text=True).stdout.strip()
    if not tracer:
        pytest.skip("needs strace")
    with running(*WATCHED, faults=["delay@worker0.forward:3:8"]) as strategy:
        pids = [agent.about["pid"] for member, agent in strategy._coordinator._agents.items()  # type: ignore
                if str(member) == "worker 0"]  # fmt: skip
        tracing = subprocess.Popen([tracer, "-p", str(pids[0]), "-o", str(tmp_path / "trace")], stderr=subprocess.PIPE)
        assert tracing.stderr is not None
        tracing.stderr.readline()  # it is attached
        wanted.assert_equal(train(strategy, 1, STEPS), strategy.state())
        assert strategy.report()["lost"] == {"workers": 0, "servers": 0, "links": 0}
        tracing.terminate()
        tracing.wait()


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, processes end before they connect."""

    def end_early() -> None:
        monkeypatch.setattr(processes, "_serve", _end_at_once)

    return end_early


def _end_at_once(*_: Any) -> None:
    os._exit(3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [1, 2])
def test_replacements_that_end_before_they_connect(
    workers: int, wanted: Undisturbed, replaced: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"workers={workers}", "servers=1", *IMPATIENT]
    with caplog.at_level(logging.WARNING), running(*words, faults=["kill@worker0.forward:3"]) as strategy:
        replaced()
        if workers == 1:
            with pytest.raises(DistributedError, match=r"no worker is left, and 3 processes in a row ended before"):
                train(strategy, 1, STEPS)
        else:
            wanted.assert_equal(train(strategy, 1, STEPS), strategy.state())
            strategy._coordinator._wait(lambda: "goes on with 1" in caplog.text, lambda: "the end", SECONDS)  # type: ignore
    said = [record.getMessage() for record in caplog.records if "was to replace" in record.getMessage()]
    assert len(said) == 3
    assert all(line.endswith("ended with exit code 3") for line in said)


@pytest.mark.exhaustive
def test_a_run_that_nobody_can_go_on_with_is_failed_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    small = ["scale=smoke", "tracking=none", "threads=1", "device=cpu", "batch.micro_batches=2", "search=greedy",
             "data.options={train_size: 96, validation_size: 8, test_size: 8}", "training.max_steps=10",
             "validation.every_steps=4", "executor.retries=0"]  # fmt: skip
    served = [*small, f"paths.runs={tmp_path / 'served'}", "distribution=parameter_server"]
    hangs = ["distribution.watchdog_seconds=5", "distribution.replace_lost=false",
             "distribution.faults=[hang@worker0.forward:6]"]  # fmt: skip
    with pytest.raises(UserError) as ended:
        train_run(compose([*served, *hangs]))
    assert (
        str(ended.value) == "the parameter server: no worker is left; the same command goes on from the last checkpoint"
    )
    store = LocalRunStore(tmp_path / "served")
    (run_id,) = store.list_runs()
    assert store.status(run_id).state == "failed"
    assert train_run(compose(served)).state == "finished"
    assert train_run(compose([*small, f"paths.runs={tmp_path / 'alone'}"])).run_id == run_id
    (event,) = [one for one in read_events(store.directory(run_id) / EVENTS) if one["kind"] == "resume"]
    assert event["step"] == 4
    digests = [
        [
            one["parameters_sha256"]
            for one in map(json.loads, path.read_text().splitlines())
            if one["kind"] == "evaluation"
        ]
        for path in sorted(tmp_path.glob("*/*/s1/metrics.jsonl"))
    ]
    assert len(digests[0]) == 3
    assert digests[0] == digests[1]
