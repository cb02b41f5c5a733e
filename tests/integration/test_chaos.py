"""A sweep that is hit by everything at once, and started again each time, ends like one that nobody touched.

Runs stand still at the named points (`faults=[stop@...]`), so each blow lands exactly where it is meant to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from logical_cluster import LogicalCluster
from test_resume import TRAIN, bits_of
from test_takeover import content, let_expire

from nmt.events import BEGINNINGS, ENDS, read_events
from nmt.lease_file import read_lease
from nmt.leases import is_held
from nmt.runs import LocalRunStore
from sweeps.tracking.store import default_uri, open_client

pytestmark = [pytest.mark.exhaustive, pytest.mark.ray]

STEPS, INTERVAL = 18, 6  # of a run, and the most steps from one checkpoint to the next
PATIENCE = 600.0  # the longest wait for anything, in seconds
INTERRUPTED = 75
VARYING = ("tokens_per_second", "seconds", "memory", "timing")  # words in the names of columns that a machine decides
SPEC = """\
title: Four tiny rows, twice each
replicates: 2
rows:
  - {label: slow}
  - {label: quick, overrides: [optimizer.learning_rate=0.02]}
  - {label: quicker, overrides: [optimizer.learning_rate=0.03]}
  - {label: brisk, overrides: [optimizer.learning_rate=0.01]}
"""
RUNS = 8  # so many that none of the blows comes too late, however far runs get that hear of a Ctrl-C
WORDS = [word for word in TRAIN if not word.startswith(("experiment=", "tracking=", "optimizer."))]


class Sweep:
    """One execution of `nmt sweep`, and the processes that it brings about."""

    def __init__(self, spec: Path, runs: Path, *words: str, environment: Mapping[str, str] | None = None):
        self.runs, self.store = runs, LocalRunStore(runs)
        self.log = runs.parent / f"{runs.name}.log"
        command = [sys.executable, "-m", "nmt.cli", "sweep", f"sweep={spec}", *WORDS, "search=greedy", *words]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"NMT_RUNS": str(runs)} | dict(environment or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, what: str, found: Callable[[], Any]) -> Any:
        """The first value of `found` that is true; fails after `PATIENCE` seconds, or where the driver ends first."""
        end = time.monotonic() + PATIENCE
        while not (value := found()):
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"no {what}; the sweep said:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)
        return value

    def wait_for_stopped(self, number: int) -> dict[str, int]:
        """`number` runs whose processes stand still, with those processes."""
        return self.wait(f"{number} stopped runs", lambda: len(found := dict(self._stopped())) == number and found)

    def _stopped(self) -> Iterator[tuple[str, int]]:
        for name in self.store.list_runs():
            status = self.store.status(name)
            if status.state == "running" and state_of(status.pid) == "T":
                yield name, status.pid

    def again(self, run_id: str, dead: int) -> int:
        """The process that trains a run after `dead` did, once it stands still; 0 before."""
        return next((pid for name, pid in self._stopped() if name == run_id and pid != dead), 0)

    def others(self, but: Mapping[str, int], number: int = 1) -> list[int]:
        """Processes of stopped runs that are not among `but`; none before there are `number`."""
        found = [pid for name, pid in self._stopped() if name not in but]
        return found if len(found) >= number else []

    def ctrl_c(self, stopped: Iterable[int]) -> None:
        """Interrupt the driver, and let runs that stand still hear of it."""
        self.process.send_signal(signal.SIGINT)
        signal_all(stopped, signal.SIGCONT)
        self.end(INTERRUPTED)

    def end(self, code: int) -> None:
        """Wait until the driver has ended with `code`."""
        found = self.process.wait(PATIENCE)
        assert found == code, self.log.read_text()[-3000:]


def state_of(pid: int) -> str:
    """A process's state as the kernel says it: T where it is stopped, nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def trials_of(runs: Path) -> list[int]:
    """Living processes that hold a run, or held it last."""
    store = LocalRunStore(runs)
    leases = (read_lease(store.directory(name)) for name in store.list_runs())
    return [pid for pid in {lease.pid for lease in leases if lease} if state_of(pid)]


