"""Runs in archives: they count as done, and nothing is written to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from finished_runs import finish

from nmt.archives import archive_directories
from nmt.config import RunConfig
from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.aggregate import aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting.report import sweep_record
from sweeps.reuse import PresentCode
from sweeps.spec import RowSpec, SweepSpec

OURS = PresentCode("a" * 12)


def spec(*overrides: str) -> SweepSpec:
    return SweepSpec(name="test", title="A test", rows=(RowSpec(label="A", overrides=overrides),), replicates=2)


def plan_of() -> SweepPlan:
    return make_plan(spec(), (), code=OURS)


def archived(config: RunConfig, folder: Path) -> str:
    """A finished run that lies in an archive only."""
    run_id = finish(config, 20.0)
    (folder / run_id).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(LocalRunStore(config.paths.runs).directory(run_id), folder / run_id)
    return run_id


def test_a_run_of_an_archive_counts_as_done(tmp_path: Path) -> None:
    first, second = plan_of().runs
    run_id = archived(first.config, tmp_path)
    plan = make_plan(spec(), (), code=OURS, archives=[tmp_path])
    assert [run.todo for run in plan.runs] == ["nothing", "train"]
    assert [item.run_ids for item in plan.work_items()] == [(second.run_id,)]
    (row,) = aggregate(plan)
    assert [one.directory for one in row.complete] == [tmp_path / run_id]
    assert row.metrics["bleu"].mean == 20.0
    assert "directory" not in json.dumps(sweep_record(plan, [row]))
    finish(first.config, 30.0)  # what is finished here comes before the archive
    (row,) = aggregate(make_plan(spec(), (), code=OURS, archives=[tmp_path]))
    assert row.metrics["bleu"].mean == 30.0


def test_an_archived_run_that_lacks_a_decoding_is_trained_beside_the_archive(tmp_path: Path) -> None:
    run_id = archived(plan_of().runs[0].config, tmp_path)
    plan = make_plan(spec("search.beam=3"), (), code=OURS, archives=[tmp_path])
    assert [run.todo for run in plan.runs] == ["train", "train"]
    plan.store.leave_archives([run_id])
    assert plan.store.status(run_id).state == "queued"
    assert plan.store.directory(run_id) == plan.store.root / run_id


def test_same_code_leaves_an_archive_alone(tmp_path: Path) -> None:
    archived(plan_of().runs[0].config, tmp_path)
    plan = make_plan(spec(), (), reuse="same_code", code=OURS, archives=[tmp_path])
    assert [(run.todo, run.set_aside) for run in plan.runs] == [("train", None), ("train", None)]


def test_folders_of_archives_are_named_in_one_word(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert archive_directories(f"{tmp_path}, {tmp_path / 'a'}") == [tmp_path, tmp_path / "a"]
    assert archive_directories("") == []
    with pytest.raises(UserError, match="no such directory"):
        archive_directories(str(tmp_path / "b"))
