"""`nmt sweep replicates='until …'` with real trainings: rows end with the replicates that their own results ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeps.plan import make_plan
from sweeps.spec import load_spec
from sweeps.statistics.sequential import calibrate, half_width
from sweeps.sweep import main

LOOKS = (2, 3, 4)


@pytest.mark.exhaustive
def test_a_real_sweep_stops_where_its_results_say(
    tmp_path: Path, isolated_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    rows = "  - {label: A}\n  - {label: B, overrides: [model/attention=additive]}\n"
    path.write_text(f"title: Tiny\nbaseline: A\nrows:\n{rows}", encoding="utf-8")
    common = ["scale=smoke", "validation.metric=chrf", "executor=inline", "executor.workers=1", "tracking=none"]
    words = [*common, "model.embedding.share=false", "threads=1"]
    assert main([f"sweep={path}", *words, "replicates=2"]) == 0
    known = [
        run.found.metrics["chrf"] for run in make_plan(load_spec(str(path)), [*words, "replicates=2"]).rows[0].runs
    ]
    error = calibrate(LOOKS).error
    width = half_width(known, None, error) / 2  # so that row A is not done at its first look
    rule = f"replicates=until ci<{width:.6g} min=2 step=1 max=4"
    capsys.readouterr()
    assert main([f"sweep={path}", *words, rule]) == 0
    out = capsys.readouterr().out
    plan = make_plan(load_spec(str(path)), [*words, rule])
    assert plan.missing == []
    assert len(plan.rows[0].runs) > 2
    for row in plan.rows:
        scores = [run.found.metrics["chrf"] for run in row.runs]
        widths = {look: half_width(scores[:look], None, error) for look in LOOKS if look <= len(scores)}
        assert all(widths[look] > width for look in widths if look < len(scores))
        assert widths[len(scores)] <= width or len(scores) == 4
        assert f"{row.label}: ± {widths[len(scores)]:.2f} with" in out
    data = json.loads((plan.reports / "sweep.json").read_text(encoding="utf-8"))
    assert [row["n"] for row in data["rows"]] == [len(row.runs) for row in plan.rows]
    before = sorted(isolated_runs.glob("*/s*/result.json"))
    assert main([f"sweep={path}", *words, rule]) == 0
    assert sorted(isolated_runs.glob("*/s*/result.json")) == before
