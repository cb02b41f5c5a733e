"""What a sweep will cost, from hand-written earlier runs: which of them count, and what is made of them."""

from __future__ import annotations

import io
import re
from collections import Counter

import pytest
from finished_runs import finish
from rich.console import Console

from nmt.config import RunConfig, compose
from nmt.config.identity import training_identity
from nmt.runs import LocalRunStore, RunStatus
from sweeps.cost import RowCost, estimate, pace_of, shape_of, side_by_side
from sweeps.dry_run import duration, show_plan
from sweeps.executors.placement import Placement
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec

HERE = "a processor"


def measured(
    config: RunConfig, speed: float, *, tokens: int = 100, device: str = HERE, timing: str = "exclusive"
) -> str:
    """A run that ended after 100 steps of 100 target tokens, at this many of them a second."""
    name = finish(config, 20.0, tokens_per_second=speed, target_tokens=10_000, timing=timing)
    store = LocalRunStore(config.paths.runs)
    store.write_json(name, "identity.json", training_identity(config))
    store.write_json(name, "env.json", {"device": {"type": "cpu", "name": device}, "threads": 1})
    return name


def plan_of(*overrides: str, rows: int = 1, replicates: int = 1) -> SweepPlan:
    specs = tuple(
        RowSpec(label=f"R{number}", overrides=(f"training.max_steps={1000 + number}",)) for number in range(rows)
    )
    spec = SweepSpec(name="test", title="A test", rows=specs, replicates=replicates)
    return make_plan(spec, ["executor.workers=1", "threads=1", *overrides])


def only_row(plan: SweepPlan) -> RowCost:
    (row,) = estimate(plan, HERE).rows
    return row


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.learning_rate=0.5"],
        ["seed=9", "replicates=3", "paths.runs=elsewhere", "label=x"],
        ["training.max_steps=7", "validation.every_steps=3", "schedule=warmup", "schedule.warmup_steps=4"],
        ["model.encoder.cell.dropout_input=0.4", "model.initialisation.scale=0.2", "search=greedy"],
    ],
)
def test_what_changes_no_product_leaves_the_shape(words: list[str]) -> None:
    assert shape_of(training_identity(compose(words))) == shape_of(training_identity(compose([])))


@pytest.mark.parametrize(
    "word",
    [
        "model.attention.units=9",
        "model/attention=additive",
        "model.encoder.cell.dropout_input=0.0",
        "batch.size=8",
        "training.precision=bf16",
        "optimizer=sgd",
        "data=toy_copy",
        "data.max_length=9",
        "tokenizer.vocab_size=99",
    ],
)
def test_what_changes_a_product_changes_the_shape(word: str) -> None:
    assert shape_of(training_identity(compose([word]))) != shape_of(training_identity(compose([])))


def test_an_estimate_is_steps_times_what_was_measured() -> None:
    for seed, speed in ((1, 900.0), (2, 1000.0), (3, 1100.0)):
        measured(compose([f"seed={seed}"]), speed)
    plan = plan_of(replicates=2)
    row = only_row(plan)
    assert (row.runs, row.steps, row.tokens) == (2, 2000, 200_000.0)
    assert row.seconds == pytest.approx(200.0)
    assert row.spread == pytest.approx(20.0)  # sd of the speeds is a tenth of their mean
    assert row.pace is not None
    assert row.pace.tokens_per_second.n == 3
    assert estimate(plan, HERE).wall_seconds == pytest.approx(200.0)


def test_without_a_run_of_like_shape_on_this_device_nothing_is_known() -> None:
    measured(compose(["batch.size=7"]), 1000.0)
    measured(compose(["seed=1"]), 1000.0, device="another processor")
    plan = plan_of()
    row = only_row(plan)
    assert (row.pace, row.tokens, row.seconds, row.spread) == (None, None, None, None)
    assert estimate(plan, HERE).wall_seconds is None
    measured(compose(["seed=1"]), 1000.0)
    assert only_row(plan).spread is None  # one run has no spread
    assert only_row(plan).seconds == pytest.approx(100.0)


