"""Search spaces: what files and words mean, what is drawn of a dimension, and the mistakes that are told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.errors import UserError
from sweeps.tuning.space import Asha, Choice, Range, SearchSpec, available_spaces, load_space

GOOD = """\
title: A space
experiment: t5_add_512
overrides: [scale=smoke]
space:
  optimizer.learning_rate: {from: 0.001, to: 0.1, scale: log}
  model.encoder.layers: {from: 1, to: 3}
  model.encoder.cell.dropout_input: {from: 0.0, to: 0.4, step: 0.1}
  model/attention: [additive, dot]
  tokenizer.joint: [true, false]
trials: 5
sampler: tpe
seed: 7
asha: {first_rung: 10, reduction: 2}
finalists: 2
replicates: 3
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    assert load_space(write(tmp_path, GOOD)) == SearchSpec(
        name="mine",
        title="A space",
        experiment="t5_add_512",
        overrides=("scale=smoke",),
        space={
            "optimizer.learning_rate": Range(low=0.001, high=0.1, log=True),
            "model.encoder.layers": Range(low=1, high=3, step=1.0, whole=True),
            "model.encoder.cell.dropout_input": Range(low=0.0, high=0.4, step=0.1),
            "model/attention": Choice(values=("additive", "dot")),
            "tokenizer.joint": Choice(values=("true", "false")),
        },
        trials=5,
        sampler="tpe",
        seed=7,
        asha=Asha(first_rung=10, reduction=2),
        finalists=2,
        replicates=3,
    )


def test_words_mean_the_same_as_a_file() -> None:
    text = "optimizer.learning_rate=log:1e-3..0.1;model.encoder.layers=1..3;model/attention=additive,dot;batch.size=8"
    assert load_space(text).space == {
        "optimizer.learning_rate": Range(low=0.001, high=0.1, log=True),
        "model.encoder.layers": Range(low=1, high=3, step=1.0, whole=True),
        "model/attention": Choice(values=("additive", "dot")),
        "batch.size": Choice(values=("8",)),
    }
    assert load_space("batch.size=log:8..64").space["batch.size"] == Range(low=8, high=64, log=True, whole=True)


def test_every_checked_in_space_reads() -> None:
    assert "rate_and_dropout" in available_spaces()
    for name in available_spaces():
        assert load_space(name).name == name


@given(st.floats(0, 1, exclude_max=True))
def test_a_drawn_number_lies_in_its_range(position: float) -> None:
    assert 0.001 <= float(Range(low=0.001, high=0.1, log=True).at(position)) <= 0.1
    assert Range(low=1, high=3, step=1.0, whole=True).at(position) in ("1", "2", "3")
    assert Range(low=0.0, high=0.4, step=0.1).at(position) in ("0", "0.1", "0.2", "0.3", "0.4")
    assert 0.12345 <= float(Range(low=0.12345, high=0.12349).at(position)) <= 0.12349
    assert 8 <= int(Range(low=8, high=64, log=True, whole=True).at(position)) <= 64
    assert len(Range(low=0.001, high=0.1, log=True).at(position).lstrip("0.")) <= 3  # significant digits


def test_a_logarithmic_range_is_even_in_factors() -> None:
    dimension = Range(low=1e-4, high=1e-2, log=True)
    assert [dimension.at(position) for position in (0.0, 0.25, 0.5, 0.75)] == ["0.0001", "0.000316", "0.001", "0.00316"]
    assert Range(low=0.0, high=0.8).at(0.5) == "0.4"


def test_the_size_of_a_space_is_the_product_of_its_dimensions(tmp_path: Path) -> None:
    assert math.isinf(load_space(write(tmp_path, GOOD)).size)
    assert load_space("model.encoder.layers=1..3;batch.size=8,9").size == 6
    assert Range(low=0.0, high=0.4, step=0.1).all() == ["0", "0.1", "0.2", "0.3", "0.4"]
    assert Range(low=0.0, high=0.4).all() == []


def test_rungs_lie_below_the_budget() -> None:
    assert Asha(first_rung=10, reduction=3).rungs(100) == [10, 30, 90]
    assert Asha(first_rung=10, reduction=3).rungs(90) == [10, 30]
    assert Asha(first_rung=10, reduction=3).rungs(10) == []


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (edited("title: A space", "titel: x"), "unknown key 'titel'.*did you mean title"),
        (edited("t5_add_512", "t5_ad_512"), "experiment: unknown option 't5_ad_512'.*did you mean t5_add_512"),
        (edited("sampler: tpe", "sampler: tpa"), "sampler: unknown sampler 'tpa'; allowed: random, tpe"),
        (edited("trials: 5", "trials: 0"), "trials: '0' is no number of this kind; allowed: >= 1"),
        (edited("finalists: 2", "finalists: -1"), "finalists: '-1' is no number"),
        (edited("replicates: 3", "replicates: 0"), "replicates: '0' is not a number of replicates"),
        (edited("first_rung: 10, ", ""), "asha.first_rung: is needed"),
        (edited("reduction: 2", "reduction: 1"), "asha.reduction: '1' is no number"),
        (edited("reduction: 2", "reductoin: 2"), "unknown key 'reductoin'.*did you mean reduction"),
        (edited("learning_rate: {from: 0.001", "learning_rat: {from: 0.001"), "unknown key.*did you mean"),
        (edited("from: 0.001, to: 0.1", "from: 0.1, to: 0.001"), "goes from 0.1 to 0.001"),
        (edited("from: 0.001", "from: 0"), "a logarithmic range cannot begin at 0"),
        (edited("from: 0.001", "from: 1e-3"), "'1e-3' is not a number; write from: 0.001"),
        (edited("from: 0.001, ", ""), "learning_rate.from: is needed"),
        (edited("scale: log", "scale: lag"), "scale: 'lag' is not a choice; allowed: linear, log"),
        (edited("step: 0.1", "step: -0.1"), "a step is above 0"),
        (edited("[additive, dot]", "[additive, dit]"), "unknown option 'dit'.*did you mean dot"),
        (edited("[additive, dot]", "additive"), "must be a list of values or a range"),
        (edited("model/attention: [additive, dot]", "seed: [1, 2]"), "seed: is what replicates differ in"),
        (edited("model/attention: [additive, dot]", "threads: [1, 2]"), "threads: is one for all rows"),
        ("title: x\n", "space: must be a mapping of config keys"),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_space(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rate_and_dropuot", "search_space: unknown search space 'rate_and_dropuot'.*did you mean rate_and_dropout"),
        ("batch.size=8..2", "search_space: batch.size: goes from 8 to 2"),
        ("batch.size=8..", "batch.size: is no range and no list of values; allowed: a,b,c, 1..8"),
        ("batch.size=1..8,9", "batch.size: is no range and no list of values"),
        ("batch.sise=1..8", "search_space: batch.sise: unknown key; did you mean batch.size"),
        ("batch.size=1..8;batch.size=1,2", "search_space: 'batch.size' stands there 2 times"),
    ],
)
def test_words_that_mean_no_space_are_told(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_space(text)
