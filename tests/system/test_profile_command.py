"""`nmt profile` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nmt.cli import main

TINY = ["profile", "scale=smoke", "device=cpu", "threads=1", "data=toy_copy", "tokenizer.vocab_size=30",
        "data.options.train_size=60", "data.options.validation_size=4", "data.options.test_size=4",
        "data.options.max_length=6", "model.decoder.layers=1", "steps=1", "warmup=1"]  # fmt: skip


def test_json_and_a_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "step.json"
    assert main([*TINY, "format=json", f"trace={trace}"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    assert found["format_version"] == 1 and found["left_out"] == ""
    assert sum(found["parameters"].values()) == found["total_parameters"]
    assert found["measured"]["tokens_per_second"] > 0 and found["machine"]["threads"] == 1
    assert set(found["measured"]["phases"]) >= {"data", "encoder", "decoder backward", "update"}
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::addmm" in names or "aten::mm" in names
    assert list(tmp_path.rglob("config.yaml")) == [], "a profile is no run"


def test_the_published_size_needs_no_corpus(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "scale=published", "experiment=t5_add_512", "data.dir=nowhere", "threads=1", "source_length=2",
             "target_length=2"]  # fmt: skip
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "66,325,135" in out
    assert "2 source and 2 target tokens a sentence" in out
    assert "times, and memory beside that, are left out: data.dir: there is no directory" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stesp=3"], "stesp"),
        (["steps=-1"], "error: steps: -1 is out of range; allowed: >= 0"),
        (["format=yaml"], "error: format: 'yaml' is not a choice; allowed: text, json"),
        (["trace=none/step.json"], "there is no directory"),
        (["trace=step.json", "steps=0"], "error: trace: needs at least one step; steps=1"),
        (["trace=step.json", "scale=published", "data.dir=nowhere", "source_length=1", "target_length=1"],
         "error: trace: there is no step to trace: data.dir: there is no directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *words]) == 2
    line = capfd.readouterr().err
    assert message in line and line.count("\n") == 1
