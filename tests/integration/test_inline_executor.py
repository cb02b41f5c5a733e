"""The inline executor: a child process a run, retries, death and interruption."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

import pytest

from nmt.config.schema import ExecutorConfig
from nmt.runs import LocalRunStore
from sweeps.aggregate import aggregate
from sweeps.executors.inline import InlineExecutor
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec
from sweeps.worker import WorkItem


def plan_of(*labels: str, replicates: int = 1) -> SweepPlan:
    """A row a label; labels that are no part of the identity would share runs, so each row has its own budget."""
    rows = tuple(
        RowSpec(label=label, overrides=(f"training.max_steps={100 + number}",)) for number, label in enumerate(labels)
    )
    return make_plan(SweepSpec(name="test", title="T", rows=rows, replicates=replicates), [])


def items_of(plan: SweepPlan) -> list[WorkItem]:
    return [dataclasses.replace(item, trainer="fake_training:train") for item in plan.work_items()]


def states(plan: SweepPlan) -> list[tuple[str, int]]:
    statuses = [plan.store.status(run.run_id) for run in plan.runs]
    return [(status.state, status.attempts) for status in statuses]


def run(plan: SweepPlan, on_poll: object = None, **config: int) -> None:
    executor = InlineExecutor(ExecutorConfig(**config), plan.store)  # type: ignore[arg-type]
    executor.execute(items_of(plan), on_poll or (lambda: None))  # type: ignore[arg-type]


def test_every_outcome_in_processes_of_its_own() -> None:
    plan = plan_of("steady", "crashes", "raises", "dies", "steady")
    polls = []
    run(plan, lambda: polls.append(threading.current_thread()), workers=2, retries=1)
    assert states(plan) == [("finished", 1), ("finished", 2), ("failed", 2), ("failed", 2), ("finished", 1)]
    rows = aggregate(plan)
    assert rows[0].metrics["bleu"].mean == 11.0
    assert rows[0].replicates[0].timing == "shared"
    assert rows[2].replicates[0].error == "ValueError: no luck"
    assert rows[3].replicates[0].error == "the process died: exit code 9"
    assert plan.store.status(plan.runs[0].run_id).pid != os.getpid()
    assert set(polls) == {threading.main_thread()}


def test_running_again_does_nothing_and_more_replicates_run_alone() -> None:
    run(plan_of("steady", replicates=2))
    assert plan_of("steady", replicates=2).work_items() == []
    more = plan_of("steady", replicates=3)
    assert [item.run_ids for item in more.work_items()] == [(more.runs[2].run_id,)]
    run(more)
    assert states(more) == [("finished", 1)] * 3
    assert [replicate.metrics["bleu"] for replicate in aggregate(more)[0].replicates] == [11.0, 12.0, 13.0]


def test_a_run_alone_is_timed_as_exclusive() -> None:
    plan = plan_of("steady", replicates=2)
    run(plan, workers=1)
    assert [replicate.timing for replicate in aggregate(plan)[0].replicates] == ["exclusive", "exclusive"]


def test_a_signal_lets_running_ones_end_and_starts_no_others() -> None:
    plan = plan_of("waits", "waits", "steady")
    sent = []

    def interrupt_when_both_run() -> None:
        running = [plan.store.status(run.run_id).state == "running" for run in plan.runs[:2]]
        if all(running) and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(plan, interrupt_when_both_run, workers=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert states(plan) == [("interrupted", 1), ("interrupted", 1), ("queued", 0)]
    assert [run.todo for run in plan_of("waits", "waits", "steady").runs] == ["resume", "resume", "train"]


def test_in_this_process_for_tests() -> None:
    plan = plan_of("steady", "raises")
    executor = InlineExecutor(ExecutorConfig(retries=2), plan.store, in_process=True)
    executor.execute(items_of(plan), lambda: None)
    assert states(plan) == [("finished", 1), ("failed", 3)]
    assert LocalRunStore(plan.config.paths.runs).status(plan.runs[0].run_id).pid == os.getpid()
