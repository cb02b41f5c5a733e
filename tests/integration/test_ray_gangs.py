"""Runs of several processes through Ray Tune: each trial a placement group over the nodes, with actors of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from leftovers import Possessions, left_over, lives, possessions, wait_for_ends
from logical_cluster import LogicalCluster

from nmt.config import from_dict
from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from nmt.events import EVENTS, read_events
from nmt.train import train
from sweeps.executors.ray_tune import RayTuneExecutor
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec

pytestmark = pytest.mark.ray

TINY = [
    "scale=smoke",
    "tracking=none",
    "threads=1",
    "device=cpu",
    "data.options={train_size: 96, validation_size: 8, test_size: 8}",
    "batch.micro_batches=2",
    "training.max_steps=12",
    "training.log_every_steps=1",
    "validation.every_steps=6",
    "model.decoder.cell.dropout_input=0.2",
]
SERVED = ["distribution=parameter_server", "distribution.heartbeat_seconds=0.3"]
OF_ONE_EXECUTION = {"seconds", "tokens_per_second", "timing", "peak_memory_bytes", "energy", "distribution"}


@pytest.fixture(scope="module")
def three_nodes(ray_environment: None) -> Iterator[LogicalCluster]:
    """Three nodes with two CPUs and two GPUs each."""
    with LogicalCluster() as cluster:
        yield cluster


def plan_of(runs: Path, *words: str, replicates: int = 1) -> SweepPlan:
    rows = (RowSpec(label="plain", overrides=(*TINY, f"paths.runs={runs}", *words)),)
    return make_plan(SweepSpec(name="test", title="T", rows=rows, replicates=replicates), [])


def execute(
    plan: SweepPlan, address: str, on_poll: Callable[[], None] = lambda: None, trainer: str = "", **config: Any
) -> list[str]:
    said: list[str] = []
    executor = RayTuneExecutor(ExecutorConfig(address=address, **config), plan.store)
    items = [replace(item, trainer=trainer) if trainer else item for item in plan.work_items()]
    executor.execute(items, on_poll, said.append)
    states = [plan.store.status(run.run_id) for run in plan.runs]
    assert [(state.state, state.error) for state in states] == [("finished", "")] * len(states)
    return said


def columns(plan: SweepPlan) -> list[dict[str, Any]]:
    """All that a table could show of the runs, without what belongs to one execution."""
    found = []
    for run in plan.runs:
        result = plan.store.read_json(run.run_id, "result.json") or {}
        result["convergence"].pop("seconds")
        lines = (plan.store.directory(run.run_id) / "metrics.jsonl").read_text().splitlines()[1:]
        train = [one["loss_hex"] for one in map(json.loads, lines) if one["kind"] == "train"]
        digests = [
            (one["parameters_sha256"], one["optimizer_sha256"])
            for one in map(json.loads, lines)
            if one["kind"] == "evaluation"
        ]
        kept = {name: value for name, value in result.items() if name not in OF_ONE_EXECUTION}
        found.append(kept | {"losses": train, "digests": digests})
    return found


def agents(plan: SweepPlan) -> list[dict[str, int]]:
    """By process of each run, its id as its own timeline says it."""
    found = []
    for run in plan.runs:
        headers = {}
        for path in sorted((plan.store.directory(run.run_id) / "journals").glob("timeline-*.jsonl")):
            whole, _, _ = path.read_text().rpartition("\n")  # the last line may be under way
            lines = map(json.loads, whole.splitlines())
            headers |= {one["process"]: one["pid"] for one in lines if one["kind"] == "header"}
        found.append(headers)
    return found


def checkpointed(plan: SweepPlan) -> bool:
    """Whether the first run has a checkpoint: its processes have all been written down then."""
    events = read_events(plan.store.directory(plan.runs[0].run_id) / EVENTS)
    return any(event["kind"] == "checkpoint" for event in events)


def survivors(found: Sequence[int]) -> list[int]:
    """Which of these processes are still there; they are given time to end."""
    wait_for_ends(set(found))
    return [pid for pid in found if lives(pid)]


@pytest.mark.exhaustive
def test_a_sweep_with_servers_has_the_columns_of_one_without(three_nodes: LogicalCluster, tmp_path: Path) -> None:
    alone = plan_of(tmp_path / "alone", replicates=2)
    served = plan_of(tmp_path / "served", *SERVED, "distribution.workers=2", replicates=2)
    execute(alone, three_nodes.address)
    said = execute(served, three_nodes.address, gpus_per_run=0.5)
    assert said == ["a run needs 4 CPUs, 1.5 GPUs in 4 processes; 3 nodes with 6 CPUs, 6 GPUs: 1 at a time"]
    assert [run.run_id for run in alone.runs] == [run.run_id for run in served.runs]
    assert columns(alone) == columns(served)
    # Both were really trained, each by processes of its own.
    statuses = [plan.store.status(run.run_id) for plan in (alone, served) for run in plan.runs]
    assert [status.attempts for status in statuses] == [1] * 4
    processes = agents(served)
    assert [sorted(one) for one in processes] == [["server 0", "worker 0", "worker 1"]] * 2
    pids = [pid for one in processes for pid in one.values()] + [status.pid for status in statuses[2:]]
    assert len(set(pids)) == 8
    assert not set(pids) & {status.pid for status in statuses[:2]}
    assert survivors([pid for one in processes for pid in one.values()]) == []
    assert all((plan.store.read_json(run.run_id, "result.json") or {})["steps"] == 12
               for plan in (alone, served) for run in plan.runs)  # fmt: skip


@pytest.mark.exhaustive
def test_two_gangs_train_side_by_side_and_a_killed_actor_is_replaced(
    three_nodes: LogicalCluster, tmp_path: Path
) -> None:
    """Three bundles each on three nodes of two CPUs: no gang fits on one node, and there is no room for a third."""
    alone = plan_of(tmp_path / "alone", replicates=2)
    words = ["distribution.faults=[kill@worker0.forward:5]"]
    served = plan_of(tmp_path / "served", *SERVED, *words, replicates=2)
    said = execute(served, three_nodes.address)
    assert said[0] == "a run needs 3 CPUs in 3 processes; 3 nodes with 6 CPUs, 6 GPUs: 2 at a time"
    execute(alone, three_nodes.address)
    assert columns(alone) == columns(served)
    for run, processes in zip(served.runs, agents(served), strict=True):
        result = served.store.read_json(run.run_id, "result.json") or {}
        assert result["distribution"]["lost"]["workers"] == 1
        assert result["timing"] == "shared"
        assert served.store.status(run.run_id).attempts == 1  # the trial went on
        assert sorted(processes) == ["server 0", "worker 0", "worker 1"]  # the last in the place of the one before
        assert processes["worker 0"] != processes["worker 1"]
    times = [[one["time"] for one in read_events(served.store.directory(run.run_id) / EVENTS)] for run in served.runs]
    assert max(one[0] for one in times) < min(one[-1] for one in times)


@pytest.mark.exhaustive
def test_an_actor_that_stands_still_is_killed_for_another_in_its_bundle(
    three_nodes: LogicalCluster, tmp_path: Path
) -> None:
    alone = plan_of(tmp_path / "alone")
    words = ["distribution.faults=[stop@worker1.forward:5]", "distribution.deadline_seconds=10"]
    served = plan_of(tmp_path / "served", *SERVED, *words, "distribution.workers=2")
    execute(served, three_nodes.address, gpus_per_run=1.0)
    execute(alone, three_nodes.address)
    assert columns(alone) == columns(served)
    result = served.store.read_json(served.runs[0].run_id, "result.json") or {}
    assert result["distribution"]["lost"]["workers"] == 1
    (processes,) = agents(served)
    assert survivors(list(processes.values())) == []


@pytest.mark.exhaustive
def test_actors_that_die_before_they_connect_are_noticed_and_nothing_of_a_trial_is_left(
    three_nodes: LogicalCluster, tmp_path: Path
) -> None:
    """Whoever is to take the lost worker's place is made to fail in its first line (`failing_replacements`)."""
    alone = plan_of(tmp_path / "alone")
    # Worker 1 waits at step 9, behind the evaluation that writes down who is there.
    words = ["distribution.workers=2", "distribution.faults=[kill@worker0.forward:3, delay@worker1.forward:9:10]"]
    served = plan_of(tmp_path / "served", *SERVED, *words)
    had = Possessions()

    def look() -> None:
        nonlocal had
        if not had.processes and checkpointed(served):
            found = agents(served)[0]
            had = possessions({*found.values(), served.store.status(served.runs[0].run_id).pid})

    execute(served, three_nodes.address, look, trainer="failing_replacements:train")
    execute(alone, three_nodes.address)
    assert columns(alone) == columns(served)
    result = served.store.read_json(served.runs[0].run_id, "result.json") or {}
    assert result["distribution"]["lost"] == {"workers": 1, "servers": 0, "links": 0}
    assert served.store.status(served.runs[0].run_id).attempts == 1
    (said,) = tmp_path.rglob("replacements.txt")
    ends = said.read_text().splitlines()
    assert 1 <= len(ends) <= 3  # the run may be over before a third has failed
    place = ends[0].partition(" ended: ")[0]  # in the group: who comes first is worker 0
    assert place in ("bundle 1", "bundle 2")
    assert all(line == f"{place} ended: RuntimeError: set_num_threads expects a positive integer" for line in ends)
    # At least the trainer, a server and the worker that was left, with their listeners and their memory.
    assert (len(had.processes) >= 3, len(had.ports) >= 2, len(had.memory) >= 2) == (True, True, True)
    assert left_over(had) == Possessions()


