"""A disturbed row beside the undisturbed one of the same training: its loss, and its parameters bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_runs import finish

from nmt.config import from_dict, to_dict
from nmt.config.identity import run_id
from nmt.runs import LocalRunStore
from nmt.training.faults import Faults
from sweeps.aggregate import aggregate
from sweeps.apart import placed, store_of
from sweeps.plan import SweepPlan, make_plan
from sweeps.results import LOG_PERPLEXITY
from sweeps.spec import RowSpec, SweepSpec
from sweeps.undisturbed import evaluations

RING = ("distribution=ring_tmp", "distribution.nodes=2")
KILLED = "distribution.faults=[kill@worker1.forward:5]"
ROWS = (
    RowSpec(label="disturbed", overrides=(*RING, KILLED)),
    RowSpec(label="left alone", overrides=RING),
    RowSpec(label="another training", overrides=(*RING, KILLED, "training.max_steps=7")),
)


def plan_of() -> SweepPlan:
    return make_plan(SweepSpec(name="t", title="T", rows=ROWS, replicates=1, apart=True), ["tracking=none"])


def line(step: int, loss: float, bits: str) -> str:
    return json.dumps({"kind": "evaluation", "step": step, LOG_PERPLEXITY: loss, "parameters_sha256": bits})


def train(number: int, *lines: str) -> None:
    (run,) = plan_of().rows[number].runs
    config = from_dict(placed(to_dict(run.config), store_of(run.run_id)))
    finish(config, 20.0)
    LocalRunStore(config.paths.runs).write_text(run_id(config), "metrics.jsonl", "\n".join([*lines, "{torn"]))


@pytest.mark.parametrize(
    ("bits", "loss", "expected"),
    [("b", 2.0, (0.0, 1.0)), ("c", 2.0, (0.0, 0.0)), ("c", 2.25, (0.25, 0.0))],
    ids=["the same", "other bits", "another loss"],
)
def test_loss_and_bits(bits: str, loss: float, expected: tuple[float, float]) -> None:
    train(0, line(5, 3.0, "a"), line(10, 9.0, "x"), line(10, loss, bits))  # step 10 was made again
    train(1, line(5, 3.0, "a"), line(10, 2.0, "b"))
    train(2, line(5, 3.0, "a"))
    disturbed, alone, other = aggregate(plan_of())
    assert (disturbed.processes["loss_difference"].mean, disturbed.processes["same_bits"].mean) == expected
    assert "same_bits" not in alone.processes
    assert "same_bits" not in other.processes  # nothing was trained like it without a failure


def test_an_evaluation_that_is_missing_is_no_equality() -> None:
    train(0, line(5, 3.0, "a"))
    train(1, line(5, 3.0, "a"), line(10, 2.0, "b"))
    assert aggregate(plan_of())[0].processes["same_bits"].mean == 0.0


def test_a_run_without_evaluations_has_none(tmp_path: Path) -> None:
    assert evaluations(tmp_path) == {}


def test_a_fault_that_happens_once_spares_who_goes_on_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    monkeypatch.setattr("nmt.training.faults.signal.pthread_kill", lambda thread, number: sent.append(number))
    faults = Faults(["kill@evaluation:5:once", "stop@recorded:6"])
    faults.reach("evaluation", 5)
    faults.resumed()
    faults.reach("evaluation", 5)
    faults.reach("recorded", 6)
    assert len(sent) == 2
