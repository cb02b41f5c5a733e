"""Sweeps made of words: the rows of a grid, their labels, and the YAML that runs them again."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.config import compose
from nmt.config.identity import run_id
from nmt.errors import UserError
from sweeps.ad_hoc import Factor, ad_hoc_spec, read_factors, row_label, short_name
from sweeps.plan import make_plan
from sweeps.saved import place_of, save_spec
from sweeps.spec import load_spec

UNITS = "model.attention.units=128,256"
WORDS = ["experiment=baseline"]


def test_rows_are_the_product_of_the_factors_the_last_one_fastest() -> None:
    spec, _ = ad_hoc_spec([UNITS, "optimizer.learning_rate=1e-3,1e-4;batch.size=8"], [*WORDS, "scale=smoke"])
    assert [row.overrides for row in spec.rows] == [
        (f"model.attention.units={units}", f"optimizer.learning_rate={rate}", "batch.size=8")
        for units, rate in itertools.product((128, 256), ("1e-3", "1e-4"))
    ]
    assert spec.rows[1].label == "attention.units=128, learning_rate=1e-4, size=8"
    assert {row.experiment for row in spec.rows} == {"baseline"}
    assert spec.overrides == ("scale=smoke",)


def test_a_label_says_the_shortest_end_of_a_key_that_no_other_key_has() -> None:
    assert short_name("model.attention.units") == "attention.units"
    assert short_name("optimizer.learning_rate") == "learning_rate"
    assert short_name("search.beam") == "search.beam"  # validation.search.beam ends so too
    assert short_name("validation.search.beam") == "validation.search.beam"  # and this end is another key
    assert short_name("model/attention") == "attention"
    assert row_label([("experiment", "t2_lstm"), ("training.max_steps", "9")]) == "t2_lstm, max_steps=9"


def test_groups_and_experiments_are_factors_too() -> None:
    spec, _ = ad_hoc_spec(["experiment=t2_lstm,t5_add_512", "search=greedy,beam5"], ["scale=smoke"])
    plan = make_plan(spec, [])
    assert [(row.config.model.encoder.cell.kind, row.config.search.beam) for row in plan.rows] == [
        ("lstm", 1),
        ("lstm", 5),
        ("gru", 1),
        ("gru", 5),
    ]
    assert plan.rows[1].same_runs_as == plan.rows[0].label  # decoded twice, trained once


def test_a_row_beats_what_goes_for_all_rows() -> None:
    spec, _ = ad_hoc_spec(["search.beam=2,3"], [*WORDS, "search=beam10"])
    assert [row.config.search.beam for row in make_plan(spec, []).rows] == [2, 3]


@given(st.lists(st.sampled_from(["7", "[1,2]", "'a,b'", "{a: 1, b: [2]}", '"x;y"']), min_size=1, max_size=4))
def test_commas_inside_brackets_and_quotes_separate_nothing(values: list[str]) -> None:
    text = f"data.options.x={','.join(values)};batch.size=8"
    assert read_factors([text]) == (Factor("data.options.x", tuple(values)), Factor("batch.size", ("8",)))


@pytest.mark.parametrize(
    ("grid", "words", "complaint"),
    [
        (["model.attention.units"], WORDS, "grid: 'model.attention.units' gives no values; write grid="),
        (["=1,2"], WORDS, "grid: '=1,2' names no key"),
        ([f"{UNITS};"], WORDS, "grid: '' names no key"),
        (["model.atention.units=1"], WORDS, "grid: model.atention.units: unknown key; did you mean model.attention.u"),
        (["+foo=1"], WORDS, "grid: \\+foo=1: '\\+' adds or removes keys"),
        (["model.attention=1"], WORDS, "grid: model.attention: is no key of a single value"),
        (["model/attention=dot,dit"], WORDS, "grid: model/attention: unknown option 'dit'.*did you mean dot"),
        (["label=a,b"], WORDS, "grid: label: is no key of a single value"),
        (["seed=1,2"], WORDS, "grid: seed: is what replicates differ in; replicates=4"),
        (["executor.workers=1,2"], WORDS, "grid: executor.workers: is one for all rows"),
        (["sweep=quickstart"], WORDS, "grid: sweep: is one for all rows"),
        (["batch.size="], WORDS, "grid: batch.size: has no values"),
        (["batch.size=8,,9"], WORDS, "grid: batch.size: has an empty value"),
        (["batch.size=[8,9"], WORDS, "without its other half"),
        (["batch.size=8)"], WORDS, "without its other half"),
        ([UNITS, UNITS], WORDS, "grid: 'model.attention.units' stands there 2 times"),
        (["batch.size=8,9,8"], WORDS, "grid: 2 rows are labelled 'size=8'"),
        ([UNITS], [], "experiment: is needed with a grid; allowed: baseline, "),
        ([UNITS], ["experiment=basline"], "experiment: unknown option 'basline'.*did you mean baseline"),
        ([UNITS], [*WORDS, "model.attention.units=9"], "'model.attention.units=9' stands beside a factor of the same"),
        (["experiment=t2_lstm"], WORDS, "'experiment=baseline' stands beside a factor"),
        ([UNITS], [*WORDS, "replicates=0"], "replicates: '0' is not a number of replicates; allowed: >= 1"),
        ([UNITS], [*WORDS, "replicates=two"], "replicates: 'two' is not a number of replicates"),
    ],
)
def test_a_grid_that_means_nothing_is_told_in_one_line(grid: list[str], words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ad_hoc_spec(grid, words)


def test_a_value_that_does_not_fit_names_its_row() -> None:
    spec, here = ad_hoc_spec(["batch.size=8,many"], WORDS)
    with pytest.raises(UserError, match=r"row 'size=many': batch.size=many: Value 'many' of type 'str' could not be"):
        make_plan(spec, here)


def test_a_saved_sweep_is_the_same_sweep(tmp_path: Path) -> None:
    where = ["executor=inline", f"paths.runs={tmp_path}/r", "device=cpu"]
    words = [*WORDS, "replicates=3", "scale=smoke", "seed=5", *where]
    path = tmp_path / "mine.yaml"
    spec, here = ad_hoc_spec([UNITS], words, path.stem)
    assert here == where
    assert save_spec(path, spec, ["experiment=baseline", f"grid={UNITS}"])
    again = load_spec(str(path))
    assert again == spec
    planned, saved = make_plan(spec, here), make_plan(again, where)
    assert [run.run_id for run in planned.runs] == [run.run_id for run in saved.runs]
    by_hand = compose(["experiment=baseline", "scale=smoke", "seed=7", "model.attention.units=256"])
    assert planned.rows[1].runs[2].run_id == run_id(by_hand)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        "# nmt sweep sweep=mine.yaml\n# Made by: nmt sweep experiment=baseline grid=model.attention.units=128,256\n"
    )
    assert str(tmp_path) not in text  # where it ran is no part of the sweep


def test_saving_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    spec, _ = ad_hoc_spec([UNITS], WORDS, "mine")
    assert save_spec(path, spec, [])
    assert not save_spec(path, spec, [])  # the same again is fine
    before = path.read_text(encoding="utf-8")
    other, _ = ad_hoc_spec(["batch.size=8"], WORDS, "mine")
    with pytest.raises(UserError, match="exists and says something else; choose another name"):
        save_spec(path, other, [])
    assert path.read_text(encoding="utf-8") == before


def test_a_name_means_a_file_of_conf_and_a_path_means_itself(tmp_path: Path) -> None:
    assert place_of("mine", tmp_path) == tmp_path / "sweep" / "mine.yaml"
    assert place_of("some/where.yaml") == Path("some/where.yaml")
    for name in ("../mine", "a/b", "-x", ""):
        with pytest.raises(UserError, match="is no name of a sweep"):
            place_of(name, tmp_path)
