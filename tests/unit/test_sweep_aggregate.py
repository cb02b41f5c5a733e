"""Rows from replicates, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finished_runs import decode, finish
from hypothesis import given
from hypothesis import strategies as st

from nmt.runs import LocalRunStore, RunStatus
from sweeps.aggregate import Statistics, aggregate, describe
from sweeps.plan import make_plan
from sweeps.spec import RowSpec, SweepSpec


def spec(replicates: int) -> SweepSpec:
    return SweepSpec(name="test", title="A test", rows=(RowSpec(label="A"),), replicates=replicates)


def test_statistics_by_hand() -> None:
    # 1, 2, 4, 9: mean 16/4; squared deviations 9 + 4 + 0 + 25 = 38, over 3.
    expected = Statistics(n=4, mean=4.0, sd=math.sqrt(38 / 3), median=3.0, min=1.0, max=9.0)
    assert describe([9, 1, None, 4, 2]) == expected
    assert describe([7.5]) == Statistics(n=1, mean=7.5, sd=None, median=7.5, min=7.5, max=7.5)
    assert describe([None]) is None


def test_what_is_not_finite_is_said_and_not_left_out() -> None:
    with_nan, with_infinity = describe([1.0, math.nan, 2.0]), describe([1.0, math.inf, 2.0])
    assert with_nan is not None
    assert with_infinity is not None
    assert (with_nan.n, with_infinity.n) == (3, 3)
    assert all(math.isnan(value) for value in (with_nan.mean, with_nan.sd, with_nan.min, with_nan.max))  # type: ignore[arg-type]
    assert (with_infinity.mean, with_infinity.max, with_infinity.median) == (math.inf, math.inf, 2.0)
    assert math.isnan(with_infinity.sd)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9))
def test_statistics_agree_with_numpy_in_any_order(values: list[float]) -> None:
    described = describe(reversed(values))
    assert described is not None
    assert described.mean == pytest.approx(np.mean(values))
    assert described.sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert (described.min, described.median, described.max) == (min(values), np.median(values), max(values))


def test_a_row_sums_up_its_complete_replicates() -> None:
    plan = make_plan(spec(4), [])
    first, second, third, fourth = (run.config for run in plan.runs)
    finish(first, 20.0)
    finish(second, 26.0, convergence={"steps": 100, "target_tokens": 10_000, "seconds": 6.0})
    finish(third, 2.0, state="diverged", reason="loss nan at step 9")
    LocalRunStore(fourth.paths.runs).set_status(plan.runs[3].run_id, RunStatus(state="failed", error="no memory"))
    (row,) = aggregate(plan)
    assert row.metrics["bleu"] == describe([20.0, 26.0, 2.0])
    assert row.metrics["bleu"].mean == 16.0
    assert row.metrics["chrf"].mean == 26.0
    assert (len(row.complete), row.missing, row.diverged, row.requested) == (3, 1, 1, 4)
    assert row.log_perplexity == describe([1.5, 1.5, 1.5])
    assert row.convergence_steps == describe([80, 100, 80])
    assert row.convergence_tokens == describe([8000, 10_000, 8000])
    assert row.parameters == 1_230_000
    assert row.best_run("bleu") is row.replicates[1]
    assert row.replicates[3].error == "no memory"


def test_an_error_rate_is_best_where_it_is_lowest() -> None:
    plan = make_plan(spec(3), ["validation.metric=ter"])
    for run, ter in zip(plan.runs, (60.0, 40.0, 40.0), strict=True):
        best = {"step": 80, "checkpoint_digest": f"{run.run_id}-checkpoint", "metrics": {"val/decode/ter": ter}}
        finish(run.config, None, best=best)
        decode(run.config, f"{run.run_id}-checkpoint", 20.0, {"test/decode/ter": ter})
    (row,) = aggregate(plan)
    assert row.best_run("ter") is row.replicates[1]
    assert row.metrics["ter"].min == 40.0


def test_records_from_before_a_metric_existed_stand_beside_newer_ones() -> None:
    plan = make_plan(spec(2), [])
    finish(plan.runs[0].config, 20.0)
    name = finish(plan.runs[1].config, None)
    newer = {"test/decode/rouge1": 33.0, "test/teacher_forced/token_accuracy": 60.0, "test/other/unheard_of": 1.0}
    decode(plan.runs[1].config, f"{name}-checkpoint", 30.0, newer)
    (row,) = aggregate(plan)
    assert row.missing == 0
    assert row.metrics["bleu"] == describe([20.0, 30.0])
    assert row.metrics["rouge1"] == describe([33.0])
    assert row.metrics["token_accuracy"] == describe([60.0])
    assert set(row.metrics) == {"bleu", "chrf", "rouge1", "token_accuracy"}


def test_times_of_shared_and_exclusive_runs_are_never_mixed() -> None:
    plan = make_plan(spec(3), [])
    for run, timing, speed in zip(plan.runs, ("shared", "exclusive", "shared"), (100.0, 900.0, 300.0), strict=True):
        finish(run.config, 20.0, timing=timing, tokens_per_second=speed)
    (row,) = aggregate(plan)
    assert row.timing == "exclusive"
    assert row.tokens_per_second == {"exclusive": describe([900.0]), "shared": describe([100.0, 300.0])}
    assert row.convergence_seconds == {"exclusive": describe([4.0]), "shared": describe([4.0, 4.0])}


@pytest.mark.parametrize(("reason", "best", "improving"), [("budget", 100, 1), ("budget", 80, 0), ("patience", 100, 0)])
def test_a_budget_that_ended_too_early_is_noticed(reason: str, best: int, improving: int) -> None:
    plan = make_plan(spec(1), [])
    ended = {"step": best, "checkpoint_digest": "x", "metrics": {}}
    finish(plan.runs[0].config, None, reason=reason, best=ended)
    decode(plan.runs[0].config, "x", 20.0)
    assert aggregate(plan)[0].still_improving == improving


def test_a_row_without_results_has_no_numbers() -> None:
    (row,) = aggregate(make_plan(spec(2), []))
    assert (row.metrics, row.missing, row.timing, row.best_run("bleu")) == ({}, 2, "", None)
