"""`nmt reproduce study=ringtmp` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.exhaustive
def test_an_experiment_from_nothing_to_its_verdicts(nmt: Command, tmp_path: Path) -> None:
    words = ["study=ringtmp", "experiments=progress", f"paths.runs={tmp_path}"]
    short = ["training.max_steps=6", "validation.every_steps=3", "batch.size=32"]
    code, out, error = nmt("reproduce", *words, *short)
    assert code == 0, error
    folder = tmp_path / "reports" / "study-ringtmp"
    record = json.loads((folder / "study.json").read_text())
    verdicts = {one["claim"]["id"]: one for one in record["claims"]}
    assert verdicts["progress_same_as_synchronous"]["verdict"] == "held"
    assert verdicts["progress_more_than_synchronous"]["verdict"] == "not held"
    compared = verdicts["progress_same_as_synchronous"]["comparisons"]
    assert [one["condition"] for one in compared] == [["step 3"], ["step 6"]] * 2
    assert all(one["value"] == one["other"] > 0 for one in compared)
    bits = {one["row"] for one in record["experiments"][0]["points"] if one["figure"] == "bits"}
    rings = {"ring all-reduce", "RingTMP stage", "RingTMP stage, async", "RingTMP rotate"}
    assert bits == {"one process", "PS bsp", "PS ssp", "PS asp", *rings}
    assert "held  A synchronous ring" in out
    for name in ("study.html", "study.md", "progress-steps.png", "progress-tokens.png"):
        assert (folder / name).stat().st_size > 0
    trained = sorted(
        path.parent.parent.parent.name.rpartition("-")[0] for path in tmp_path.glob("apart/*/*/s1/result.json")
    )
    really = ["single", *["parameter_server"] * 3, "ring_allreduce", *["ring_tmp"] * 3]
    assert trained == sorted(really)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("apart/*/*/s1/result.json")}
    assert nmt("reproduce", *words, *short)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("apart/*/*/s1/result.json")} == before


def test_a_dry_run_says_what_would_be_done(nmt: Command, tmp_path: Path) -> None:
    code, out, error = nmt("reproduce", "study=ringtmp", "dry_run=true", f"paths.runs={tmp_path / 'none'}")
    assert code == 0, error
    for text in (
        "Idle time",
        "Progress per iteration",
        "Scalability",
        "Resilience",
        "Largest model",
        "claims would be judged",
    ):
        assert text in out
    assert "RingTMP node killed" in out
    assert not (tmp_path / "none").exists()


def test_runs_apart_make_no_pack(nmt: Command, tmp_path: Path) -> None:
    code, _, error = nmt("pack", "sweep=ringtmp_idle", f"to={tmp_path / 'p.zip'}")
    assert code == 2
    assert "keeps its runs apart" in error
    assert not (tmp_path / "p.zip").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study=ringtm"], "unknown study 'ringtm'"),
        (["study=ringtmp", "experiments=idl"], "unknown experiment 'idl'"),
        (["study=ringtmp", "table=5"], "goes with no table"),
        (["table=5", "experiments=idle"], "are those of a study"),
    ],
)
def test_mistakes_are_one_line(nmt: Command, words: list[str], said: str) -> None:
    code, _, error = nmt("reproduce", *words)
    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
