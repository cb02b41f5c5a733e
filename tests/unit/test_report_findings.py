"""What a report is made of, from runs written by hand: curves and bands, samples, runs behind numbers, provenance."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from report_runs import OVERRIDES, REFERENCES, SOURCES, SPEC, TEST_TEXT, evaluations, whole, write_runs

from nmt.data.corpus import ParallelText
from nmt.errors import UserError
from sweeps.aggregate import aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting import findings as findings_module
from sweeps.reporting import samples as samples_module
from sweeps.reporting import table as table_module
from sweeps.reporting.curves import FEWEST, POINTS, make_curves
from sweeps.reporting.differences import Difference, differences, interval_names
from sweeps.reporting.document import to_document
from sweeps.reporting.findings import Findings, find
from sweeps.reporting.latex import to_latex
from sweeps.reporting.page import to_page
from sweeps.reporting.samples import choose_samples
from sweeps.results import LOG_PERPLEXITY
from sweeps.significance import significance
from sweeps.spec import RowSpec

BLEU = "val/decode/bleu"


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    """Composing takes most of a test's time, and is the same for all."""
    return make_plan(SPEC, [*OVERRIDES, f"paths.runs={tmp_path_factory.mktemp('runs') / 'here'}"])


@pytest.fixture
def plan(composed: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> SweepPlan:
    monkeypatch.setattr(samples_module, "load_test", lambda data: TEST_TEXT)
    write_runs(composed)
    return composed


@pytest.fixture
def findings(plan: SweepPlan) -> Findings:
    return find(plan, aggregate(plan))


def test_a_curve_is_the_mean_with_the_band_from_lowest_to_highest(findings: Findings) -> None:
    a, b = findings.curves[BLEU, "steps"]
    assert (a.label, b.label) == ("A", "B")
    assert (a.x, a.mean, a.low, a.high, a.n) == ((10, 20), (2.5, 7.5), (2, 5), (3, 10), (2, 2))
    assert findings.curves[BLEU, "tokens"][0].x == (1000, 2000)
    assert findings.curves[BLEU, "seconds"][0].x == (1.5, 3.0)  # the mean of both runs' seconds at those steps
    assert findings.curves[LOG_PERPLEXITY, "steps"][1].mean == (4.0, 3.0)


def test_replicates_that_end_earlier_leave_the_mean(plan: SweepPlan) -> None:
    first, second = plan.rows[0].runs
    evaluations(first.config, first.run_id, [(10, 1.0, 4.0), (20, 2.0, math.nan)])
    evaluations(second.config, second.run_id, [(10, 3.0, 2.0), (20, 4.0, 1.0), (30, 8.0, 0.5)])
    curves = make_curves(aggregate(plan), "bleu")
    curve = curves[BLEU, "steps"][0]
    assert (curve.x, curve.mean, curve.n) == ((10, 20, 30), (2.0, 3.0, 8.0), (2, 2, 1))
    assert curves[LOG_PERPLEXITY, "steps"][0].n == (2, 1, 1)  # NaN is no value


def test_replicates_that_the_clock_evaluated_are_read_between_their_own_evaluations(plan: SweepPlan) -> None:
    first, second = plan.rows[0].runs
    evaluations(first.config, first.run_id, [(10, 0.0, 1.0), (30, 20.0, 1.0)])
    evaluations(second.config, second.run_id, [(20, 30.0, 1.0), (40, 50.0, 1.0)])
    curve = make_curves(aggregate(plan), "bleu")[BLEU, "steps"][0]
    assert (curve.x, curve.mean, curve.n) == ((10, 20, 30, 40), (0.0, 20.0, 30.0, 50.0), (1, 2, 2, 1))


def test_seconds_of_different_timing_are_never_mixed(plan: SweepPlan) -> None:
    first, second = plan.rows[0].runs
    whole(first.config, 20.0, [(10, 1.0, 4.0)], timing="shared")
    whole(second.config, 20.0, [(10, 3.0, 4.0)], timing="exclusive")
    curves = make_curves(aggregate(plan), "bleu")
    assert curves[BLEU, "steps"][0].n == (2,)
    seconds = curves[BLEU, "seconds"][0]
    assert (seconds.timing, seconds.run_ids, seconds.x) == ("exclusive", (second.run_id,), (2.0,))


def test_a_picture_has_a_bounded_number_of_points(plan: SweepPlan) -> None:
    run = plan.rows[0].runs[0]
    evaluations(run.config, run.run_id, [(step, float(step), 1.0) for step in range(1, 61)])
    row = aggregate(plan)[0]
    many = make_curves([row] * 600, "bleu")[BLEU, "steps"]
    assert [len(curve.x) for curve in many] == [FEWEST] * 600
    assert many[0].x[0] == 1 and many[0].x[-1] == 60
    assert len(make_curves([row], "bleu")[BLEU, "steps"][0].x) <= POINTS


def test_differences_stand_beside_the_published_ones(plan: SweepPlan) -> None:
    results = aggregate(plan)
    a, c = differences(results, "B", significance(results, "B", "bleu"))
    assert (a.label, a.measured, a.published, a.runs) == ("A", -10.0, 0.5, (2, 2))
    assert a.interval is not None and a.interval[0] < -10 < a.interval[1]
    assert (c.label, c.measured, c.interval, c.published, c.runs) == ("C", None, None, None, (0, 2))
    assert differences(results, None, significance(results, None, "bleu")) == []


def test_intervals_say_whether_they_are_of_pairs() -> None:
    own = Difference(label="own", interval=(0.0, 1.0))
    pair = Difference(label="pair", interval=(0.0, 1.0), paired=True)
    none = Difference(label="none", paired=True)
    assert interval_names([own, none]) == "Welch"
    assert interval_names([pair, none]) == "pairs"
    assert interval_names([own, pair]) == "Welch, or pairs of one training"


def test_rows_that_decode_one_training_count_it_once(plan: SweepPlan) -> None:
    wide = dataclasses.replace(SPEC.rows[0], label="A wide", overrides=(*SPEC.rows[0].overrides, "search.beam=3"))
    spec = dataclasses.replace(SPEC, rows=(*SPEC.rows[:2], wide))
    other = make_plan(spec, [*OVERRIDES, f"paths.runs={plan.config.paths.runs}"])
    assert find(other, aggregate(other)).runs == (2, 4)  # A's trainings lack what the wide search would write


def test_samples_are_chosen_by_length_and_by_disagreement(findings: Findings) -> None:
    chosen = {sample.line: sample.why for sample in findings.samples.sentences}
    # In the order of length: one, f, g, "one two", "one two three", "a b c d", "a b c d e"; places 1, 3 and 5 of 7.
    assert chosen == {6: "1 words", 3: "2 words", 4: "4 words", 5: "rows disagree", 2: "rows disagree"}
    last = findings.samples.sentences[-1]
    assert (last.source, last.reference) == (SOURCES[1], REFERENCES[1])
    assert [(output.text, output.labels) for output in last.outputs] == [
        ("eins zwei", ("A",)),
        ("eins zwei drei", ("B",)),
    ]
    same = findings.samples.sentences[0].outputs
    assert [(output.text, output.labels) for output in same] == [("F", ("A", "B"))]


def test_samples_say_why_there_are_none(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(data: object) -> ParallelText:
        raise UserError("there is no directory", where="/somebody/else/corpus")

    monkeypatch.setattr(samples_module, "load_test", absent)
    found = choose_samples(plan, aggregate(plan))
    assert not found.sentences and "data.dir" in found.absent and "/somebody" not in found.absent
    monkeypatch.setattr(samples_module, "load_test", lambda data: ParallelText(SOURCES[1:], REFERENCES[1:]))
    assert "all 6 sentences" in choose_samples(plan, aggregate(plan)).absent


def test_another_system_is_a_row_and_no_run_of_ours(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = dataclasses.replace(
        aggregate(plan)[1], label="peer", imported="outputs of another toolkit", published=None
    )
    theirs = dataclasses.replace(
        theirs, replicates=tuple(dataclasses.replace(one, validation={}) for one in theirs.replicates)
    )
    for module in (findings_module, table_module):
        monkeypatch.setattr(module, "imported_rows", lambda plan: [theirs])
    found = find(plan, aggregate(plan))
    assert found.labels == ("A", "B", "C", "peer") and len(found.table.rows) == 4
    assert found.runs == (4, 6)
    assert [output.labels for output in found.samples.sentences[0].outputs] == [("A", "B", "peer")]
    assert "peer" in to_page(found)


def test_every_value_of_a_run_names_the_figures_that_it_went_into(plan: SweepPlan) -> None:
    run = plan.rows[0].runs[1]
    whole(run.config, 30.0, [(10, 1.0, 4.0)], timing="shared", tokens_per_second=1.0)
    listing = find(plan, aggregate(plan)).listing
    names = listing.columns
    first, second = (dict(zip(names, run.values, strict=True)) for run in listing.of("A").runs)
    assert first["run"].text == plan.rows[0].runs[0].run_id
    assert (first["checkpoint"].text, first["steps"].text) == ("80", "100")
    assert {"test bleu", "vs baseline", "max"} <= set(first["test"].columns)
    assert (first["tok/s"].text, first["tok/s"].columns) == ("2,000", ("tok/s",))
    assert (second["tok/s"].text, second["tok/s"].columns) == ("1", ())  # shared beside exclusive: in no figure
    waiting = listing.of("C").runs[0]
    assert not waiting.complete and not any(value.columns for value in waiting.values)


def test_provenance_counts_runs_and_keeps_places_and_passwords_out(plan: SweepPlan, findings: Findings) -> None:
    facts = {fact.name: fact.values for fact in findings.provenance.facts}
    assert [(text, len(runs)) for text, runs in facts["packages"]] == [("torch 2.13.0, numpy 2.4.6", 4)]
    assert facts["code"][0][0].startswith("abababababab, version 0.1.0")
    commands = [command for command, _ in findings.provenance.commands]
    assert commands[:2] == ["nmt sweep sweep=test batch.size=8", "nmt report sweep=test batch.size=8"]
    assert commands[2] == f"nmt rerun run={plan.rows[0].runs[0].run_id} verify=true"
    said = repr(findings.provenance)
    assert "secret" not in said and str(Path(plan.config.paths.runs)) not in said


def test_scores_that_are_no_numbers_are_reported_as_that(plan: SweepPlan) -> None:
    for row, bleu in zip(plan.rows, (math.nan, math.inf), strict=False):
        whole(row.runs[0].config, bleu, [(10, math.nan, math.inf)], state="diverged")
    found = find(plan, aggregate(plan))
    assert found.differences[0].mark == "?" and found.differences[0].interval is None
    for text in (to_page(found), to_document(found), to_latex(found.table, found.name)):
        assert "nan" in text


def test_figure_2_is_there_where_deep_decoders_come_with_and_without_residuals() -> None:
    rows = tuple(RowSpec(label=name, experiment=f"t3_{name}") for name in ("dec_2", "dec_8", "dec_8_res"))
    plan = make_plan(dataclasses.replace(SPEC, rows=rows, baseline=None), [])
    assert find(plan, aggregate(plan)).deep == ("dec_8", "dec_8_res")
    plan = dataclasses.replace(plan, rows=plan.rows[:2])
    assert find(plan, aggregate(plan)).deep == ()
