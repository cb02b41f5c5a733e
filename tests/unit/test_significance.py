"""Rows against the baseline: who is in the family, what is marked, and what the table says about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from scipy import stats

from sweeps.aggregate import RowResult
from sweeps.reporting.significance import p_value, significance_columns, significance_notes, significance_record
from sweeps.results import Replicate
from sweeps.significance import significance
from sweeps.statistics.families import holm

BASE = [30.1, 30.5, 29.8, 30.3]
WORSE = [20.4, 19.7, 20.1, 20.9]
ALIKE = [30.2, 29.9, 30.6, 30.0]
BETTER = [31.0, 31.4, 30.9, 31.2]


def row(
    label: str, scores: Sequence[float], train_id: str = "", decode: str = "beam5", sentences: int = 500
) -> RowResult:
    replicates = [
        Replicate(
            run_id=f"{train_id or label}/s{seed}",
            seed=seed,
            state="finished",
            complete=True,
            metrics={"bleu": score},
            decode_id=f"{train_id or label}{seed}{decode}",
            sentences=sentences,
        )
        for seed, score in enumerate(scores, 1)
    ]
    return RowResult(label=label, replicates=tuple(replicates), requested=len(scores), max_steps=100)


def test_marks_are_welch_with_holm_over_the_rows() -> None:
    rows = [row("base", BASE), row("worse", WORSE), row("alike", ALIKE), row("better", BETTER)]
    found = significance(rows, "base", "bleu").rows
    p = [stats.ttest_ind(scores, BASE, equal_var=False).pvalue for scores in (WORSE, ALIKE, BETTER)]
    assert [found[label].p_holm for label in ("worse", "alike", "better")] == pytest.approx(holm(p), rel=1e-9)
    assert {label: one.mark for label, one in found.items()} == {"worse": "*", "alike": "", "better": "*"}
    assert found["worse"].contrast.difference == pytest.approx(-9.9)
    assert found["worse"].contrast.p_exact == found["worse"].contrast.p_smallest == 2 / 70
    assert found["alike"].replicates_needed is None or found["alike"].replicates_needed > 100


def test_the_baselines_own_runs_are_no_row_to_test() -> None:
    twin = dataclasses.replace(row("base", BASE), label="twin")
    rows = [row("base", BASE), twin, row("worse", WORSE)]
    found = significance(rows, "base", "bleu")
    assert list(found.rows) == ["worse"]
    assert len(found.family) == 1
    again = dataclasses.replace(row("worse", WORSE), label="the same runs")
    found = significance([*rows, again, row("better", BETTER)], "base", "bleu")
    assert len(found.family) == 2  # rows that share their runs are one test
    assert found.rows["the same runs"] == found.rows["worse"]


def test_decodings_of_the_baselines_runs_are_paired_with_it() -> None:
    narrow = row("beam 1", [score - 0.5 + 0.01 * i for i, score in enumerate(BASE)], train_id="base", decode="beam1")
    found = significance([row("base", BASE), narrow], "base", "bleu")
    contrast = found.rows["beam 1"].contrast
    assert contrast.paired
    assert contrast.p_welch == pytest.approx(
        stats.ttest_rel([one.metrics["bleu"] for one in narrow.replicates], BASE)[1]
    )
    assert contrast.p_welch is not None and contrast.p_welch < 1e-4  # unpaired: 0.07
    assert contrast.p_exact == contrast.p_smallest == 2 / 16
    assert found.rows["beam 1"].replicates_needed == 2
    shorter = dataclasses.replace(narrow, replicates=narrow.replicates[1:])
    assert significance([row("base", BASE), shorter], "base", "bleu").rows["beam 1"].contrast.n_a == 3
    assert any("are paired with it" in note for note in significance_notes(found))


def test_what_cannot_be_tested_is_in_no_family() -> None:
    rows = [row("base", BASE), row("single", [25.0]), row("broken", [30.0, math.nan, 1.0]), row("worse", WORSE)]
    rows.append(dataclasses.replace(row("nothing", []), requested=4))
    rows.append(row("other text", WORSE, sentences=100))
    found = significance(rows, "base", "bleu")
    assert list(found.rows) == ["single", "broken", "worse"]
    assert len(found.family) == 1
    assert (found.rows["single"].p_holm, found.rows["single"].mark) == (None, "")
    assert (found.rows["broken"].p_holm, found.rows["broken"].mark) == (None, "?")
    assert found.rows["broken"].replicates_needed is None
    assert found.rows["worse"].p_holm == found.rows["worse"].contrast.p_welch
    cells = {name: column for name, _, column in significance_columns(rows, found)}
    assert cells["vs baseline"] == ["–", "−5.18", "+nan ?", "−9.90 *", "–", "–"]
    assert cells["p exact"] == ["–", "0.400", "–", "0.029", "–", "–"]
    assert any(note.startswith("?: a score is not finite") for note in significance_notes(found))


@pytest.mark.parametrize("baseline", [None, "absent", "empty"])
def test_without_a_baseline_nothing_is_compared(baseline: str | None) -> None:
    found = significance([row("empty", []), row("worse", WORSE)], baseline, "bleu")
    assert (found.rows, found.family, found.variances) == ({}, (), None)
    assert significance_notes(found) == []
    assert (
        significance([row("base", BASE), row("worse", WORSE)], "base", "ter").rows == {}
    )  # a metric that no replicate has


def test_dunnett_stands_only_where_variances_may_be_pooled() -> None:
    alike = significance([row("base", BASE), row("worse", WORSE), row("alike", ALIKE)], "base", "bleu")
    theirs = stats.dunnett(WORSE, ALIKE, control=BASE, rng=1).pvalue
    assert [one.p_dunnett for one in alike.rows.values()] == pytest.approx(list(theirs), abs=2e-3)
    (note,) = (note for note in significance_notes(alike) if note.startswith("variances"))
    assert "over 3 rows p = " in note and "pooled; Dunnett's test at 0.05 over 2 rows marks worse" in note
    wild = significance([row("base", BASE), row("wild", [10.0, 50.0, 20.0, 40.0])], "base", "bleu")
    assert wild.rows["wild"].p_dunnett is None
    assert any("not pooled (p < 0.1), so no Dunnett's test" in note for note in significance_notes(wild))


def test_the_table_says_what_marks_and_p_values_mean() -> None:
    found = significance([row("base", BASE), row("worse", WORSE), row("alike", ALIKE)], "base", "bleu")
    notes = "\n".join(significance_notes(found))
    assert "vs baseline: mean of the row minus that of base, over these configurations' replicates" in notes
    assert (
        "*: p Holm at most 0.05: Welch's t test, two-sided, corrected by Holm over 2 rows; were all rows alike, "
        in notes
    )
    assert "of such tables had a mark (simulated)" in notes
    assert "the smallest it can be is 4 v 4: 2/70 = 0.029" in notes
    assert "needed: replicates a side for a power of 0.8 at 0.05" in notes
    record = significance_record(found.rows["worse"])
    assert record["difference"] == pytest.approx(-9.9)
    assert record["p_exact_smallest"] == 2 / 70
    assert record["replicates_needed"] == 2
    assert set(significance_record(None).values()) == {None}
    assert list(significance_record(None)) == list(record)


def test_p_values_are_printed_so_that_zero_is_never_claimed() -> None:
    assert [p_value(p) for p in (None, 0.0, 0.00049, 0.0005, 0.02857, 1.0)] == [
        "–", "< 0.001", "< 0.001", "0.001", "0.029", "1.000"
    ]  # fmt: skip
