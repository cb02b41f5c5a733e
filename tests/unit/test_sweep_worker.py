"""What a work item's process does with success, failure and interruption, and how the machine is dealt out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nmt.config import compose, to_dict
from nmt.config.identity import run_id
from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunBusyError
from sweeps.executors.placement import Node, Placement, place
from sweeps.worker import Outcome, WorkItem, run_work_item

CALLS: list[tuple[int, int, str]] = []


def fake_train(config: Any, *, timing: str) -> SimpleNamespace:
    CALLS.append((config.seed, config.threads, timing))
    if config.seed == 2:
        raise ValueError("no luck\nat all")
    if config.seed == 3:
        raise UserError("is missing", where="data.dir")
    if config.seed == 4:
        raise RunBusyError("another process trains it", where="run")
    return SimpleNamespace(state="interrupted" if config.seed == 5 else "finished")


def item(*seeds: int, **fields: Any) -> WorkItem:
    config = compose([])
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    return WorkItem(
        title="test",
        run_ids=tuple(map(run_id, configs)),
        configs=tuple(map(to_dict, configs)),
        trainer=f"{__name__}:fake_train",
        **fields,
    )


def machine(name: str = "node", **resources: float) -> Node:
    return Node(name=name, resources=resources)


def test_errors_are_outcomes_and_only_some_are_worth_another_try(isolated_runs: Path) -> None:
    CALLS.clear()
    work = item(1, 2, 3, 4, 5, 6, timing="shared", threads=3)
    outcomes = run_work_item(work)
    assert [(outcome.state, outcome.retry) for outcome in outcomes] == [
        ("finished", False),
        ("failed", True),
        ("failed", False),
        ("running", False),
        ("interrupted", False),  # and seed 6 is not started
    ]
    assert [CALLS[0], CALLS[-1]] == [(1, 3, "shared"), (5, 3, "shared")]
    store = LocalRunStore(isolated_runs)
    failed = store.status(work.run_ids[1])
    assert (failed.state, failed.error) == ("failed", "ValueError: no luck")
    assert "ValueError" in (store.directory(work.run_ids[1]) / "error.txt").read_text(encoding="utf-8")
    assert store.status(work.run_ids[2]).error == "data.dir: is missing"
    assert store.status(work.run_ids[3]).state == "queued"  # the other process's business


def test_the_run_of_a_dead_node_is_taken_up_and_that_of_a_living_one_left(
    isolated_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def outlives_holder(store: LocalRunStore, run_id: str) -> bool:
        asked.append(run_id)
        return False

    monkeypatch.setattr(LocalRunStore, "outlives_holder", outlives_holder)
    work = item(4)
    CALLS.clear()
    (outcome,) = run_work_item(work)
    assert (outcome.state, outcome.retry, len(CALLS), asked) == ("running", False, 1, [*work.run_ids])
    monkeypatch.setattr(LocalRunStore, "outlives_holder", lambda store, run_id: True)
    CALLS.clear()
    run_work_item(work)
    assert len(CALLS) == 2


def test_outcomes_and_items_cross_process_borders() -> None:
    import pickle

    work = item(1)
    assert pickle.loads(pickle.dumps(work)) == work
    outcome = Outcome(run_id="x", state="failed", error="e", retry=True)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


@pytest.mark.parametrize(
    ("workers", "items", "cores", "expected"),
    [
        (0, 4, 2, Placement(workers=2, threads=1)),
        (0, 1, 2, Placement(workers=1, threads=2)),
        (0, 3, 16, Placement(workers=3, threads=5)),
        (1, 4, 8, Placement(workers=1, threads=8)),
        (5, 9, 2, Placement(workers=5, threads=1)),
        (5, 3, 12, Placement(workers=3, threads=4)),
    ],
)
def test_cores_are_dealt_out_evenly(workers: int, items: int, cores: int, expected: Placement) -> None:
    assert place(ExecutorConfig(workers=workers), [item(1)] * items, [machine(CPU=cores)]) == expected


def test_threads_that_are_asked_for_are_given() -> None:
    config = dataclasses.replace(compose([]), threads=4)
    work = WorkItem(title="t", run_ids=(run_id(config),), configs=(to_dict(config),))
    assert place(ExecutorConfig(), [work] * 8, [machine(CPU=8)]) == Placement(workers=2, threads=4)


def test_a_run_alone_on_the_machine_is_timed_as_exclusive() -> None:
    assert Placement(workers=1, threads=2).place(item(1)).timing == "exclusive"
    placed = Placement(workers=2, threads=1).place(item(1))
    assert (placed.timing, placed.threads) == ("shared", 1)
