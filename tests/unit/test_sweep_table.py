"""The table on screen, as Markdown and as CSV, and the report on disk, from runs written by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from finished_runs import decode, finish
from rich.console import Console

from nmt.errors import UserError
from sweeps.aggregate import aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting.columns import COLUMNS, DROPPED, SHOWN, statistics_cell
from sweeps.reporting.full_table import to_csv
from sweeps.reporting.listing import list_runs
from sweeps.reporting.report import write_report
from sweeps.reporting.table import fitted, make_table, to_markdown, to_screen
from sweeps.spec import Published, RowSpec, SweepSpec, SystemSpec
from sweeps.wording import NOTHING

SPEC = SweepSpec(
    name="test",
    title="A | B",
    replicates=2,
    baseline="B",
    published_source="a paper, table 2",
    rows=(
        RowSpec(label="A|x", experiment="t2_lstm", published=Published(mean=22.22, std=0.08, max=22.33)),
        RowSpec(label="B"),
    ),
)


@pytest.fixture
def plan() -> SweepPlan:
    plan = make_plan(SPEC, ["batch.size=8"])
    for run, bleu in zip(plan.rows[0].runs, (20.0, 21.0), strict=True):
        finish(run.config, bleu, timing="shared")
    finish(plan.rows[1].runs[0].config, 30.0)
    return plan


def test_cells_say_mean_sd_and_max(plan: SweepPlan) -> None:
    results = aggregate(plan)
    table = make_table(plan, results)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[0] == {
        "row": "A|x",
        "test bleu": "20.50 ± 0.71 (21.00)",
        "vs baseline": "−9.50",  # one replicate of the baseline: a difference, and no test of it but the exact one
        "p exact": "0.667",
        "published": "22.22 ± 0.08 (22.33)",
        "n": "2",
        "params M": "1.23",
        "log-ppl": "1.500",
        "tok/s": "2,000",
        "conv. s": "4",
        "best": "s2 @ 80",
        "marks": "a",
    }
    assert (rows[1]["row"], rows[1]["test bleu"], rows[1]["published"]) == ("B (baseline)", "30.00", "–")
    legend = "\n".join(table.legend)
    assert "a: tok/s and conv. s of runs that shared the machine" in legend
    assert "b: 1 of 2 replicates missing" in legend
    assert "published: a paper, table 2" in table.notes
    assert statistics_cell(None) == "–"


@pytest.mark.parametrize(
    ("metric", "record", "cell", "best"),
    [
        ("ter", "test/decode/ter", "45.00 ± 7.07 (40.00)", "(min)"),
        ("rougeL", "test/decode/rougeL", "45.00 ± 7.07 (50.00)", "(max)"),
        ("token_accuracy", "test/teacher_forced/token_accuracy", "45.00 ± 7.07 (50.00)", "(max)"),
    ],
)
def test_the_main_column_is_the_metric_that_chose(metric: str, record: str, cell: str, best: str) -> None:
    plan = make_plan(dataclasses.replace(SPEC, rows=(RowSpec(label="B"),)), [f"validation.metric={metric}"])
    for run, value in zip(plan.runs, (40.0, 50.0), strict=True):
        name = finish(run.config, None)
        decode(run.config, f"{name}-checkpoint", 1.0, {record: value})
    table = make_table(plan, aggregate(plan))
    assert table.rows[0][table.columns.index(f"test {metric}")] == cell
    assert any(best in note for note in table.notes)


def test_what_all_rows_do_not_share_with_the_publication_stands_above_and_the_rest_at_its_row() -> None:
    published = Published(mean=22.22)
    wide = RowSpec(label="wide", overrides=("search.beam=7",), published=published)
    spec = dataclasses.replace(SPEC, baseline=None, rows=(RowSpec(label="plain", published=published), wide))
    plan = make_plan(spec, ["batch.size=8", "replicates=1"])
    table = make_table(plan, aggregate(plan))
    assert table.conditions.startswith("Not as published: scale=local (sizes divided by 4); data=toy_translation")
    assert "batch.size 8 instead of 128" in table.conditions
    assert "search.beam" not in table.conditions
    legend = "\n".join(table.legend)
    assert "other conditions than published: search.beam 5 instead of 10" in legend
    assert legend.count("batch.size") == 0
    assert to_markdown(table).splitlines()[2] == table.conditions
    unpublished = make_plan(SweepSpec(name="test", title="T", rows=(RowSpec(label="A"),)), [])
    assert make_table(unpublished, aggregate(unpublished)).conditions == ""


def test_other_systems_follow_the_rows(plan: SweepPlan) -> None:
    systems = (
        SystemSpec(label="BPE-Char", published={"newstest2014": 21.5, "newstest2015": 23.9}, source="Chung 2016"),
        SystemSpec(label="X", published={"newstest2014": 19.34}, source="a paper", unconfirmed="hearsay"),
    )
    table = make_table(dataclasses.replace(plan, spec=dataclasses.replace(SPEC, systems=systems)), aggregate(plan))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["row"], row["published"], row["test bleu"]) for row in rows[2:]] == [
        ("BPE-Char, newstest2014", "21.50", "–"),
        ("BPE-Char, newstest2015", "23.90", "–"),
        ("X, newstest2014", "19.34", "–"),
    ]
    assert f"{rows[4]['marks']}: hearsay" in table.legend
    assert "other systems: BPE-Char: Chung 2016; X: a paper" in table.notes


def test_columns_without_content_are_left_out() -> None:
    empty = make_plan(SweepSpec(name="test", title="T", rows=(RowSpec(label="A"),)), [])
    table = make_table(empty, aggregate(empty))
    assert table.columns == ("row", "test bleu", "n", "marks")
    assert table.rows == (("A", "–", "0", "a"),)


def test_diverged_replicates_have_a_column_of_their_own() -> None:
    plan = make_plan(SPEC, [])
    assert "div." not in make_table(plan, aggregate(plan)).columns
    for run in plan.runs:
        finish(run.config, 20.0)
    finish(plan.rows[0].runs[0].config, 1.0, state="diverged", reason="loss nan at step 9")
    table = make_table(plan, aggregate(plan))
    place = table.columns.index("div.")
    assert [row[place] for row in table.rows] == ["1", "–"]
    assert any(note.startswith("div.: ") for note in table.notes)


def test_columns_are_chosen_by_name(plan: SweepPlan) -> None:
    results = aggregate(plan)
    for run in plan.rows[0].runs:
        finish(run.config, 20.0, peak_memory_bytes=3 * 2**20, convergence={"steps": 1500, "target_tokens": 2_500_000})
    table = make_table(
        plan, aggregate(plan), ["convergence_tokens", "convergence_steps", "peak_memory", "median", "steps"]
    )
    assert table.columns == ("row", "conv. tokens M", "conv. steps", "memory MiB", "median", "steps", "marks")
    assert table.rows[0][1:-1] == ("2.50", "1,500", "3", "20.00", "100")
    assert set(make_table(plan, results, ["all"]).columns) > set(make_table(plan, results).columns)
    assert make_table(plan, results, ["min", "n", "min"]).columns == ("row", "min", "n", "marks")
    with pytest.raises(UserError, match=r"columns: unknown column 'memory'; allowed: score, .*"):
        make_table(plan, results, ["memory"])
    assert {*SHOWN, *DROPPED} <= COLUMNS.keys()


def test_what_a_machine_measured_is_shown_where_it_is_known(plan: SweepPlan) -> None:
    results = aggregate(plan)
    assert "J/1k tok" not in make_table(plan, results).columns
    energies = iter([{"joules_per_1000_tokens": 41.0}, {"joules_per_1000_tokens": 44.0}])
    for run in plan.rows[0].runs:
        figures = {"idle": {"workers": 0.25, "servers": 0.9}, "staleness": {"mean": 1.5, "p95": 3}}
        finish(run.config, 20.0, energy=next(energies), distribution=figures)
    for run in plan.rows[1].runs:
        finish(run.config, 20.0, energy={"joules_per_1000_tokens": "not measurable", "reason": "no counters"})
    results = aggregate(plan)
    assert [row[2] for row in make_table(plan, results, ["score", "energy"]).rows] == ["42.5", NOTHING]
    assert "J/1k tok" in make_table(plan, results).columns
    table = make_table(plan, results, ["idle", "staleness"])
    assert [row[1:3] for row in table.rows] == [("25.0", "1.50"), (NOTHING, NOTHING)]
    (first, second, *_) = csv.DictReader(io.StringIO(to_csv(plan, results)))
    assert (first["joules_per_1000_tokens_mean"], second["joules_per_1000_tokens_mean"]) == ("42.5", "")
    listing = list_runs(results, "bleu")
    assert {"J/1k tok", "idle %", "staleness"} <= set(listing.columns)


def test_a_narrow_screen_keeps_the_scores_and_names_what_it_has_no_room_for(plan: SweepPlan) -> None:
    table = make_table(plan, aggregate(plan), ["all"])
    narrow = fitted(table, 120)
    console = Console(width=120, file=io.StringIO())
    console.print(to_screen(dataclasses.replace(narrow, notes=())))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any("20.50 ± 0.71 (21.00)" in line and "22.22 ± 0.08 (22.33)" in line for line in lines)  # nothing is folded
    assert len(table.columns) > len(narrow.columns) > 8
    assert narrow.notes[-1].startswith("no room for best, steps, conv. tokens M")
    assert not any(note.startswith(("best: ", "steps: ")) for note in narrow.notes)
    assert fitted(table, 500) is table
    assert {"row", "test bleu", "published", "n", "marks"} <= set(fitted(table, 40).columns)


def test_markdown_is_well_formed_and_aligned(plan: SweepPlan) -> None:
    lines = to_markdown(make_table(plan, aggregate(plan))).splitlines()
    grid = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in grid}) == 1
    assert len({line.replace("\\|", "").count("|") for line in grid}) == 1
    assert grid[2].startswith("| A\\|x")
    assert set(grid[1]) == set("|-: ")


def test_screen_shows_the_same_cells(plan: SweepPlan) -> None:
    table = make_table(plan, aggregate(plan))
    console = Console(width=500, file=io.StringIO())
    console.print(to_screen(table))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell in shown for row in table.rows for cell in row)
    assert all(note in shown for note in table.legend + table.notes)


def test_csv_has_full_precision_and_the_run_ids(plan: SweepPlan) -> None:
    records = list(csv.DictReader(io.StringIO(to_csv(plan, aggregate(plan)))))
    assert [record["row"] for record in records] == ["A|x", "B"]
    assert float(records[0]["bleu_sd"]) == 0.5**0.5
    assert float(records[0]["bleu_sd_over_n"]) == pytest.approx(0.5)
    assert records[1]["bleu_sd"] == ""
    assert records[0]["tokens_per_second_shared_mean"] == "2000.0"
    assert records[0]["tokens_per_second_exclusive_mean"] == ""
    assert records[0]["published_mean"] == "22.22"
    assert (records[1]["missing"], records[1]["best_at_the_end"], records[0]["convergence_steps_sd"]) == (
        "1",
        "0",
        "0.0",
    )
    assert (records[0]["best_run"], records[0]["best_step"]) == (plan.rows[0].runs[1].run_id, "80")
    assert records[1]["peak_memory_bytes_mean"] == ""
    assert records[0]["runs"].split() == [run.run_id for run in plan.rows[0].runs]


def test_the_report_leads_from_every_number_to_its_run(plan: SweepPlan) -> None:
    report = write_report(plan, aggregate(plan))
    files = {path.name for path in report.directory.iterdir()}
    assert files == {
        "report.html", "report.md", "table.md", "table.csv", "table.tex", "figure.png", "figure.svg", "sweep.json",
    }  # fmt: skip
    assert report.figure.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in report.vector_figure.read_bytes()
    data = json.loads(report.data.read_text(encoding="utf-8"))
    assert data["overrides"] == ["batch.size=8"]
    row = data["rows"][0]
    assert [replicate["run_id"] for replicate in row["replicates"]] == [run.run_id for run in plan.rows[0].runs]
    assert [replicate["metrics"]["bleu"] for replicate in row["replicates"]] == [20.0, 21.0]
    assert (data["rows"][1]["n"], data["rows"][1]["missing"]) == (1, 1)


def test_the_same_results_draw_the_same_picture(plan: SweepPlan) -> None:
    before = {path.name: path.read_bytes() for path in write_report(plan, aggregate(plan)).directory.iterdir()}
    after = {path.name: path.read_bytes() for path in write_report(plan, aggregate(plan)).directory.iterdir()}
    assert before == after


def test_an_unwritable_place_is_one_line(plan: SweepPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    blocked = make_plan(SPEC, [f"paths.reports={tmp_path}/file"])
    with pytest.raises(UserError, match=r"file/test: cannot be written: .*; set paths.reports"):
        write_report(blocked, aggregate(blocked))
