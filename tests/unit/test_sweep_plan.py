"""Which runs a sweep consists of, who overrides whom, and what is still missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from finished_runs import decode, finish
from hypothesis import given
from hypothesis import strategies as st

from nmt.config import compose
from nmt.config.identity import run_id, train_id
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus
from sweeps.conditions import differences_from_published
from sweeps.plan import make_plan
from sweeps.rows import layered
from sweeps.spec import Published, RowSpec, SweepSpec

GROUPS = {"search", "model", "model/attention", "scale", "experiment"}


def sweep(*rows: RowSpec, **fields: object) -> SweepSpec:
    return SweepSpec(name="test", title="A test", rows=rows or (RowSpec(label="A"),), **fields)  # type: ignore[arg-type]


def test_each_layer_overrides_the_one_below() -> None:
    row = RowSpec(label="A", experiment="t5_add_512")
    key = "training.max_steps"

    def steps(spec: SweepSpec, *command_line: str) -> int:
        return make_plan(spec, command_line).config.training.max_steps

    assert steps(sweep(row), "scale=smoke") == 6
    assert steps(sweep(row, overrides=(f"{key}=11",)), "scale=smoke") == 11
    with_own = dataclasses.replace(row, overrides=(f"{key}=12",))
    assert steps(sweep(with_own, overrides=(f"{key}=11",))) == 12
    assert steps(sweep(with_own, overrides=(f"{key}=11",)), f"{key}=13") == 13
    assert make_plan(sweep(row), []).config.model.attention.name == "additive"  # the experiment
    assert make_plan(sweep(row), ["model/attention=multiplicative"]).config.model.attention.name == "multiplicative"


def test_a_higher_layers_group_beats_a_lower_layers_value() -> None:
    spec = sweep(overrides=("search.beam=3",))
    assert make_plan(spec, []).config.search.beam == 3
    assert make_plan(spec, ["search=beam5"]).config.search.beam == 5
    assert make_plan(spec, ["search=beam5", "search.beam=4"]).config.search.beam == 4


@given(st.lists(st.sampled_from(["search.beam=3", "model.attention.units=9", "seed=1", "scale=smoke"]), max_size=6))
def test_layering_keeps_what_no_higher_group_replaces(lower: list[str]) -> None:
    merged = layered([lower, ["search=beam5"]], GROUPS)
    assert merged == [*(word for word in lower if word != "search.beam=3"), "search=beam5"]
    assert layered([lower, ["scale=local"]], GROUPS) == [*lower, "scale=local"]
    assert layered([lower], GROUPS) == lower


def test_replicates_come_from_command_line_then_sweep_then_scale() -> None:
    assert len(make_plan(sweep(), []).runs) == 2  # conf/scale/local.yaml
    assert len(make_plan(sweep(), ["scale=smoke"]).runs) == 1
    assert len(make_plan(sweep(replicates=3), ["scale=smoke"]).runs) == 3
    assert len(make_plan(sweep(replicates=3), ["replicates=4"]).runs) == 4


def test_replicate_i_has_seed_plus_i_and_nothing_else_of_its_own() -> None:
    plan = make_plan(sweep(RowSpec(label="A"), RowSpec(label="L", experiment="t2_lstm"), replicates=3), ["seed=5"])
    baseline, lstm = (train_id(compose([f"experiment={name}"])) for name in ("baseline", "t2_lstm"))
    assert [run.run_id for run in plan.rows[0].runs] == [f"{baseline}/s5", f"{baseline}/s6", f"{baseline}/s7"]
    # First replicates of all rows come first.
    assert [run.run_id for run in plan.runs[:3]] == [f"{baseline}/s5", f"{lstm}/s5", f"{baseline}/s6"]
    assert plan.rows[1].config.label == "L"


def test_only_what_is_missing_is_to_do() -> None:
    spec = sweep(replicates=2)
    configs = [run.config for run in make_plan(spec, []).runs]
    assert [run.todo for run in make_plan(spec, []).runs] == ["train", "train"]
    finish(configs[0], 20.0)
    store = LocalRunStore(configs[0].paths.runs)
    store.set_status(run_id(configs[1]), RunStatus(state="running", step=3))  # and nobody holds its lock
    plan = make_plan(spec, [])
    assert [(run.todo, run.found.state) for run in plan.runs] == [("nothing", "finished"), ("resume", "interrupted")]
    assert [item.run_ids for item in plan.work_items()] == [(run_id(configs[1]),)]
    finish(configs[1], 21.0)
    assert make_plan(spec, []).work_items() == []
    assert [run.run_id for run in make_plan(spec, ["replicates=3"]).missing] == [f"{train_id(configs[0])}/s3"]


def test_another_search_decodes_and_does_not_train() -> None:
    (run,) = make_plan(sweep(replicates=1), []).runs
    finish(run.config, 20.0)
    (other,) = make_plan(sweep(replicates=1), ["search=greedy"]).runs
    assert (other.run_id, other.todo) == (run.run_id, "decode")
    decode(other.config, f"{run.run_id}-checkpoint", 19.0)
    assert make_plan(sweep(replicates=1), ["search=greedy"]).missing == []


def test_a_diverged_run_is_complete() -> None:
    spec = sweep(replicates=1)
    (run,) = make_plan(spec, []).runs
    finish(run.config, 1.4, state="diverged")
    assert make_plan(spec, []).missing == []


def test_two_rows_with_one_training_share_it() -> None:
    rows = (RowSpec(label="A"), RowSpec(label="again"), RowSpec(label="greedy", overrides=("search=greedy",)))
    plan = make_plan(sweep(*rows, replicates=1), [])
    assert [row.same_runs_as for row in plan.rows] == [None, "A", "A"]
    (item,) = plan.work_items()
    assert len(set(item.run_ids)) == 1
    assert [config["search"]["beam"] for config in item.configs] == [5, 1]  # trained once, decoded twice


def test_published_conditions_that_do_not_hold_are_listed() -> None:
    row = RowSpec(label="A", published=Published(mean=1.0))

    def differs(*words: str) -> tuple[str, ...]:
        return differences_from_published(row, compose(words), sweep(row), words)  # needs no corpus, and no plan

    assert differs("scale=published") == ()
    # Where, in how many replicates and under which name something runs is no condition.
    assert differs("scale=published", "seed=4", "executor=inline", "replicates=2", "distribution.link=tcp") == ()
    stand_in = (
        "distribution=single instead of asynchronous training by 8 workers and 6 parameter servers, "
        "128 sentences a push"
    )
    assert differs("scale=published", "distribution=single") == (stand_in,)
    assert differs("scale=published", "distribution.workers=4") == (
        "distribution=parameter_server (mode asp, workers 4, servers 6) instead of asynchronous training by 8 workers "
        "and 6 parameter servers, 128 sentences a push",
    )
    single = ("scale=published", "distribution=single")
    assert differs(*single, "data.max_length=9", "search.beam=3") == (
        "data.max_length 9 instead of 50",
        "search.beam 3 instead of 10",
        stand_in,
    )
    assert differs(*single, "data.test.source=[a.en, b.en]", "data.test.target=[a.de, b.de]") == (
        "test text a.en b.en instead of newstest2014.en",
        stand_in,
    )
    assert differs("batch.size=8")[:4] == (
        "scale=local (sizes divided by 4)",
        "data=toy_translation instead of wmt15_en_de",
        "tokenizer whitespace of 200 instead of bpe_merges of 37007",
        "batch.size 8 instead of 128",
    )
    assert make_plan(sweep(row), []).rows[0].differs == differs()
    assert make_plan(sweep(RowSpec(label="A")), []).rows[0].differs == ()


@pytest.mark.parametrize(
    ("rows", "words", "complaint"),
    [
        ((RowSpec(label="A", experiment="t2_lstn"),), [], "row 'A': experiment: unknown option 't2_lstn'"),
        ((RowSpec(label="A", overrides=("model.encoder.layers=0",)),), [], "row 'A': model.encoder.layers: 0 is out"),
        ((RowSpec(label="A"),), ["experiment=t2_lstm"], "'experiment=t2_lstm' would apply to every row"),
        ((RowSpec(label="A"),), ["trainin.max_steps=3"], "did you mean training.max_steps"),
        (
            (RowSpec(label="A"), RowSpec(label="B", overrides=("executor=inline",))),
            [],
            "executor: row 'B' wants other settings than row 'A'",
        ),
    ],
)
def test_a_row_that_does_not_compose_is_named(rows: tuple[RowSpec, ...], words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_plan(sweep(*rows), words)


def test_reports_lie_beside_the_runs_unless_told_otherwise(tmp_path: Path) -> None:
    assert make_plan(sweep(), []).reports == tmp_path / "runs" / "reports" / "test"
    assert make_plan(sweep(), [f"paths.reports={tmp_path}/r"]).reports == tmp_path / "r" / "test"