def test_a_resumed_run_costs_what_is_left_and_a_shared_one_counts_once() -> None:
    measured(compose(["seed=50"]), 1000.0)
    plan = plan_of()
    plan.store.set_status(plan.runs[0].run_id, RunStatus(state="interrupted", step=400, max_steps=1000))
    assert only_row(plan_of()).steps == 600
    finish(plan.runs[0].config, 20.0)
    done = only_row(plan_of())
    assert (done.runs, done.steps, done.seconds) == (0, 0, 0)
    twice = SweepSpec(name="test", title="T", rows=(RowSpec(label="A"), RowSpec(label="B")), replicates=1)
    assert [row.runs for row in estimate(make_plan(twice, ["seed=7"]), HERE).rows] == [1, 0]


def test_measurements_that_were_placed_alike_come_first() -> None:
    measured(compose(["seed=1"]), 100.0, timing="shared")
    assert only_row(plan_of()).pace is not None
    pace = only_row(plan_of()).pace
    assert pace is not None
    assert pace.note == "measured shared on 1 threads, and will run exclusive on 1"
    measured(compose(["seed=2"]), 1000.0)
    pace = only_row(plan_of()).pace
    assert pace is not None
    assert (pace.note, pace.tokens_per_second.mean) == ("", 1000.0)
    assert pace_of([], Placement(1, 1)) is None


def test_time_side_by_side_is_that_of_the_busiest_worker() -> None:
    assert side_by_side([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert side_by_side([1.0, 1.0, 1.0, 3.0], 2) == 4.0  # in order: nobody sorts runs by length
    assert side_by_side([5.0], 8) == 5.0
    assert side_by_side([], 1) == 0.0
    assert side_by_side([1.0, None], 2) is None


def test_only_runs_of_like_shape_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1, 6):
        measured(compose(["batch.size=7", f"seed={seed}"]), 1.0)
    measured(compose(["seed=1"]), 1000.0)
    plan, calls = plan_of(), Counter[str]()
    read = LocalRunStore.read_json

    def counting(self: LocalRunStore, name: str, file: str) -> object:
        calls[file] += 1
        return read(self, name, file)

    monkeypatch.setattr(LocalRunStore, "read_json", counting)
    estimate(plan, HERE)
    assert calls == {"identity.json": 2, "result.json": 1, "env.json": 1}


def shown(plan: SweepPlan) -> str:
    out = io.StringIO()
    show_plan(plan, Console(file=out, width=240))
    return out.getvalue()


def test_the_dry_run_says_what_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.cost.device_name", lambda device: HERE)
    before = shown(plan_of(rows=2, replicates=2))
    assert "total: 4 runs, 4,002 steps; tokens and time unknown: no run of like shape has ended here" in before
    assert before.count("unknown") == 2 * 3 + 1
    for seed in (50, 51):
        measured(compose([f"seed={seed}"]), 1000.0 + seed)
    out = shown(plan_of(rows=2, replicates=2))
    assert re.search(r"1,050 ± 1 │ 2 runs │ +3 min ± 0 s", out), out
    total = "total: 4 runs, 4,002 steps, 400,200 tokens: 6 min ± 0 s of training, 6 min with 1 at a time"
    assert f"{total}; evaluations and decoding come on top" in out


def test_a_long_plan_lists_its_first_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.dry_run.MAX_RUNS", 3)
    calls: Counter[str] = Counter()

    def count(config: RunConfig) -> int:
        calls["built"] += 1
        return 7

    monkeypatch.setattr("nmt.models.parameters.planned_parameters", count)
    out = shown(plan_of(rows=2, replicates=4))
    assert "… and 5 more runs" in out
    assert out.count(" queued ") == 3
    # A model of the rows' size, and one at published size: rows that differ in their budget share both.
    assert calls["built"] == 2


def test_durations_are_in_the_largest_unit_that_leaves_two() -> None:
    times = [0.4, 119, 120, 7199, 7200, 172799, 172800]
    assert [duration(seconds) for seconds in times] == ["0 s", "119 s", "2 min", "120 min", "2.0 h", "48.0 h", "2.0 d"]
