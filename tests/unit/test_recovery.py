"""A strategy that has lost its state: back to the newest checkpoint, told in a line, and not for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed.strategy import StateLost
from nmt.errors import UserError
from nmt.runs import LocalRunStore
from nmt.training.recovery import train_through_losses

RUN = "0123456789ab/s1"


class Training:
    """Loses its state as often as `checkpoints` has entries, each the newest checkpoint that it has written by then."""

    def __init__(self, store: LocalRunStore, *checkpoints: int):
        self.store, self.checkpoints = store, list(checkpoints)
        self.again: list[bool] = []
        self.events: list[dict[str, Any]] = []

    def __call__(self, again: bool) -> str:
        self.again.append(again)
        if not self.checkpoints:
            return "trained"
        if step := self.checkpoints.pop(0):
            self.store.write_text(RUN, f"checkpoints/step-{step:08d}.pt", "")
        raise StateLost("server 1 is gone and nobody shadows its shard")

    def note(self, kind: str, **facts: Any) -> None:
        self.events.append({"kind": kind, **facts})


def run(training: Training, retries: int) -> str:
    return train_through_losses(training, training.store, RUN, training.note, retries)


def test_it_goes_on_from_the_newest_checkpoint_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(LocalRunStore(tmp_path), 0, 40)
    assert run(training, retries=1) == "trained"
    assert training.again == [False, True, True]
    notice = "server 1 is gone and nobody shadows its shard"
    assert training.events == [
        {"kind": "lost", "step": 0, "back_to": 0, "notice": notice},
        {"kind": "lost", "step": 40, "back_to": 40, "notice": notice},
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"run {RUN}: {notice}: back to the first step",
        f"run {RUN}: {notice}: back to the checkpoint of step 40",
    ]


def test_losses_count_from_the_checkpoint_that_they_lead_back_to(tmp_path: Path) -> None:
    training = Training(LocalRunStore(tmp_path), 10, 10, 20, 20, 30)
    assert run(training, retries=2) == "trained"
    stuck = Training(LocalRunStore(tmp_path / "stuck"), 10, 10, 20, 20, 20, 20)
    with pytest.raises(UserError, match=r"3 times since the checkpoint of step 20; .*distribution.shadows=1") as error:
        run(stuck, retries=2)
    assert "\n" not in str(error.value)
    assert len(stuck.again) == 5


def test_without_retries_the_first_loss_is_the_end(tmp_path: Path) -> None:
    training = Training(LocalRunStore(tmp_path), 0)
    with pytest.raises(UserError, match="shadows its shard; the same command goes on from the first step"):
        run(training, retries=0)
    assert [event["kind"] for event in training.events] == ["lost"]
