"""Runs on a cluster of several nodes: which GPU each is given, what does not fit, what a death of nodes leaves behind.

The nodes are Ray's own, all on this machine, and their GPUs exist in Ray's books only (`logical_cluster`): placement is
what these tests show, not the work of a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from logical_cluster import LogicalCluster
from placed_training import PLACE

from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from nmt.events import read_events
from nmt.runs import LocalRunStore
from sweeps.executors.ray_process import LOST_SECONDS
from sweeps.executors.ray_tune import RayTuneExecutor
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec
from sweeps.worker import WorkItem

pytestmark = pytest.mark.ray

PATIENCE_SECONDS = 600.0
RESUMABLE = 75


def plan_of(replicates: int, *overrides: str) -> SweepPlan:
    rows = (RowSpec(label=f"meets {replicates}", overrides=overrides),)
    return make_plan(SweepSpec(name="test", title="T", rows=rows, replicates=replicates), [])


def items_of(plan: SweepPlan) -> list[WorkItem]:
    return [dataclasses.replace(item, trainer="placed_training:train") for item in plan.work_items()]


def places_of(plan: SweepPlan) -> list[dict[str, Any]]:
    return [plan.store.read_json(run.run_id, PLACE) or {} for run in plan.runs]


def execute(plan: SweepPlan, address: str, **config: float) -> list[str]:
    said: list[str] = []
    executor = RayTuneExecutor(ExecutorConfig(address=address, **config), plan.store)  # type: ignore[arg-type]
    executor.execute(items_of(plan), lambda: None, said.append)
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `~` is on every node but the last, which has one of its own: a path that is not shared."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def three_nodes(
    ray_environment: None, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LogicalCluster]:
    """Three nodes with two CPUs and two GPUs each."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with LogicalCluster(node_environments={2: {"HOME": str(elsewhere)}}) as cluster:
            yield cluster