def everything_of(runs: Path) -> list[int]:
    """Trials, the driver, and what Ray has started for them.

    Ray writes the titles of workers over their environment, so trials are known from leases.
    """
    found = trials_of(runs)
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"NMT_RUNS={runs}\0".encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:
            continue
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_until_free(runs: Path) -> None:
    """Wait for the end of trials whose driver or node has died; those that came to stand still meanwhile are woken."""
    store, end = LocalRunStore(runs), time.monotonic() + PATIENCE
    while any(is_held(store.directory(name)) for name in store.list_runs()):
        assert time.monotonic() < end, f"processes {trials_of(runs)} live on without their driver"
        signal_all((pid for pid in trials_of(runs) if state_of(pid) == "T"), signal.SIGCONT)
        time.sleep(0.02)


def run_to_the_end(spec: Path, runs: Path, *words: str) -> str:
    sweep = Sweep(spec, runs, *words)
    sweep.end(0)
    return sweep.log.read_text()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "chaos.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, spec: Path) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    run_to_the_end(spec, runs, "executor=inline")
    return runs


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory, spec: Path) -> Iterator[Path]:
    """The directory of runs of a sweep after all blows, and one last quiet execution."""
    runs = tmp_path_factory.mktemp("survivor") / "runs"
    try:
        for blow in (
            kill_the_driver_between_checkpoints,
            kill_everything_while_a_checkpoint_is_written,
            kill_a_trial_then_ctrl_c,
            kill_a_node_then_ctrl_c,
            stop_past_the_lease_and_wake,
        ):
            blow(spec, runs)
            wait_until_free(runs)
        yield runs
    finally:
        signal_all(everything_of(runs), signal.SIGKILL)


def kill_the_driver_between_checkpoints(spec: Path, runs: Path) -> None:
    sweep = Sweep(spec, runs, "executor=ray_tune", "faults=[stop@slot:8]")
    stopped = sweep.wait_for_stopped(2)
    sweep.process.kill()
    sweep.process.wait()
    signal_all(stopped.values(), signal.SIGKILL)  # workers die with their driver, unless they stand still


def kill_everything_while_a_checkpoint_is_written(spec: Path, runs: Path) -> None:
    sweep = Sweep(spec, runs, "executor=ray_tune", "faults=[stop@checkpoint:12]")
    stopped = sweep.wait_for_stopped(2)
    unfinished = [path for name in stopped for path in sweep.store.directory(name).rglob("*.tmp")]
    assert len(unfinished) == 2, unfinished
    signal_all(everything_of(runs), signal.SIGKILL)
    sweep.process.wait()


