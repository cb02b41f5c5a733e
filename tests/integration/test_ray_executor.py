"""The Ray Tune executor: trials in workers of a cluster, their retries and their deaths; truth is the run directory."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import pytest

from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from sweeps.aggregate import aggregate
from sweeps.executors.ray_tune import RayTuneExecutor
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec
from sweeps.worker import WorkItem

pytestmark = pytest.mark.ray


def plan_of(*labels: str, replicates: int = 1) -> SweepPlan:
    rows = tuple(
        RowSpec(label=label, overrides=(f"training.max_steps={100 + number}",)) for number, label in enumerate(labels)
    )
    return make_plan(SweepSpec(name="test", title="T", rows=rows, replicates=replicates), [])


def items_of(plan: SweepPlan) -> list[WorkItem]:
    return [dataclasses.replace(item, trainer="fake_training:train") for item in plan.work_items()]


def test_every_outcome_on_a_cluster(ray_cluster: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = plan_of("steady", "crashes", "dies")
    polls: list[threading.Thread] = []
    said: list[str] = []
    executor = RayTuneExecutor(ExecutorConfig(retries=1, address=ray_cluster), plan.store)
    executor.execute(items_of(plan), lambda: polls.append(threading.current_thread()), said.append)
    statuses = [plan.store.status(run.run_id) for run in plan.runs]
    assert [(status.state, status.attempts) for status in statuses] == [
        ("finished", 1),
        ("finished", 2),
        ("failed", 2),
    ]
    rows = aggregate(plan)
    assert [rows[0].metrics["bleu"].mean, rows[1].metrics["bleu"].mean] == [11.0, 11.0]
    assert rows[0].replicates[0].timing == "shared"
    assert rows[2].replicates[0].error.startswith("the process died: ")
    assert statuses[0].pid != os.getpid()
    assert list((tmp_path / "runs" / ".sweeps").iterdir()) == []  # nothing of Tune's stays behind
    assert set(polls) == {threading.main_thread()}
    assert said == [
        "a run needs 1 CPU; the cluster with 4 CPUs, 1 GPU: 3 at a time",
        "runs are given no GPU and see none: executor.gpus_per_run=1 gives each one, a fraction shares one",
    ]
    assert capfd.readouterr() == ("", "")  # the screen belongs to the live table


@pytest.mark.exhaustive
def test_more_replicates_run_alone_in_one_process_after_the_other(ray_cluster: str) -> None:
    config = ExecutorConfig(address=ray_cluster, workers=1)
    first = plan_of("steady", replicates=2)
    RayTuneExecutor(config, first.store).execute(items_of(first), lambda: None)
    # What training has imported stays for the next replicate.
    assert len({first.store.status(run.run_id).pid for run in first.runs}) == 1
    more = plan_of("steady", replicates=3)
    assert [item.run_ids for item in more.work_items()] == [(more.runs[2].run_id,)]
    RayTuneExecutor(config, more.store).execute(items_of(more), lambda: None)
    assert [more.store.status(run.run_id).attempts for run in more.runs] == [1, 1, 1]
    assert plan_of("steady", replicates=3).work_items() == []


def test_what_the_cluster_does_not_have_is_refused(ray_cluster: str) -> None:
    plan = plan_of("steady")
    with pytest.raises(UserError, match=r"gpus_per_run: a run needs 2 GPUs on one node; the cluster has 1 GPU"):
        RayTuneExecutor(ExecutorConfig(gpus_per_run=2.0, address=ray_cluster), plan.store).execute(
            items_of(plan), lambda: None
        )
    assert plan.store.list_runs() == []
