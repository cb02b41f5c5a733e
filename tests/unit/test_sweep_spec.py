"""A sweep's YAML is read strictly: every mistake names its place and the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.errors import UserError
from sweeps.spec import Published, RowSpec, SweepSpec, SystemSpec, available_sweeps, load_spec

GOOD = """\
title: Two rows
replicates: 3
baseline: B
published_source: a paper
overrides: [data=toy_translation]
test: newstest2013
rows:
  - {label: A, experiment: t2_lstm, overrides: [training.max_steps=7], published: {mean: 22.22, std: 0.08}}
  - {label: B}
  - {label: C, test: newstest2014, published: {params_M: 75.77, params_note: a misprint}}
systems:
  - {label: GNMT, published: {newstest2014: 24.61}, source: Wu et al. 2016}
  - {label: X, published: {newstest2015: 16}, source: a paper, unconfirmed: hearsay}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, GOOD)) == SweepSpec(
        name="mine",
        title="Two rows",
        replicates=3,
        baseline="B",
        published_source="a paper",
        overrides=("data=toy_translation",),
        rows=(
            RowSpec(
                label="A",
                experiment="t2_lstm",
                overrides=("training.max_steps=7",),
                test="newstest2013",
                published=Published(mean=22.22, std=0.08),
            ),
            RowSpec(label="B", experiment="baseline", test="newstest2013"),
            RowSpec(label="C", test="newstest2014", published=Published(params_M=75.77, params_note="a misprint")),
        ),
        systems=(
            SystemSpec(label="GNMT", published={"newstest2014": 24.61}, source="Wu et al. 2016"),
            SystemSpec(label="X", published={"newstest2015": 16.0}, source="a paper", unconfirmed="hearsay"),
        ),
    )


@pytest.mark.parametrize(
    ("wrong", "right", "complaint"),
    [
        ("replicate: 3", "replicates: 3", "unknown key 'replicate'.*did you mean replicates"),
        ("replicates: 0", "replicates: 3", "replicates: '0' is not a number of replicates; allowed: >= 1"),
        ("replicates: many", "replicates: 3", "'many' is not a number of replicates; allowed: >= 1"),
        ("replicates: until sd<1 max=9", "replicates: 3", "replicates: unknown 'sd'; allowed: ci, ci_difference"),
        ("replicates: yes", "replicates: 3", "'True' is not a number of replicates"),
        ("baseline: D", "baseline: B", "no row is labelled 'D'; allowed: A, B, C"),
        ("title: [a]", "title: Two rows", "title: must be text"),
        ("overrides: data=toy_copy", "overrides: [data=toy_translation]", "must be a list of key=value"),
        ("overrides: [experiment=t2_lstm]", "overrides: [data=toy_translation]", "would apply to every row"),
        ("{label: B, experimnt: x}", "{label: B}", r"rows\[1\]: unknown key 'experimnt'.*did you mean experiment"),
        ("{label: A}", "{label: B}", "2 rows are labelled 'A'"),
        ("{label: 128}", "{label: B}", r"rows\[1\].label: must be text; write label: '128'"),
        ("{experiment: t2_lstm}", "{label: B}", r"rows\[1\].label: must be text"),
        ("stdev: 0.08", "std: 0.08", r"rows\[0\].published: unknown key 'stdev'.*did you mean std"),
        ("mean: high", "mean: 22.22", "published.mean: 'high' is not a number"),
        ("params_note: 3", "params_note: a misprint", "published.params_note: must be text; write params_note: '3'"),
        ("test: [a]", "test: newstest2013", "test: must be text"),
        ("systems: GNMT\nrest:", "systems:", "unknown key 'rest'"),
        ("newstest2014: good", "newstest2014: 24.61", r"systems\[0\].published.newstest2014: 'good' is not a number"),
        ("published: 24.61", "published: {newstest2014: 24.61}", "must be a mapping of test sets to BLEU"),
        ("{published: {newstest2014: 24.61}", "{label: GNMT, published: {newstest2014: 24.61}", "label: must be text"),
        ("sourc: Wu", "source: Wu", r"systems\[0\]: unknown key 'sourc'.*did you mean source"),
        ("rows: []\ntitle2:", "rows:", "unknown key 'title2'"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, wrong: str, right: str, complaint: str) -> None:
    assert right in GOOD
    path = write(tmp_path, GOOD.replace(right, wrong, 1))
    with pytest.raises(UserError, match=complaint):
        load_spec(path)


def test_yaml_syntax_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml:3: YAML syntax"):
        load_spec(write(tmp_path, "title: a\nrows:\n\t- {}\n"))


def test_an_unknown_sweep_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown sweep 'quikstart'.*did you mean quickstart"):
        load_spec("quikstart")


def test_a_unique_beginning_names_a_sweep() -> None:
    assert load_spec("table6") == load_spec("table6_beam")
    with pytest.raises(UserError, match="'toy_' may mean toy_depth or toy_families or toy_reverse"):
        load_spec("toy_")


def test_every_checked_in_sweep_can_be_read_and_has_a_title() -> None:
    sweeps = available_sweeps()
    assert "quickstart" in sweeps
    for name, title in sweeps.items():
        assert load_spec(name).title == title != ""