def kill_a_trial_then_ctrl_c(spec: Path, runs: Path) -> None:
    sweep = Sweep(spec, runs, "executor=ray_tune", "faults=[stop@slot:14]")
    first = sweep.wait_for_stopped(2)
    (victim, dead), (_, other) = first.items()
    os.kill(dead, signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    # Tune starts the victim again; it goes on from its checkpoint and comes to the same point.
    again = sweep.wait("second attempt at the killed run", lambda: sweep.again(victim, dead))
    os.kill(again, signal.SIGCONT)
    next_ones = sweep.wait("next two runs that stand still", lambda: sweep.others(first, 2))
    sweep.ctrl_c(next_ones)


def kill_a_node_then_ctrl_c(spec: Path, runs: Path) -> None:
    with LogicalCluster(nodes=3, cpus=1, gpus=0) as cluster:
        words = ["executor.workers=2", f"executor.address={cluster.address}", "faults=[stop@evaluation:18]"]
        sweep = Sweep(spec, runs, "executor=ray_tune", *words, environment=cluster.environment)
        first = sweep.wait_for_stopped(2)
        victim, dead = next((name, pid) for name, pid in first.items() if cluster.node_of(pid) != 0)
        cluster.kill(cluster.node_of(dead))
        os.kill(dead, signal.SIGKILL)  # as its node's death does to a worker that does not stand still
        signal_all(first.values(), signal.SIGCONT)
        again = sweep.wait("attempt at the lost run on another node", lambda: sweep.again(victim, dead))
        os.kill(again, signal.SIGCONT)
        next_ones = sweep.wait("next runs that stand still", lambda: sweep.others(first))
        sweep.ctrl_c(next_ones)


def stop_past_the_lease_and_wake(spec: Path, runs: Path) -> None:
    sleeper = Sweep(spec, runs, "executor=ray_tune", "faults=[stop@slot:16]")
    stopped = sleeper.wait_for_stopped(2)
    for name in stopped:
        let_expire(sleeper.store, name)
    run_to_the_end(spec, runs, "executor=inline")
    before = [content(sleeper.store, name) for name in stopped]
    signal_all(stopped.values(), signal.SIGCONT)
    sleeper.end(0)
    assert [content(sleeper.store, name) for name in stopped] == before


def test_its_table_is_that_of_the_undisturbed_sweep(undisturbed: Path, survivor: Path, spec: Path) -> None:
    said = run_to_the_end(spec, survivor, "executor=inline")
    assert f"all {RUNS} runs are there, nothing to train" in said
    ours, theirs = (pd.read_csv(next(runs.glob("reports/*/table.csv"))) for runs in (survivor, undisturbed))
    assert list(ours.columns) == list(theirs.columns)
    same = [name for name in ours.columns if not varies(name)]
    pd.testing.assert_frame_equal(ours[same], theirs[same], check_exact=True)


def test_every_record_and_every_parameter_has_the_same_bits(undisturbed: Path, survivor: Path) -> None:
    ours, theirs = LocalRunStore(survivor), LocalRunStore(undisturbed)
    assert len(ours.list_runs()) == RUNS
    assert ours.list_runs() == theirs.list_runs()
    for name in ours.list_runs():
        assert bits_of(ours, name) == bits_of(theirs, name)
        assert [path.name for path in ours.directory(name).rglob("*.tmp")] == []


def test_no_step_is_trained_twice_beyond_the_last_checkpoint(survivor: Path) -> None:
    print()
    for name in LocalRunStore(survivor).list_runs():
        events = read_events(survivor / name / "events.jsonl")
        reached = made = 0
        for number in sorted({event["attempt"] for event in events}):
            attempt = [event for event in events if event["attempt"] == number]
            (end,) = [event for event in attempt if event["kind"] in ENDS]
            begin = next((event for event in attempt if event["kind"] in BEGINNINGS), None)
            if begin is None:  # the blow hit it while it started
                assert end["kind"] == "killed" and "steps_run" not in end
                continue
            if begin["kind"] == "decode":
                continue
            assert begin["step"] == reached, (name, number)  # where the newest checkpoint stands, not before
            told = max([reached, *(event["step"] for event in attempt if event["kind"] == "checkpoint")])
            reached = end["step_from"] + end["steps_kept"]
            # A checkpoint stands before its event is written; a blow in between leaves no event of the newest.
            assert told == reached if end["kind"] != "killed" else told <= reached <= told + INTERVAL
            assert end["steps_run"] - end["steps_kept"] <= INTERVAL
            made += end["steps_run"]
            print(f"{name} attempt {number}: steps {begin['step']} to {end['step_to']}, {end['kind']}")
        assert reached == STEPS
        print(f"{name}: {made} steps made for {STEPS} kept")


def test_mlflow_has_every_point_once(undisturbed: Path, survivor: Path) -> None:
    ours, theirs = curves(survivor), curves(undisturbed)
    assert ours.keys() == theirs.keys()
    assert sum(len(curve) for (_, metric), curve in ours.items() if metric == "train/loss") == RUNS * STEPS
    for key, curve in ours.items():
        assert len({step for step, _ in curve}) == len(curve), key
        assert curve == theirs[key] or varies(key[1])
    assert summaries(survivor) == summaries(undisturbed)


def varies(name: str) -> bool:
    """Whether a column or metric is the machine's, not the run's."""
    return any(word in name for word in VARYING)


def mirrored(runs: Path) -> tuple[Any, list[Any]]:
    """A client of the store, and the sweep's configurations and replicates in it."""
    client = open_client(default_uri(runs))
    (experiment,) = (found for found in client.search_experiments() if found.name.startswith("chaos@"))
    return client, list(client.search_runs([experiment.experiment_id]))


def curves(runs: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """All curves of replicates, by run id and metric."""
    client, found = mirrored(runs)
    return {
        (run.data.tags["nmt.run_id"], metric): sorted(
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)
        )
        for run in found
        if "nmt.run_id" in run.data.tags
        for metric in run.data.metrics
        if "/" in metric
    }


def summaries(runs: Path) -> dict[tuple[str, str], tuple[str, dict[str, float]]]:
    """State and single figures of each configuration and replicate."""
    _, found = mirrored(runs)
    return {
        (run.data.tags["nmt.configuration"], run.data.tags.get("nmt.run_id", "")): (
            run.info.status,
            {name: value for name, value in run.data.metrics.items() if "/" not in name and not varies(name)},
        )
        for run in found
    }
