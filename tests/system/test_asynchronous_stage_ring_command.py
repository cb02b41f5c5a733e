"""`distribution.schedule=async` as a user types it: a run of its own, which resumes as if nothing had been."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import in_a_session, stop_at_a_step
from delayed_gradients import DelayedGradients
from test_ring_command import TRAIN, digests, losses, the_run

from nmt.config import compose
from nmt.runs import LocalRunStore
from nmt.training.checkpoint import digest_tensors, find_checkpoint, read_checkpoint
from nmt.training.workload import workload_spec

Command = Callable[..., tuple[int, str, str]]
SAME = [*TRAIN, "loss.vocab_chunks=2"]
RING = ["distribution=ring_tmp", "distribution.mode=stage", "distribution.nodes=2", "distribution.schedule=async"]
# Without shadows whoever loses a node has lost two neighbours: all go back to a checkpoint that no evaluation made.
LOST = ["distribution.shadows=0", "distribution.faults=[kill@worker1.forward:9]", "training.checkpoint_every_steps=4"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As nodes have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_goes_back_to_its_checkpoint_has_the_bits_of_delayed_gradients(nmt: Command, tmp_path: Path) -> None:
    code, _, error = nmt("train", *SAME, *RING, *LOST, f"paths.runs={tmp_path}")
    assert code == 0, error
    run_id, directory, result = the_run(tmp_path)
    assert "nobody has the state of" in (directory / "events.jsonl").read_text()
    one = DelayedGradients({})
    one.start(workload_spec(compose(SAME), "cpu"))
    stats, evaluated = [], []
    for step in range(1, 13):
        stats.append(one.step(step))
        if step % 6 == 0:
            evaluated.append(digest_tensors(one.state()["parameters"]))
    assert losses(directory) == [said.loss for said in stats]
    assert digests(directory) == evaluated
    last = read_checkpoint(find_checkpoint(LocalRunStore(tmp_path), run_id, "last"))
    assert digest_tensors(last["previous_parameters"]) == digest_tensors(one.state()["previous_parameters"])
    assert result["distribution"]["staleness"]["max"] == 1
    assert result["distribution"]["staleness"]["mean"] == 1.0  # of the attempt that went on at step 9


@pytest.mark.exhaustive
def test_a_run_that_was_stopped_goes_on_with_another_number_of_nodes(nmt: Command, tmp_path: Path) -> None:
    assert nmt("train", *SAME, *RING, f"paths.runs={tmp_path / 'whole'}")[0] == 0
    command = [sys.executable, "-m", "nmt.cli", "train", *SAME, *RING, f"paths.runs={tmp_path / 'both'}"]
    stop_at_a_step(in_a_session(command), codes=(0, 75))
    subprocess.run([*command, "distribution.nodes=3"], check=True, capture_output=True)
    (_, whole, _), (_, both, _) = the_run(tmp_path / "whole"), the_run(tmp_path / "both")
    assert losses(both) == losses(whole)
    assert digests(both) == digests(whole)


def test_a_schedule_of_stages_is_refused_where_there_are_none(nmt: Command, tmp_path: Path) -> None:
    code, _, error = nmt("train", *SAME, *RING[:1], "distribution.mode=rotate", RING[3], f"paths.runs={tmp_path}")
    assert code == 2
    assert "distribution.schedule: in mode rotate nodes wait for whole sums anyway; allowed: flush" in error
