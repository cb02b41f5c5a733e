"""Runs apart: the same training in two ways is two runs, and the same way in two sweeps is one."""

from __future__ import annotations

import pytest
from finished_runs import finish

from nmt.config import from_dict
from nmt.config.identity import run_id
from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.aggregate import aggregate
from sweeps.apart import own_id, store_of
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec

PS, RING = ("distribution=parameter_server",), ("distribution=ring_tmp", "distribution.nodes=2")


def plan_of(*rows: RowSpec, apart: bool = True, words: tuple[str, ...] = ("tracking=none",)) -> SweepPlan:
    return make_plan(SweepSpec(name="test", title="A test", rows=rows, replicates=2, apart=apart), words)


ROWS = (RowSpec(label="ps", overrides=PS), RowSpec(label="ring", overrides=RING))


def test_rows_with_the_same_bits_are_one_run_unless_they_are_apart() -> None:
    together, apart = plan_of(*ROWS, apart=False), plan_of(*ROWS)
    assert len({run.run_id for run in together.runs}) == 2
    assert len({run.run_id for run in apart.runs}) == 4
    assert {own_id(run.run_id) for run in apart.runs} == {run.run_id for run in together.runs}
    assert {run.train_id for run in apart.runs} == {together.rows[0].train_id}
    assert [row.same_runs_as for row in apart.rows] == [None, None]
    assert [store_of(run.run_id) for run in together.runs] == [""] * 4


def test_a_row_of_another_sweep_that_computes_it_alike_is_the_same_run() -> None:
    (other,) = plan_of(RowSpec(label="a ring", overrides=RING)).rows
    assert other.runs[0].run_id == plan_of(*ROWS).rows[1].runs[0].run_id
    for change in ("distribution.shadows=0", "faults=[kill@checkpoint:5]"):
        (changed,) = plan_of(RowSpec(label="ring", overrides=(*RING, change))).rows
        assert changed.runs[0].run_id != other.runs[0].run_id
        assert changed.train_id == other.train_id


def test_work_is_done_in_the_row_s_own_store_with_the_text_that_all_share() -> None:
    plan = plan_of(*ROWS)
    items = plan.work_items()
    assert [item.run_ids for item in items] == [(run.run_id,) for run in plan.runs]
    for item, run in zip(items, plan.runs, strict=True):
        config = from_dict(item.configs[0])
        directory = LocalRunStore(config.paths.runs).directory(run_id(config))
        assert directory == plan.store.directory(run.run_id)
        assert config.paths.cache
        assert config.seed == run.config.seed


def test_each_row_is_read_from_its_own_store() -> None:
    plan = plan_of(*ROWS)
    (of_ring,) = [item for item in plan.work_items() if item.run_ids[0] == plan.rows[1].runs[0].run_id]
    finish(from_dict(of_ring.configs[0]), 20.0)
    ps, ring = aggregate(plan)
    assert [len(ps.complete), len(ring.complete)] == [0, 1]


def test_a_tracker_that_knows_runs_by_their_ids_is_refused() -> None:
    with pytest.raises(UserError, match="cannot tell runs apart"):
        plan_of(*ROWS, words=("tracking=mlflow",))