@pytest.mark.exhaustive
def test_a_trial_whose_trainer_dies_goes_on_with_new_actors_in_a_new_group(
    three_nodes: LogicalCluster, tmp_path: Path
) -> None:
    alone = plan_of(tmp_path / "alone")
    # The worker waits at step 9 of the first attempt, so that there is time to kill its trainer behind the checkpoint.
    words = ["distribution.faults=[delay@worker0.forward:9:10]"]
    served = plan_of(tmp_path / "served", *SERVED, *words)
    run_id = served.runs[0].run_id
    first: dict[str, int] = {}

    def kill_once() -> None:
        if not first and checkpointed(served):
            first.update(agents(served)[0] | {"trainer": served.store.status(run_id).pid})
            os.kill(first["trainer"], signal.SIGKILL)

    execute(served, three_nodes.address, kill_once)
    execute(alone, three_nodes.address)
    assert columns(alone) == columns(served)
    assert served.store.status(run_id).attempts == 2
    second = agents(served)[0]
    assert sorted(first) == ["server 0", "trainer", "worker 0"]
    assert sorted(second) == ["server 0", "worker 0"]
    assert survivors(list(first.values())) == []
    events = read_events(served.store.directory(run_id) / EVENTS)
    assert [one["step"] for one in events if one["kind"] == "resume"] == [6]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "words",
    [
        ["distribution=ddp", "distribution.workers=2"],
        ["distribution=ring_allreduce", "distribution.workers=2"],
        ["distribution=ring_tmp", "distribution.nodes=2"],
        ["distribution=ring_tmp", "distribution.nodes=1", "distribution.rings=2"],
        ["distribution=ring_tmp", "distribution.mode=rotate", "distribution.nodes=2"],
    ],
    ids=["ddp", "ring_allreduce", "stage", "torus", "rotate"],
)
def test_workers_without_servers_compute_in_actors_what_they_compute_in_processes(
    three_nodes: LogicalCluster, tmp_path: Path, words: list[str]
) -> None:
    here, there = plan_of(tmp_path / "here", *words), plan_of(tmp_path / "there", *words)
    said = execute(there, three_nodes.address, gpus_per_run=1.0)
    assert said == ["a run needs 3 CPUs, 3 GPUs in 3 processes; 3 nodes with 6 CPUs, 6 GPUs: 1 at a time"]
    train(from_dict(here.work_items()[0].configs[0]))
    assert columns(here) == columns(there)
    assert sorted(agents(there)[0]) == ["worker 0", "worker 1"]
    assert survivors(list(agents(there)[0].values())) == []


def test_a_gang_that_cannot_fit_is_refused_before_anything_starts(three_nodes: LogicalCluster, tmp_path: Path) -> None:
    words = ["batch.micro_batches=4", "distribution.workers=4", "distribution.servers=2"]
    plan = plan_of(tmp_path / "runs", *SERVED, *words)
    with pytest.raises(UserError) as refused:
        execute(plan, three_nodes.address)
    assert "a run of 7 processes needs 7 CPUs, which do not fit on 3 nodes with 6 CPUs" in str(refused.value)
    assert plan.store.list_runs() == []
