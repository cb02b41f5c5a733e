"""`distribution.mode=rotate` as a user types it: a run of its own, like that of one process; back to checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_ring_command import TRAIN, digests, losses, the_run

from nmt.runs import LocalRunStore

Command = Callable[..., tuple[int, str, str]]
RING = ["distribution=ring_tmp", "distribution.mode=rotate", "distribution.nodes=2"]


def test_it_is_a_run_of_its_own_with_the_losses_of_one_process_but_for_rounding(nmt: Command, tmp_path: Path) -> None:
    for name, words in [("single", []), ("ring", RING)]:
        code, _, error = nmt("train", *TRAIN, *words, f"paths.runs={tmp_path / name}")
        assert code == 0, error
    (run_id, single, _), (ring_id, ring, result) = the_run(tmp_path / "single"), the_run(tmp_path / "ring")
    assert ring_id != run_id
    assert losses(ring) == pytest.approx(losses(single), rel=1e-5)
    assert list(result["distribution"]["processes"]) == ["worker 0", "worker 1"]
    assert len(result["distribution"]["cut"]["groups"]) > 2
    assert {path.name for path in (ring / "journals").iterdir()} == {f"timeline-worker-{one}.jsonl" for one in (0, 1)}


@pytest.mark.exhaustive
def test_a_run_that_loses_a_shard_goes_back_to_its_checkpoint(nmt: Command, tmp_path: Path) -> None:
    assert nmt("train", *TRAIN, *RING, f"paths.runs={tmp_path / 'whole'}")[0] == 0
    lost = ["distribution.shadows=0", "distribution.faults=[kill@worker1.turn:9]"]
    saved = ["training.checkpoint_every_steps=5"]
    code, _, error = nmt("train", *TRAIN, *RING, *lost, *saved, f"paths.runs={tmp_path / 'ring'}")
    assert code == 0, error
    assert digests(the_run(tmp_path / "ring")[1]) == digests(the_run(tmp_path / "whole")[1])
    events = LocalRunStore(tmp_path / "ring").directory(the_run(tmp_path / "ring")[0]) / "events.jsonl"
    assert "shard 1 of 2 of the parameters is lost: worker 1 is gone" in events.read_text()


def test_too_few_groups_of_micro_batches_are_refused_in_a_sentence(nmt: Command, tmp_path: Path) -> None:
    words = [word for word in TRAIN if not word.startswith("batch.micro_batches")]
    code, _, error = nmt("train", *words, *RING, f"paths.runs={tmp_path}")
    assert code == 2
    assert "distribution.nodes: 2 nodes cannot share the 1 group of micro-batches of a step" in error
