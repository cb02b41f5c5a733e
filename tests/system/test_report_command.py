"""`nmt report` as a person types it, over the archived runs of this repository and over none."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from nmt.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_archived_runs_are_reported_and_nothing_is_trained(
    tmp_path: Path, isolated_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "report"
    assert main(["report", "sweep=toy_families", f"results={ROOT / 'docs/results'}", f"to={to}"]) == 0
    out = capsys.readouterr().out
    assert "| GRU (baseline) |" in out and "runs are missing" not in out
    written = {"report.html", "report.md", "table.md", "table.csv", "table.tex"}
    assert {path.name for path in to.iterdir()} == written
    assert [Path(line).name for line in out.splitlines()[-5:]] == [
        "report.md", "table.md", "table.tex", "report.html", "table.csv",
    ]  # fmt: skip
    records = list(csv.DictReader((to / "table.csv").open(encoding="utf-8")))
    assert [record["row"] for record in records] == ["GRU", "Transformer", "Convolutional", "Pooling"]
    page = (to / "report.html").read_text(encoding="utf-8")
    assert all(run in page for record in records for run in record["runs"].split())
    assert str(ROOT) not in page and str(isolated_runs) not in page  # it can be shown
    assert not isolated_runs.exists()
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    assert main(["report", "sweep=toy_families", f"results={ROOT / 'docs/results'}", f"to={to}"]) == 0
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before


def test_what_is_missing_stays_in_the_report(isolated_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "sweep=table6_beam", "scale=smoke", "formats=latex,html"]) == 0
    out = capsys.readouterr().out
    assert "runs are missing; nmt sweep with the same words trains them" in out
    report = isolated_runs / "reports" / "table6_beam"
    assert {path.name for path in report.iterdir()} == {"report.html", "table.tex"}
    assert "B100" in (report / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "sweep: is needed"),
        (["sweep=quickstart", "formats=pdf"], "formats: 'pdf' is not a choice"),
        (["sweep=quickstart", "columns=speed"], "columns: unknown column 'speed'"),
        (["sweep=quickstart", "results=nowhere"], "results=nowhere: no such directory"),
        (["sweep=quickstart", "model.decoder.layer=2"], "unknown key"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
