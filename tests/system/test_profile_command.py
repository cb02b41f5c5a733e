"""`nmt profile` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed.timeline import Timeline
from distributed.timeline_files import file_name
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


@pytest.fixture
def distributed_run(tmp_path: Path) -> Path:
    """A run whose two processes have written down four steps."""
    folder = tmp_path / "runs" / "3f2a91c07be4" / "s2"
    (folder / "journals").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    for process in ("worker 0", "server 0"):
        timeline = Timeline(process)
        for timeline.main.step in range(1, 5):
            with timeline.main.busy:
                pass
            with timeline.main.wait_recv:
                pass
        (folder / "journals" / file_name(process)).write_bytes(timeline.take())
    return folder


def test_the_timelines_of_a_run_are_drawn(distributed_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "run=3f2a", f"paths.runs={distributed_run.parents[1]}", "steps=2"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "3f2a91c07be4/s2: shares of the last attempt's time, evaluations included"
    assert out[2].split()[-1] == "idle" and [line.split()[0] for line in out[3:5]] == ["worker", "server"]
    assert out[-2:] == [
        f"steps 3 to 4: {distributed_run / 'timeline.png'}",
        f"for Perfetto: {distributed_run / 'timeline.json'}",
    ]
    assert (distributed_run / "timeline.png").read_bytes().startswith(b"\x89PNG")
    trace = json.loads((distributed_run / "timeline.json").read_text())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["args"]["step"] for event in spans if event["pid"] == 1} == {3, 4}


def test_timelines_go_elsewhere_and_to_json(distributed_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere = distributed_run / "drawn"
    assert main(["profile", f"run={distributed_run}", f"out={elsewhere}", "steps=0", "format=json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["steps"], list(found["shares"])) == ([1, 4], ["worker 0", "server 0"])
    assert sum(found["shares"]["worker 0"].values()) - found["shares"]["worker 0"]["idle"] == pytest.approx(1.0)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["timeline.json", "timeline.png"]
    assert not (distributed_run / "timeline.png").exists()


def test_mistakes_about_timelines_are_one_line(distributed_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["profile", *words]) == 2
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        return line

    run = f"run={distributed_run}"
    allowed = "is no option for a run that has been trained; allowed: run, steps, out, format, paths.runs"
    assert refused(run, "experiment=baseline") == f"error: experiment: {allowed}\n"
    assert refused(run, "trace=x.json") == f"error: trace: {allowed}\n"
    assert "out: is where the timelines of a run go; give run=..." in refused("out=here")
    assert "No such file or directory" in refused(run, f"out={distributed_run}/no/where")
    journals = distributed_run / "journals"
    (journals / "timeline-worker-0.jsonl").write_text("no json\n")
    assert refused(run) == "error: timeline-worker-0.jsonl:1: is damaged\n"
    for path in journals.iterdir():
        path.unlink()
    assert "run: 3f2a91c07be4/s2 has no timelines; runs of several processes write them" in refused(run)
