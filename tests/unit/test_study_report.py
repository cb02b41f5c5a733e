"""A study's points from run directories, its parts that this machine refuses, and the report made of them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finished_runs import finish

from nmt.config import from_dict, to_dict
from nmt.config.identity import run_id
from nmt.runs import LocalRunStore
from sweeps.apart import placed, store_of
from sweeps.plan import make_plan
from sweeps.results import LOG_PERPLEXITY
from sweeps.spec import RowSpec, SweepSpec
from sweeps.studies.claims import StudyClaim, judge
from sweeps.studies.largest import Ladder, climb, grow
from sweeps.studies.network import run_on_hosts
from sweeps.studies.points import EMULATED, Findings, Picture, Point, line, table_of
from sweeps.studies.report import write_study
from sweeps.studies.study import load_study
from sweeps.studies.trained import read_trained

ROWS = (
    RowSpec(label="PS", overrides=("distribution=parameter_server",)),
    RowSpec(label="RingTMP", overrides=("distribution=ring_tmp",)),
    RowSpec(label="not yet"),
)
SPEC = SweepSpec(name="t", title="T", rows=ROWS, replicates=1, apart=True, columns=("log_perplexity", "idle_mean"))
TIMES = {"busy": 1.0, "copy": 0.0, "wait_recv": 1.0, "wait_barrier": 0.0, "wait_send": 0.0, "oversubscribed": False}


def train(number: int, cores: int) -> None:
    (run,) = make_plan(SPEC, ["tracking=none", "executor.workers=1"]).rows[number].runs
    config = from_dict(placed(to_dict(run.config), store_of(run.run_id)))
    process = {"times": TIMES, "step_seconds": 2.0}
    traffic = {"bytes_per_step": 8.0, "worker_sent_bytes_per_step": 4.0}
    report = {"processes": {"worker 0": process, "worker 1": process}, "traffic": traffic}
    finish(config, 20.0, distribution=report)
    store, name = LocalRunStore(config.paths.runs), run_id(config)
    store.write_json(name, "env.json", {"cpu": {"cores": cores}})
    lines = [
        {"kind": "evaluation", "step": step, "target_tokens": 10 * step, "seconds": 1.0 * step,
         LOG_PERPLEXITY: 3.0 - step / 100, "parameters_sha256": f"{step:064x}"}
        for step in (10, 20)
    ]  # fmt: skip
    store.write_text(name, "metrics.jsonl", "\n".join(map(json.dumps, lines)) + "\n")


def of(findings: Findings, row: str) -> dict[tuple[str, str], Any]:
    return {
        (one.figure, "/".join(one.condition)): one.refused or one.value for one in findings.points if one.row == row
    }


def test_points_of_trained_rows() -> None:
    train(0, cores=8)
    train(1, cores=1)
    found = read_trained(make_plan(SPEC, ["tracking=none", "executor.workers=1"]), "e", curves=True)
    ps, ring = of(found, "PS"), of(found, "RingTMP")
    assert (ps["idle_mean", ""], ps["wait_recv_max", ""], ps["node_bytes", ""]) == (0.5, 0.5, 4.0)
    assert (ps["loss", "step 10"], ps["loss", "step 20"], ps["end_loss", ""]) == (2.9, 2.8, 2.8)
    assert ps["bits", "step 20"] == 0.0  # the digest's first digits
    assert ring["idle_mean", ""] == "2 processes compute on 1 core"
    assert ring["node_bytes", ""] == 4.0
    assert of(found, "not yet") == {("loss", ""): "its run is not complete"}
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["PS", "RingTMP", "not yet"]
    assert any("2 processes compute on 1 core" in text for text in table.legend)
    seconds = [one for one in found.pictures if one.name == "e-seconds"]
    assert seconds == []  # one row alone has times that may be shown, and compares nothing


@pytest.mark.parametrize(
    ("fits", "most", "killed"), [(-1, None, 0), (0, 0, 1), (2, 2, 3), (4, 4, None)], ids=["none", "one", "some", "all"]
)
def test_the_ladder_finds_both_sides_of_the_limit(
    fits: int, most: int | None, killed: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sweeps.studies import largest
    from sweeps.studies.gang import GangEnd

    tried: list[Any] = []

    def run(config: Any, memory: int) -> GangEnd:
        tried.append(config)
        return GangEnd("trained" if config <= fits else "killed", 100 * config, tmp_path)

    monkeypatch.setattr(largest, "run_gang", run)
    monkeypatch.setattr("nmt.models.parameters.planned_parameters", lambda config: 10 * (config + 1))
    ladder = climb([0, 1, 2, 3, 4], 1 << 20)  # type: ignore[list-item]
    assert (ladder.most, ladder.killed, ladder.trouble) == (most, killed, "")
    assert len(tried) <= 3
    assert isinstance(ladder, Ladder)


def test_what_the_machine_refuses_is_said_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.studies.largest.refusal_of_memory", lambda: "no control groups here")
    monkeypatch.setattr("sweeps.studies.network.refusal_of_hosts", lambda: "no networks here")
    study = load_study("ringtmp")
    (scalability, largest) = study.of(["scalability", "largest"])
    assert scalability.network is not None
    assert largest.largest is not None
    found = grow(largest.largest, []) + run_on_hosts(scalability.network, [])
    assert {one.refused for one in found.points} == {"no control groups here", "no networks here"}
    assert found.remarks == (
        "Not measured: no control groups here.",
        "Not measured over real cables: no networks here.",
    )


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    study = load_study("ringtmp")
    (experiment,) = study.of(["idle"])
    condition = ("emulated", "8 nodes")
    points = (
        Point(row="ring", figure="f", value=1.0, condition=condition, kind=EMULATED),
        Point(row="ps", figure="f", value=2.0, condition=condition, kind=EMULATED),
        Point(row="asp", figure="f", refused="3 processes compute on 2 cores"),
    )
    found = Findings(
        points=points,
        tables=(table_of("A <table>", ("row", "f"), [("ring", "1.0"), ("ps", "2.0")], ["a note"]),),
        pictures=(
            Picture(name="p", title="F", x_title="nodes", y_title="f", curves=(line("ring", (1.0, 2.0), (1.0, 3.0)),)),
        ),
        remarks=("Emulated: on paper.",),
    )
    claim = StudyClaim(
        id="c", statement="Rings are <good>.", place="P", experiment="idle", figure="f", rows=("ring",),
        against=("ps", "asp"), expect="less", limits="Only so far.",
    )  # fmt: skip
    report = write_study(study, [experiment], {"idle": found}, [judge(claim, found)], tmp_path / "r")
    reader = Text()
    reader.feed(report.page.read_text())
    page, document = " ".join(reader.said), report.document.read_text()
    for text in (
        "Rings are <good>.", "held (emulated)", "Only so far.", "asp: 3 processes compute on 2 cores", "A <table>",
        "a note", "Emulated: on paper.", "1 claim: 1 held", "1 of 1 comparisons hold",
    ):  # fmt: skip
        assert text in page, text
        assert text in document, text
    assert "<good>" not in report.page.read_text()
    assert "![F](p.png)" in document
    assert (tmp_path / "r" / "p.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(report.data.read_text())
    assert record["claims"][0]["verdict"] == "held"
    assert [one["value"] for one in record["experiments"][0]["points"]] == [1.0, 2.0, None]
