"""What `nmt status` shows: sweeps and runs as their directories tell, damage named and out of the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus
from sweeps.folder import FOLDER
from sweeps.launches import read_launches, record_launch
from sweeps.plan import make_plan
from sweeps.spec import RowSpec, SweepSpec
from sweeps.status import age, lines_of, main
from sweeps.survey import survey

A, B, C, D = (f"{letter * 12}/s1" for letter in "abcd")
LONELY = "0123456789ab/s3"


@pytest.fixture
def store(isolated_runs: Path) -> LocalRunStore:
    """A sweep of four runs in two rows, and a run that no sweep asked for."""
    store = LocalRunStore(isolated_runs)
    rows = [
        {"label": "plain", "max_steps": 100, "run_ids": [A, B]},
        {"label": "again", "max_steps": 100, "run_ids": [A, B]},
        {"label": "deep", "max_steps": 50, "run_ids": [C, D]},
    ]
    store.write_json(FOLDER, "study@local.json", {"sweep": "study@local", "title": "T", "time": 1.0, "rows": rows})
    store.set_status(A, RunStatus(state="finished", step=80, max_steps=100, attempts=1))  # by patience
    store.set_status(B, RunStatus(state="failed", step=10, max_steps=100, attempts=3, error="Traceback\nMemoryError"))
    store.set_status(C, RunStatus(state="running", step=30, max_steps=50, attempts=2))  # its process is gone
    store.set_status(LONELY, RunStatus(state="diverged", step=7, max_steps=70, attempts=1))
    store.write_text(LONELY, "config.yaml", "label: 'alone: at last'\nseed: 3\n")
    return store


def shown(store: LocalRunStore, **limits: int) -> list[str]:
    return [text for text, _ in lines_of(survey(store.root), now=survey(store.root).runs[0].status.heartbeat, **limits)]


def test_sweeps_and_runs_with_what_asks_for_attention_first(store: LocalRunStore) -> None:
    found = survey(store.root)
    (sweep,) = found.sweeps
    assert (sweep.rows, sweep.runs, sweep.states) == (
        3,
        4,
        {"failed": 1, "interrupted": 1, "queued": 1, "finished": 1},
    )
    assert (sweep.steps, sweep.max_steps) == (80 + 10 + 30, 80 + 100 + 50 + 50)
    assert [(run.run_id, run.label, run.status.state) for run in found.runs] == [
        (B, "plain", "failed"),
        (C, "deep", "interrupted"),
        (D, "deep", "queued"),
        (LONELY, "alone: at last", "diverged"),
        (A, "plain", "finished"),
    ]


def test_a_line_a_run_in_columns(store: LocalRunStore) -> None:
    status = store.status(B)
    lines = shown(store)
    assert lines[0].split() == ["sweep", "rows", "runs", "failed", "interrupted", "queued", "finished", "steps"]
    assert lines[1].split() == ["study@local", "3", "4", "1", "1", "1", "1", "42%"]
    assert lines[3].split() == ["run", "row", "state", "step", "heartbeat", "where", "attempts", "error"]
    where = f"{status.host}:{status.pid}"
    assert lines[4].split() == [B, "plain", "failed", "10/100", "0", "s", where, "3", "MemoryError"]
    assert lines[6].split() == [D, "deep", "queued", "0/50"]
    assert len(lines) == 9


def test_one_sweep_alone(store: LocalRunStore) -> None:
    for name in ("study", "study@local"):
        assert LONELY not in [run.run_id for run in survey(store.root, name).runs]
    with pytest.raises(UserError, match=r"sweep=studdy: was not started here; allowed: study@local"):
        survey(store.root, "studdy")


def test_what_has_no_room_is_counted(store: LocalRunStore) -> None:
    lines = shown(store, height=7)
    assert len(lines) == 7
    assert lines[-1] == "… and 1 queued, 1 diverged, 1 finished"
    assert shown(store, height=9) == shown(store)


def test_a_running_one_shows_how_long_ago_it_gave_a_sign_of_life(store: LocalRunStore) -> None:
    with store.claim(C) as held:
        held.set_status(C, RunStatus(state="running", step=31, max_steps=50, attempts=held.attempt.number))
        (first, *_) = survey(store.root).runs
        assert (first.run_id, first.status.state, first.status.attempts) == (C, "running", 3)
        text = lines_of(survey(store.root), now=first.status.heartbeat + 200)[4][0]
        assert "  3 min  " in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (119, "119 s"), (125, "2 min"), (7100, "118 min"), (7300, "2 h"), (2e5, "2 d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_damage_is_named_and_the_rest_is_shown(
    store: LocalRunStore, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    store.write_text(B, "status.json", '{"state": "fai')
    store.write_text(FOLDER, "study@local.json", '{"rows": 3}')
    store.write_json(C, "status.json", {"format_version": 99})
    store.write_text(C, "config.yaml", "label: ''\n")
    assert main([]) == 0
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 1 and "study@local.json is damaged (its values make no sense)" in named[0]
    out = capsys.readouterr().out
    assert f"{LONELY}  alone: at last  diverged" in out
    assert "was written in format 99" in out
    assert B not in out  # without the sweep's record, and without config.yaml, nothing says that it is a run
    store.write_text(B, "config.yaml", "label: plain\n")
    caplog.clear()
    assert main([]) == 0
    assert f"{B}/status.json is damaged" in caplog.text
    assert f"{B}  plain" in capsys.readouterr().out
    caplog.clear()
    assert main([]) == 0
    assert caplog.text == ""


def test_as_json(store: LocalRunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"paths.runs={store.root}", "json=true"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sweeps"][0]["runs"] == 4
    assert record["runs"][0]["error"] == "Traceback\nMemoryError"


def test_nothing_there_yet(isolated_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there is no such directory"):
        main([])
    isolated_runs.mkdir()
    assert main([]) == 0
    assert capsys.readouterr().out == "no runs yet\n"


def test_a_launch_is_what_the_plan_consists_of(isolated_runs: Path) -> None:
    spec = SweepSpec(name="my/own", title="T", rows=(RowSpec(label="A"), RowSpec(label="B")), replicates=2)
    plan = make_plan(spec, ["scale=smoke"])
    record_launch(plan)
    (launch,) = read_launches(isolated_runs)
    assert (launch.name, launch.title) == ("my/own@smoke", "T")
    assert [(row.label, row.run_ids) for row in launch.rows] == [
        (row.label, [run.run_id for run in row.runs]) for row in plan.rows
    ]
    assert launch.rows[0].max_steps == plan.config.training.max_steps


def test_a_sweep_that_only_left_its_report_is_shown_too(store: LocalRunStore) -> None:
    rows = [{"label": "old", "max_steps": 9, "replicates": [{"run_id": LONELY}]}]
    for name in ("old", "study"):
        record = {"sweep": {"name": name, "title": "O"}, "scale": "local", "rows": rows}
        store.write_json(f"reports/{name}", "sweep.json", record)
    assert [(launch.name, launch.title) for launch in read_launches(store.root)] == [
        ("old@local", "O"),
        ("study@local", "T"),
    ]


def test_committed_runs_of_earlier_versions_are_shown(tmp_path: Path) -> None:
    results = Path(__file__).resolve().parents[2] / "docs" / "results"
    shutil.copytree(results, tmp_path / "results", ignore=shutil.ignore_patterns("decodes", "*.png"))
    found = survey(tmp_path / "results")
    assert len(found.runs) == len(list(results.glob("*/s*/config.yaml"))) > 0
    assert {run.status.state for run in found.runs} <= {"finished", "diverged", "interrupted"}
    assert all(run.label and run.status.step for run in found.runs)


def test_showing_500_runs_loads_nothing_heavy_and_reads_each_once(tmp_path: Path) -> None:
    """What makes it fast, counted: no Hydra, no torch, no table library, and one file and a line of a finished run."""
    store = LocalRunStore(tmp_path)
    status = json.dumps({"format_version": 1, "state": "finished", "step": 9, "max_steps": 9, "attempts": 1})
    for number in range(500):
        directory = store.directory(f"{number // 4:012x}/s{number % 4}")
        directory.mkdir(parents=True)
        (directory / "status.json").write_text(status)
        (directory / "config.yaml").write_text("label: x\n")
    code = f"""
import sys
opened = 0
def count(event, arguments):
    global opened
    opened += event == "open" and str(arguments[0]).startswith({str(tmp_path)!r})
sys.addaudithook(count)
from nmt.cli import main
code = main(["status", "runs={tmp_path}"])
heavy = {{"torch", "hydra", "omegaconf", "numpy", "rich", "mlflow", "ray", "yaml"}} & sys.modules.keys()
print(sorted(heavy), opened, file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[] 1000\n")
    assert len(done.stdout.splitlines()) == 501
