"""Runs whose processes are under limits of the kernel: memory that is not enough, and cables between hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.config import RunConfig, compose
from nmt.records import read_record
from nmt.runs import LocalRunStore
from sweeps.studies.gang import run_gang
from sweeps.studies.limits import refusal_of_hosts, refusal_of_memory

pytestmark = pytest.mark.exhaustive
TINY = [
    "experiment=transformer",
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 100, validation_size: 10, test_size: 10}",
    "tokenizer=toy_words",
    "model.embedding.share=false",
    "scale=smoke",
    "tracking=none",
    "device=cpu",
    "threads=1",
    "search=greedy",
    "batch.size=8",
    "batch.micro_batches=4",
    "training.max_steps=2",
    "training.log_every_steps=1",
    "validation.every_steps=2",
]
RING = ["distribution=ring_tmp", "distribution.nodes=2"]
ROOM, NO_ROOM = 1 << 30, 16 << 20  # bytes: far more than a node needs, and less than what it takes to begin


def config(tmp_path: Path, *words: str) -> RunConfig:
    return compose([*TINY, *words, f"paths.runs={tmp_path}"])


@pytest.fixture
def memory() -> None:
    if refused := refusal_of_memory():
        pytest.skip(refused)


@pytest.mark.usefixtures("memory")
def test_who_outgrows_its_memory_is_killed_by_the_kernel_and_that_is_known_ever_after(tmp_path: Path) -> None:
    asked = config(tmp_path, *RING)
    killed = run_gang(asked, memory=NO_ROOM)
    assert killed.ended == "killed"
    assert 0 < killed.peak_bytes <= NO_ROOM
    trained = run_gang(asked, memory=ROOM)
    assert trained.ended == "trained"
    assert NO_ROOM < trained.peak_bytes < ROOM
    assert read_record(trained.directory, "result.json") is not None
    assert [run_gang(asked, memory=size) for size in (NO_ROOM, ROOM)] == [killed, trained]  # nothing is run again


@pytest.mark.usefixtures("memory")
def test_only_the_limited_role_is_limited(tmp_path: Path) -> None:
    asked = config(tmp_path, "distribution=parameter_server", "distribution.workers=1")
    assert run_gang(asked, memory=NO_ROOM, limited="nobody").ended == "trained"


def test_hosts_on_cables_have_the_bits_of_one_process(tmp_path: Path) -> None:
    if refused := refusal_of_hosts():
        pytest.skip(refused)
    digests = []
    for words in (RING, ["distribution=parameter_server", "distribution.workers=2"]):
        end = run_gang(config(tmp_path, *words), mbit=100.0)
        assert end.ended == "trained"
        best = (LocalRunStore(end.directory.parent).read_json(end.directory.name, "result.json") or {})["best"]
        digests.append(best["checkpoint_digest"])
    assert digests[0] == digests[1]
