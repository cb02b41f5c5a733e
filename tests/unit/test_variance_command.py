"""`nmt variance`: rows sorted by what varies in them, from runs written by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from finished_runs import finish

from nmt.cli import VERBS
from nmt.errors import UserError
from sweeps.aggregate import aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import load_spec
from sweeps.variance import main
from sweeps.variance_sources import find_sources

WORDS = ["replicates=4"]
SCORES = {
    "everything": [20.0, 24.0, 22.0, 18.0],
    "only initialisation": [21.0, 22.0, 20.0, 21.0],
    "only data order": [20.0, 23.0, 21.0, 20.0],
    "only dropout": [20.0, 21.0, 21.5, 20.5],
    "only hyperparameters ±10 %": [19.0, 21.0, 23.0, 25.0],
}


def finished(scores: Mapping[str, Sequence[float]]) -> SweepPlan:
    plan = make_plan(load_spec("variance_sources"), WORDS)
    for row in plan.rows:
        for run, score in zip(row.runs, scores.get(row.label, []), strict=False):
            finish(run.config, score)
    return make_plan(load_spec("variance_sources"), WORDS)


def test_rows_are_sorted_by_what_varies_and_split_the_whole() -> None:
    plan = finished(SCORES)
    found = find_sources(plan, aggregate(plan), "bleu")
    assert [sorted(one.varies) for one in found.sources] == [
        ["data", "dropout", "initialisation"], ["initialisation"], ["data"], ["dropout"], ["hyperparameters"]
    ]  # fmt: skip
    variance = {label: statistics.variance(values) for label, values in SCORES.items()}
    assert found.whole is not None and found.sum is not None
    assert found.whole.row.label == "everything"
    parts = sum(variance[label] for label in ("only initialisation", "only data order", "only dropout"))
    assert found.sum.ratio == pytest.approx(parts / variance["everything"])  # without the hyperparameters
    assert [one.share and round(one.share.share, 6) for one in found.sources] == [
        None, *(round(variance[label] / variance["everything"], 6) for label in list(SCORES)[1:])
    ]  # fmt: skip
    assert found.equal.samples == 4
    assert found.shared_seeds == ()


def test_the_command_prints_table_and_findings_and_json_has_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    plan = finished(SCORES)
    assert main(WORDS) == 0
    out = capsys.readouterr().out
    assert "| only dropout " in out
    assert "single sources add up to 0.46 times the variance of 'everything'" in out
    assert "Brown-Forsythe p = " in out
    assert "of 4 replicates an sd is known to within 0.57 to 3.73 times itself" in out
    assert main([*WORDS, "json=true", "metric=chrf"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rows"][3]["runs"] == [run.run_id for run in plan.rows[3].runs]
    assert data["rows"][3]["scores"] == [30.0, 31.0, 31.5, 30.5]
    assert data["whole"] == "everything"


def test_what_is_missing_is_marked_and_sums_need_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    finished({"everything": SCORES["everything"], "only dropout": [20.0, 21.0]})
    assert main(WORDS) == 1
    out = capsys.readouterr().out
    assert "add up to" not in out
    assert "2 of 4 replicates missing" in out
    assert "14 replicates are missing: nmt sweep sweep=variance_sources trains them" in out


def test_a_score_that_is_not_finite_or_never_differs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    finished(SCORES | {"only dropout": [20.0, float("nan"), 20.0, 20.0], "only data order": [7.0] * 4})
    assert main(WORDS) == 0
    out = capsys.readouterr().out
    assert "only dropout: a score is not finite" in out
    assert "add up to" not in out
    (line,) = (line for line in out.splitlines() if line.startswith("| only data order"))
    assert [cell.strip() for cell in line.split("|")][5:9] == ["0.000", "–", "–", "–"]


def sweep_of(tmp_path: Path, rows: str, top: str = "") -> str:
    path = tmp_path / "own.yaml"
    path.write_text(f"title: T\nreplicates: 2\n{top}rows:\n{rows}", encoding="utf-8")
    return f"sweep={path}"


def test_rows_that_differ_otherwise_are_refused(tmp_path: Path) -> None:
    other = sweep_of(tmp_path, "  - {label: a}\n  - {label: b, overrides: [seeds.data=101, batch.size=8]}\n")
    with pytest.raises(UserError, match=r"rows 'a' and 'b' differ in batch\.size: 64 != 8"):
        main([other])
    twice = sweep_of(
        tmp_path,
        "  - {label: a}\n  - {label: b, overrides: [seeds.data=7]}\n  - {label: c, overrides: [seeds.data=8]}\n",
    )
    with pytest.raises(UserError, match="rows 'b' and 'c' vary the same"):
        main([twice])


def test_a_held_seed_that_is_a_replicates_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([sweep_of(tmp_path, "  - {label: a}\n  - {label: b, overrides: [seeds.data=2]}\n")]) == 1
    assert "b holds data order at seed 2, which is a replicate's too" in capsys.readouterr().out


def test_it_is_a_verb() -> None:
    assert VERBS["variance"][0] == "sweeps.variance:main"