@pytest.mark.exhaustive
def test_six_runs_have_a_gpu_each_on_three_nodes(
    three_nodes: LogicalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(6, "device=cpu", "paths.runs=here")  # a relative path, from a directory that no node started in
    said = execute(plan, three_nodes.address, gpus_per_run=1.0)
    assert said == ["a run needs 1 CPU, 1 GPU; 3 nodes with 6 CPUs, 6 GPUs: 6 at a time"]
    places = places_of(plan)
    given = {(place["node"], place["gpus"]) for place in places}
    assert given == {(node, gpu) for node in three_nodes.node_ids for gpu in ("0", "1")}
    assert {place["timing"] for place in places} == {"shared"}
    assert {place["directory"] for place in places} == {str(tmp_path)}
    assert [plan.store.status(run.run_id).state for run in plan.runs] == ["finished"] * 6
    assert sorted(path.name for path in (tmp_path / "here" / ".sweeps").iterdir()) == []


def test_four_replicates_share_a_gpu(ray_cluster: str) -> None:
    plan = plan_of(4, "device=cpu")
    said = execute(plan, ray_cluster, gpus_per_run=0.25)
    assert said == ["a run needs 1 CPU, 0.25 GPUs; the cluster with 4 CPUs, 1 GPU: 4 at a time"]
    places = places_of(plan)
    assert {(place["gpus"], place["timing"]) for place in places} == {("0", "shared")}
    assert len({place["pid"] for place in places}) == 4


@pytest.mark.exhaustive
def test_without_a_gpu_of_its_own_a_run_sees_none(ray_cluster: str) -> None:
    plan = plan_of(1, "device=cpu")
    execute(plan, ray_cluster)
    assert [place["gpus"] for place in places_of(plan)] == [""]


def test_what_no_node_can_hold_is_refused_though_the_cluster_has_it(three_nodes: LogicalCluster) -> None:
    plan = plan_of(1)
    with pytest.raises(UserError) as refused:
        execute(plan, three_nodes.address, gpus_per_run=3.0)
    complaint = "executor.gpus_per_run: a run needs 3 GPUs on one node; of 3 nodes none has more than 2 GPUs"
    assert str(refused.value).startswith(complaint)
    assert plan.store.list_runs() == []


def test_a_directory_that_a_node_does_not_share_is_refused_by_the_name_of_the_node(
    three_nodes: LogicalCluster, home: Path
) -> None:
    plan = plan_of(1, "paths.runs='~/runs'")
    with pytest.raises(UserError, match=r"^paths.runs: ~/runs is not shared") as refused:
        execute(plan, three_nodes.address)
    told = [node[:8] in str(refused.value) for node in three_nodes.node_ids]
    assert told == [False, False, True]
    assert list((home / "runs").rglob("*probe*")) == []
    assert plan.store.list_runs() == []


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    plan, begin = plan_of(1), time.monotonic()
    with pytest.raises(UserError, match=r"executor.address: no Ray cluster: nothing answers at 127.0.0.1:9"):
        execute(plan, "127.0.0.1:9")
    assert time.monotonic() - begin < 30.0


@pytest.mark.exhaustive
def test_a_cluster_with_another_token_says_so(three_nodes: LogicalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(UserError, match=r"executor.address: the Ray cluster at .* asks for its token"):
        execute(plan_of(1), three_nodes.address)


TINY = """\
title: One tiny row
rows:
  - {label: plain}
overrides: [scale=smoke, search=greedy, data.options.test_size=20, tracking=none, threads=1,
  training.max_steps=60, training.log_every_steps=1, training.checkpoint_every_steps=5, device=cpu]
"""


def stands_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def wait_until(what: Callable[[], bool], meanwhile: Callable[[], bool] = lambda: True) -> bool:
    """Look until it holds; whether it came to hold while `meanwhile` did."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not what():
        if not meanwhile() or time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Sweep:
    """`nmt sweep` in a process of its own, on a cluster."""

    def __init__(self, cluster: LogicalCluster, spec: Path, runs: Path, *words: str):
        self.store = LocalRunStore(runs)
        command = [sys.executable, "-m", "nmt.cli", "sweep", f"sweep={spec}", f"executor.address={cluster.address}"]
        self.process = subprocess.Popen(
            [*command, f"paths.runs={runs}", *words],
            env=os.environ | cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, what: Callable[[], bool]) -> None:
        if not wait_until(what, meanwhile=lambda: self.process.poll() is None):
            self.process.kill()
            pytest.fail(f"the sweep did not get there:\n{self.process.communicate()[0]}")

    def pid_that_stands_still(self, other_than: int = 0) -> int:
        """The process of the run, once it has stopped at its fault."""

        def stopped() -> bool:
            pids = {self.store.status(name).pid for name in self.store.list_runs()} - {0, other_than}
            return any(stands_still(pid) for pid in pids)

        self.wait_for(stopped)
        return self.store.status(self.run_id()).pid

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, said

    def run_id(self) -> str:
        (found,) = self.store.list_runs()
        return found

    def has_reached(self, step: int) -> bool:
        return any(self.store.status(name).step >= step for name in self.store.list_runs())

    def trained_steps(self) -> list[int]:
        path = self.store.directory(self.run_id()) / "metrics.jsonl"
        records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [record["step"] for record in records if record["kind"] == "train"]

    def events(self) -> list[Mapping[str, Any]]:
        return read_events(self.store.directory(self.run_id()) / "events.jsonl")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.mark.exhaustive
def test_a_run_whose_node_dies_goes_on_from_its_checkpoint_on_another(
    ray_environment: None, tiny: Path, tmp_path: Path
) -> None:
    with LogicalCluster(nodes=3, cpus=1, gpus=0, head_cpus=0) as cluster:
        sweep = Sweep(cluster, tiny, tmp_path / "runs", "faults=[stop@slot:23]")
        first = sweep.pid_that_stands_still()
        died_on = cluster.node_of(first)
        cluster.kill(died_on)
        os.kill(first, signal.SIGCONT)  # to find that its node is dead
        again = sweep.pid_that_stands_still(other_than=first)
        assert {died_on, cluster.node_of(again)} == {1, 2}
        os.kill(again, signal.SIGCONT)
        code, said = sweep.end()
    assert (code, sweep.store.status(sweep.run_id()).attempts) == (0, 2), said
    events = sweep.events()
    (death,) = [event for event in events if event["kind"] == "killed"]
    (resumed,) = [event for event in events if event["kind"] == "resume"]
    assert (death["attempt"], death["pid"], resumed["attempt"]) == (1, first, 2)
    assert resumed["step"] == death["step_from"] + death["steps_kept"] >= 15
    assert death["steps_run"] - death["steps_kept"] <= 5
    assert sweep.trained_steps() == list(range(1, 61))


@pytest.mark.exhaustive
def test_a_cluster_that_vanishes_is_one_line_and_the_same_command_goes_on(
    ray_environment: None, tiny: Path, tmp_path: Path
) -> None:
    words = ["training.max_steps=100000", "training.checkpoint_every_steps=10"]  # more than it can make meanwhile
    with LogicalCluster(nodes=2, cpus=1, gpus=0, head_cpus=0) as cluster:
        sweep = Sweep(cluster, tiny, tmp_path / "runs", *words)
        sweep.wait_for(lambda: sweep.has_reached(20))
        cluster.kill(0)
        begin = time.monotonic()
        code, said = sweep.end()
        assert time.monotonic() - begin < LOST_SECONDS + 100.0
    complaints = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == RESUMABLE, said
    assert len(complaints) == 1, said
    assert "the cluster is gone: its head at " in complaints[0]
    assert "Traceback" not in said
    assert "the same command goes on" in said
    wait_until(lambda: sweep.store.status(sweep.run_id()).state != "running")  # a process outlives its node by a moment
    reached = sweep.store.status(sweep.run_id())
    assert reached.state == "interrupted"
    assert sweep.events()[-1]["kind"] == "checkpoint"  # its process died with its node, and could say nothing
    with LogicalCluster(nodes=1, cpus=1, gpus=0) as cluster:
        resumed = Sweep(cluster, tiny, tmp_path / "runs", *words)
        resumed.wait_for(lambda: resumed.has_reached(reached.step + 20))
        resumed.process.terminate()
        code, said = resumed.end()
    assert code == RESUMABLE, said
    kinds = [event["kind"] for event in resumed.events()]
    assert [kinds.count(kind) for kind in ("start", "killed", "resume")] == [1, 1, 1]
    steps = resumed.trained_steps()
    assert steps == list(range(1, len(steps) + 1))
