from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmt.errors import UserError
from sweeps.tracking.curves import CurveReader

HEADER = json.dumps({"kind": "header", "format_version": 1}) + "\n"


def train_line(step: int, loss: float = 1.0, seconds: float | None = None) -> str:
    record = {"kind": "train", "step": step, "loss": loss, "seconds": step / 10 if seconds is None else seconds}
    return json.dumps(record | {"learning_rate": 0.1, "loss_hex": loss.hex(), "timing": "shared"}) + "\n"


def evaluation_line(step: int, bleu: float) -> str:
    record = {"kind": "evaluation", "step": step, "seconds": 1.5, "val/decode/bleu": bleu, "best": True}
    return json.dumps(record | {"evaluation_seconds": 2.0, "parameters_sha256": "00"}) + "\n"


def test_names_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + train_line(10, 2.5) + evaluation_line(10, 30.25))
    train, evaluation = CurveReader(path).read()
    assert (train.kind, train.step, train.seconds) == ("train", 10, 1.0)
    assert train.metrics == {"train/loss": 2.5, "train/learning_rate": 0.1, "train/seconds": 1.0}
    assert evaluation.metrics == {"val/decode/bleu": 30.25, "evaluation_seconds": 2.0}


def test_a_probe_has_norms_and_an_evaluation_the_training_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    probe = {"kind": "probe", "step": 4, "seconds": 0.5, "probe/gradient/all": 2.0, "probe/state_gradient/d": 1.0}
    evaluation = json.loads(evaluation_line(4, 30.0)) | {"train/teacher_forced/log_perplexity": 1.25}
    path.write_text(HEADER + json.dumps(probe) + "\n" + json.dumps(evaluation) + "\n")
    first, second = CurveReader(path).read()
    assert (first.kind, first.step, first.seconds) == ("probe", 4, 0.5)
    assert first.metrics == {"probe/gradient/all": 2.0, "probe/state_gradient/d": 1.0}
    assert second.metrics["train/teacher_forced/log_perplexity"] == 1.25


def test_absent_file_and_torn_line_wait(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = CurveReader(path)
    assert reader.read() == []
    path.write_text(HEADER + train_line(10) + train_line(20)[:17])
    assert [point.step for point in reader.read()] == [10]
    assert reader.read() == []
    path.write_text(HEADER + train_line(10) + train_line(20) + train_line(30))
    assert [point.step for point in reader.read()] == [20, 30]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, 2000), max_size=8), steps=st.integers(1, 12))
def test_however_the_file_grows_each_point_is_read_once(tmp_path: Path, cuts: list[int], steps: int) -> None:
    path = tmp_path / "metrics.jsonl"
    data = (HEADER + "".join(train_line(step, 1 / step) for step in range(1, steps + 1))).encode()
    path.unlink(missing_ok=True)
    reader = CurveReader(path)
    seen = []
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        path.write_bytes(data[:cut])
        seen += reader.read()
    assert [(point.step, point.metrics["train/loss"]) for point in seen] == [(s, 1 / s) for s in range(1, steps + 1)]


@pytest.mark.parametrize("again", [20, 30, 60], ids=["shorter", "as long", "longer"])
def test_a_file_that_was_cut_and_continued_is_read_anew(tmp_path: Path, again: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + train_line(10) + train_line(20) + train_line(30))
    reader = CurveReader(path)
    assert len(reader.read()) == 3
    redone = "".join(train_line(step, seconds=9.0) for step in range(20, again + 1, 10))
    path.write_text(HEADER + train_line(10) + redone)
    assert [point.step for point in reader.read()] == list(range(10, again + 1, 10))
    assert reader.read() == []


def test_damage_is_told_with_file_and_line_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + train_line(10) + "{broken\n" + train_line(20))
    reader = CurveReader(path)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            reader.read()
        assert caught.value.where == f"{path}:3"


def test_a_lenient_reader_leaves_out_what_is_damaged_and_tells_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + train_line(10) + "{broken\n" + train_line(20) + "[]\n")
    reader = CurveReader(path, strict=False)
    assert [point.step for point in reader.read()] == [10, 20]
    assert reader.damage is not None and reader.damage.where == f"{path}:3"
    assert reader.read() == [] and reader.damage is not None
    path.write_text(HEADER + train_line(10) + train_line(20))  # resumed from before the damage
    assert [point.step for point in reader.read()] == [10, 20]
    assert reader.damage is None


@pytest.mark.parametrize("line", ['["a list"]', '{"step": 1}', '{"kind": "train"}', '{"kind": "train", "step": "x"}'])
def test_lines_that_are_no_metrics_are_damage(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + line + "\n")
    with pytest.raises(UserError, match="does not hold a line of metrics"):
        CurveReader(path).read()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "header", "format_version": 99}) + "\n")
    with pytest.raises(UserError, match="format 99"):
        CurveReader(path).read()


def test_what_is_not_finite_becomes_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + train_line(1, math.inf) + train_line(2, math.nan))
    assert all(math.isnan(point.metrics["train/loss"]) for point in CurveReader(path).read())
