"""A strategy that loses its state in mid-run: the run goes back to its checkpoint and ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from distributed.single import SingleStrategy
from distributed.strategy import StateLost, StepStats
from nmt import registry
from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.errors import UserError
from nmt.events import EVENTS, read_events
from nmt.runs import LocalRunStore
from nmt.train import train

TINY = [
    "scale=smoke",
    "data.options={train_size: 96, validation_size: 8, test_size: 8}",
    "batch.micro_batches=2",
    "training.max_steps=12",
    "training.log_every_steps=1",
    "validation.every_steps=5",
    "tracking=none",
    "device=cpu",
    "threads=1",
]


class Forgetful(SingleStrategy):
    """Loses its state before steps 3 and 8, once each; before step 8 each time while `stubborn`."""

    lost: set[int]
    stubborn = False
    built: list[Mapping[str, Any]]

    def __init__(self, options: Mapping[str, Any] | None = None):
        super().__init__(options)
        Forgetful.built.append(options or {})
        self._steps = b""

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        if index in (3, 8) and (index not in Forgetful.lost or (Forgetful.stubborn and index == 8)):
            Forgetful.lost.add(index)
            raise StateLost(f"server 0 is gone before step {index}, and nobody shadows its shard")
        self._steps += b"%d\n" % index
        return super().step(index, rate_scale, probe, horizon)

    def journals(self) -> Mapping[str, bytes]:
        steps, self._steps = self._steps, b""
        return {"steps": steps}

    def report(self) -> Mapping[str, Any]:
        return {"losses": len(Forgetful.lost), "by": {"server0": 1.5}, "note": "words"}


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Forgetful.lost, Forgetful.stubborn, Forgetful.built = set(), False, []
    monkeypatch.setitem(registry._BUILT_IN["strategy"], "forgetful", f"{__name__}:Forgetful")
    registry._table.cache_clear()
    yield
    monkeypatch.undo()
    registry._table.cache_clear()


def config(runs: Path, *words: str) -> RunConfig:
    return compose([*TINY, f"paths.runs={runs}", *words])


def digests(runs: Path, run_id: str) -> list[tuple[int, str, str]]:
    lines = (runs / run_id / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "evaluation"]
    return [(one["step"], one["parameters_sha256"], one["optimizer_sha256"]) for one in records]


def test_a_run_goes_back_to_its_checkpoint_and_ends_with_the_same_bits(tmp_path: Path, forgetful: None) -> None:
    undisturbed = train(config(tmp_path))
    words = ["distribution.name=forgetful", "distribution.faults=[kill@server0.apply:1]"]
    outcome = train(config(tmp_path, *words))
    assert (outcome.state, Forgetful.lost) == ("finished", {3, 8})
    assert outcome.run_id != undisturbed.run_id  # a strategy that does not say is taken for inexact
    assert digests(tmp_path, outcome.run_id) == digests(tmp_path, undisturbed.run_id)

    directory = tmp_path / outcome.run_id
    lost = [event for event in read_events(directory / EVENTS) if event["kind"] == "lost"]
    assert [(event["step"], event["back_to"]) for event in lost] == [(2, 0), (7, 5)]
    assert all("nobody shadows its shard" in event["notice"] for event in lost)
    # Each step stands once, in metrics and in the journal, although some were made twice.
    assert (directory / "journals/steps").read_text().split() == [str(step) for step in range(1, 13)]
    steps = [record["step"] for record in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()[1:])
             if record["kind"] == "train"]  # fmt: skip
    assert steps == list(range(1, 13))
    result = LocalRunStore(tmp_path).read_json(outcome.run_id, "result.json")
    assert result is not None
    assert result["distribution"] == {"losses": 2, "by": {"server0": 1.5}, "note": "words"}
    assert LocalRunStore(tmp_path).read_json(undisturbed.run_id, "result.json").keys() == result.keys() - {
        "distribution"
    }
    # An injected failure happens once.
    assert [options["faults"] for options in Forgetful.built] == [["kill@server0.apply:1"], [], []]
    assert {options["train_id"] for options in Forgetful.built} == {outcome.run_id.partition("/")[0]}


def test_a_state_that_is_lost_again_and_again_is_a_failed_run_that_can_be_resumed(
    tmp_path: Path, forgetful: None
) -> None:
    Forgetful.stubborn = True
    words = ["distribution.name=forgetful", "executor.retries=1"]
    Forgetful.lost.add(3)
    with pytest.raises(UserError, match="2 times since the checkpoint of step 5"):
        train(config(tmp_path, *words))
    (run_id,) = LocalRunStore(tmp_path).list_runs()
    status = LocalRunStore(tmp_path).status(run_id)
    assert (status.state, "nobody shadows its shard" in status.error) == ("failed", True)
    Forgetful.stubborn = False
    assert train(config(tmp_path, *words)).state == "finished"
