"""`nmt sync` rebuilds from run directories and reports what a tracker would have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nmt.config import to_dict
from nmt.config.identity import run_id
from nmt.errors import UserError
from sweeps.tracking.store import StoreLock, default_uri
from sweeps.tracking.sync import main


@pytest.fixture
def study(runs) -> dict:
    """Two rows of a sweep with its report, and a run that no sweep asked for."""
    rows = {}
    for label, attention, bleu in (("additive", "baseline", 30.0), ("none", "t5_none_state", 10.0)):
        rows[label] = [runs.config(label, seed, experiment=attention) for seed in (1, 2)]
        for number, config in enumerate(rows[label]):
            runs.whole(config, bleu + number)
    lone = runs.config("lone", **{"training.max_steps": 77})
    runs.whole(lone, 5.0)
    report = runs.root / "reports" / "study@local"
    report.mkdir(parents=True)
    record = {
        "format_version": 1,
        "sweep": {"name": "study"},
        "scale": "local",
        "rows": [
            {
                "label": label,
                "train_id": run_id(configs[0]).partition("/")[0],
                "config": to_dict(configs[0]),
                "replicates": [{"run_id": run_id(config)} for config in configs],
            }
            for label, configs in rows.items()
        ],
    }
    (report / "sweep.json").write_text(json.dumps(record))
    (report / "table.md").write_text("| row | BLEU |\n")
    return {"rows": rows, "lone": lone, "report": report}


def sync(runs, *words: str) -> int:
    return main([f"runs={runs.root}", *words])


def test_sync_shows_what_a_tracker_would_have_shown(runs, view, study, empty_store, tmp_path, capsys) -> None:
    tracker = runs.tracker(*(runs.group(configs[0]) for configs in study["rows"].values()))
    tracker.attach(study["report"] / "table.md")
    tracker.attach(study["report"] / "sweep.json")
    tracker.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(empty_store, elsewhere)

    assert sync(runs, f"uri=sqlite:///{elsewhere}/mlflow.db") == 0
    assert "5 runs of 3 configurations in 2 experiments, 55 new points of curves, 0 left out" in capsys.readouterr().out
    seen = view(root=elsewhere)
    assert seen.everything() == view().everything()
    assert seen.parents()["additive"].data.metrics["bleu_mean"] == 30.5
    assert view("train@local", elsewhere).parents()["lone"].data.metrics["bleu_mean"] == 5.0


def test_twice_changes_nothing(runs, view, study, capsys) -> None:
    assert sync(runs) == 0
    once, ids = view().everything(), {run.info.run_id for run in view().runs}
    capsys.readouterr()
    assert sync(runs) == 0
    assert ", 0 new points of curves" in capsys.readouterr().out
    assert view().everything() == once
    assert {run.info.run_id for run in view().runs} == ids


def test_sync_repairs_what_a_tracker_missed(runs, view, study) -> None:
    config = study["rows"]["additive"][0]
    tracker = runs.tracker(runs.group(config))
    tracker.poll()
    runs.train(run_id(config), range(110, 151, 10))  # while nobody was mirroring
    tracker._lock.release()
    assert sync(runs) == 0
    curve = view().curve(view().children()[run_id(config)])
    assert [step for step, _ in curve] == list(range(10, 151, 10))


def test_one_sweep_alone(runs, view, study, capsys) -> None:
    assert sync(runs, "sweep=study") == 0
    assert "4 runs of 2 configurations in 1 experiments" in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        sync(runs, "sweep=other")
    assert caught.value.allowed == ["study@local"]


def test_damage_is_named_and_skipped(runs, view, study, capsys) -> None:
    damaged = run_id(study["rows"]["additive"][1])
    metrics = runs.store.directory(damaged) / "metrics.jsonl"
    header, *lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([header, *lines[:4], "{broken\n", *lines[4:]]))
    (runs.store.directory(run_id(study["lone"])) / "config.yaml").write_text("a: [\n")
    (runs.root / "reports" / "old@local").mkdir()
    (runs.root / "reports" / "old@local" / "sweep.json").write_text('{"format_version": 1, "rows": []}')
    assert sync(runs) == 1
    said = capsys.readouterr()
    assert "3 runs of 2 configurations" in said.out and "3 left out" in said.out
    assert damaged in said.err and "metrics.jsonl:6" in said.err
    assert run_id(study["lone"]) in said.err and "config.yaml:2" in said.err
    assert "old@local" in said.err
    seen = view()
    assert seen.parents()["additive"].data.metrics["bleu_mean"] == 30.5  # the result is whole: as in the sweep's table
    assert [step for step, _ in seen.curve(seen.children()[damaged])] == list(range(10, 101, 10))  # all lines but one


def test_mistakes(runs, study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        main([f"runs={tmp_path / 'absent'}"])
    with pytest.raises(UserError, match="no tracking store"):
        sync(runs, "uri=ftp://host")
    with pytest.raises(UserError, match="Connection refused"):
        sync(runs, "tracking.uri=http://127.0.0.1:9")
    lock = StoreLock(default_uri(runs.root), runs.root)
    assert lock.acquire()
    with pytest.raises(UserError, match="is writing to it"):
        sync(runs)
    lock.release()
    (runs.root / "mlflow.db").write_text("this is not a database, " * 10)
    with pytest.raises(UserError, match="file is not a database"):
        sync(runs)


def test_an_empty_directory_is_no_mistake(runs, capsys) -> None:
    assert sync(runs) == 0
    assert "0 runs of 0 configurations" in capsys.readouterr().out
