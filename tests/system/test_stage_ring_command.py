"""`distribution=ring_tmp` as a user types it: the same run as that of one process, to the bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import in_a_session, stop_at_a_step
from test_ring_command import TRAIN, digests, losses, the_run

from nmt.runs import LocalRunStore

Command = Callable[..., tuple[int, str, str]]
SAME = [*TRAIN, "loss.vocab_chunks=2"]
TORUS = ["distribution=ring_tmp", "distribution.nodes=1", "distribution.rings=2"]
RING = ["distribution=ring_tmp", "distribution.mode=stage", "distribution.nodes=2", "distribution.schedule=flush"]


def test_it_is_the_run_of_one_process(nmt: Command, tmp_path: Path) -> None:
    for name, words in [("single", []), ("ring", RING)]:
        code, _, error = nmt("train", *SAME, *words, f"paths.runs={tmp_path / name}")
        assert code == 0, error
    (run_id, single, expected), (ring_id, ring, result) = the_run(tmp_path / "single"), the_run(tmp_path / "ring")
    assert ring_id == run_id
    assert losses(ring) == losses(single)
    assert digests(ring) == digests(single)
    assert result["best"] == expected["best"]
    assert list(result["distribution"]["processes"]) == ["worker 0", "worker 1"]
    assert sum(map(len, result["distribution"]["cut"]["stages"])) > 4
    assert {path.name for path in (ring / "journals").iterdir()} == {f"timeline-worker-{one}.jsonl" for one in (0, 1)}


def test_several_rings_that_lose_a_node_are_the_run_of_one_process(nmt: Command, tmp_path: Path) -> None:
    assert nmt("train", *SAME, f"paths.runs={tmp_path / 'single'}")[0] == 0
    lost = ["distribution.faults=[kill@worker1.backward:9]", "distribution.replace_lost=false"]
    code, _, error = nmt("train", *SAME, *TORUS, *lost, f"paths.runs={tmp_path / 'torus'}")
    assert code == 0, error
    (run_id, single, _), (torus_id, torus, result) = the_run(tmp_path / "single"), the_run(tmp_path / "torus")
    assert torus_id == run_id
    assert digests(torus) == digests(single)
    assert losses(torus) == losses(single)
    assert result["distribution"]["cut"]["rings"] == 1  # of the two that began
    assert "worker 1" in [one["lost"] for one in result["distribution"]["recoveries"]]


@pytest.mark.exhaustive
def test_a_run_that_loses_two_neighbours_goes_back_to_its_checkpoint(nmt: Command, tmp_path: Path) -> None:
    """Without shadows one node is as good as two neighbours."""
    assert nmt("train", *SAME, f"paths.runs={tmp_path / 'single'}")[0] == 0
    lost = ["distribution.shadows=0", "distribution.faults=[kill@worker1.forward:9]"]
    saved = ["training.checkpoint_every_steps=5"]
    code, _, error = nmt("train", *SAME, *RING, *lost, *saved, f"paths.runs={tmp_path / 'ring'}")
    assert code == 0, error
    assert digests(the_run(tmp_path / "ring")[1]) == digests(the_run(tmp_path / "single")[1])
    events = LocalRunStore(tmp_path / "ring").directory(the_run(tmp_path / "ring")[0]) / "events.jsonl"
    assert "nobody has the state of" in events.read_text()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("first", "second"), [(RING, []), ([], RING)], ids=["ring first", "one process first"])
def test_each_goes_on_from_the_others_checkpoint(
    nmt: Command, tmp_path: Path, first: list[str], second: list[str]
) -> None:
    assert nmt("train", *SAME, f"paths.runs={tmp_path / 'whole'}")[0] == 0
    command = [sys.executable, "-m", "nmt.cli", "train", *SAME, f"paths.runs={tmp_path / 'both'}"]
    stop_at_a_step(in_a_session([*command, *first]), codes=(0, 75))
    subprocess.run([*command, *second], check=True, capture_output=True)
    (_, whole, _), (_, both, _) = the_run(tmp_path / "whole"), the_run(tmp_path / "both")
    assert losses(both) == losses(whole)
    assert digests(both) == digests(whole)
