"""What planning a large sweep costs, in operations: nothing grows faster than rows and runs."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from finished_runs import finish

from nmt.config import compose, to_dict
from nmt.runs import LocalRunStore
from sweeps.ad_hoc import ad_hoc_spec
from sweeps.aggregate import aggregate
from sweeps.executors.ray_tune import run_trial
from sweeps.plan import SweepPlan, make_plan
from sweeps.progress import Watch
from sweeps.reuse import PresentCode
from sweeps.worker import WorkItem

# The package offers a function of the module's name.
composing, identity = (sys.modules[f"nmt.config.{name}"] for name in ("compose", "identity"))


def counted(monkeypatch: pytest.MonkeyPatch, calls: Counter[str], place: Any, name: str) -> None:
    """Count calls of `place.name`."""
    function: Callable[..., Any] = getattr(place, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, count)


def plan_of(rows: int, replicates: int) -> SweepPlan:
    steps = ",".join(str(100 + number) for number in range(rows))
    spec, here = ad_hoc_spec([f"training.max_steps={steps}"], ["experiment=baseline", f"replicates={replicates}"])
    return make_plan(spec, here, code=PresentCode("ours"))


def test_files_are_composed_once_and_identities_computed_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    composing._compose_files.cache_clear()
    counted(monkeypatch, calls, hydra, "compose")
    counted(monkeypatch, calls, identity, "training_identity")
    counted(monkeypatch, calls, LocalRunStore, "read_json")
    counted(monkeypatch, calls, LocalRunStore, "status")
    plan = plan_of(rows=12, replicates=5)
    assert len(plan.runs) == 60
    assert calls["compose"] == 1
    assert calls["training_identity"] == 12
    assert calls["status"] == 60
    assert calls["read_json"] <= 60
    calls.clear()
    aggregate(plan)
    assert calls["training_identity"] == 0
    assert calls["status"] == 60


def test_replicates_share_what_they_have_in_common() -> None:
    plan = plan_of(rows=2, replicates=3)
    items = plan.work_items()
    assert [item.configs[0] for item in items] == [to_dict(run.config) for run in plan.runs]
    by_row: dict[int, set[int]] = {}
    for item in items:
        by_row.setdefault(item.configs[0]["training"]["max_steps"], set()).add(id(item.configs[0]["model"]))
    assert [len(parts) for parts in by_row.values()] == [1, 1]
    assert plan.runs[0].config.model is plan.runs[2].config.model


def test_watching_a_sweep_reads_what_is_under_way_and_not_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.progress.AHEAD", 4)
    plan = plan_of(rows=10, replicates=3)
    watch = Watch(plan)
    finish(plan.runs[0].config, 20.0)
    calls: Counter[str] = Counter()
    counted(monkeypatch, calls, LocalRunStore, "status")
    assert [(run.run_id, before.state, now.state) for run, before, now in watch.look()] == [
        (plan.runs[0].run_id, "queued", "finished"),
        *((run.run_id, "queued", "queued") for run in plan.runs[1:4]),
    ]
    assert calls["status"] == 4
    assert [run.run_id for run, _, _ in watch.look()] == [run.run_id for run in plan.runs[1:5]]
    assert calls["status"] == 8
    assert len(watch.look(everywhere=True)) == 29  # all but the one that has ended


def test_a_trial_unpacks_its_own_item_only() -> None:
    item, *_ = plan_of(rows=1, replicates=1).work_items()
    assert WorkItem.unpack(item.pack()) == item
    nothing = dataclasses.replace(item, run_ids=(), configs=())
    run_trial({"run": "a"}, {"a": nothing.pack(), "b": "what cannot be unpacked"})


def test_what_is_remembered_of_the_files_is_never_changed_and_never_stale(tmp_path: Path) -> None:
    import shutil

    conf = tmp_path / "conf"
    shutil.copytree(composing.CONF, conf)
    assert compose(["batch.size=8", "data.options.x={a: [1]}"], conf).data.options["x"] == {"a": [1]}
    plain = compose([], conf)
    assert (plain.batch.size, plain.data.options.get("x")) == (compose([]).batch.size, None)
    (conf / "scale" / "local.yaml").write_text("# @package _global_\nbatch: {size: 17}\n", encoding="utf-8")
    assert compose([], conf).batch.size == 17
