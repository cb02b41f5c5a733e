"""A sweep on real text by several processes a run, through Ray Tune, has every figure of one in single processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from logical_cluster import LogicalCluster

from nmt.events import EVENTS, read_events
from nmt.runs import LocalRunStore

pytestmark = [pytest.mark.ray, pytest.mark.exhaustive]

STEPS = 24
SMALL = [
    *("scale=smoke", "data=multi30k_en_de", "data.max_sentences=2000", "tokenizer=spm_bpe_4k"),
    *("tokenizer.vocab_size=600", "batch.size=32", "batch.micro_batches=4", "search=greedy", "search.max_length=12"),
    *("validation.search.max_length=12", f"training.max_steps={STEPS}", "training.log_every_steps=1"),
    *("model.embedding.share=false", "model.embedding.tie_output=false", "loss.vocab_chunks=2"),  # what can be cut
    *(f"validation.every_steps={STEPS // 2}", "optimizer.clip_norm=0.5", "tracking=none", "threads=1", "device=cpu"),
]
SERVED = ["distribution=parameter_server", "distribution.workers=2", "distribution.servers=2"]
ROUND = ["distribution=ring_tmp", "distribution.mode=stage", "distribution.nodes=2", "distribution.schedule=flush"]
OF_ONE_EXECUTION = ("second", "timing", "memory", "joule", "energy", "idle", "staleness")  # in the names of columns


@pytest.fixture(scope="module")
def cluster(ray_environment: None) -> Iterator[LogicalCluster]:
    """A node with a CPU in Ray's books for each of a run's five processes, and one for what drives the sweep."""
    with LogicalCluster(nodes=1, cpus=6, gpus=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"label": "attention", "experiment": "t5_add_512"},
        {"label": "none", "experiment": "t5_none_state"},
    ]
    path = tmp_path_factory.mktemp("sweep") / "two_rows.yaml"
    path.write_text(json.dumps({"title": "Two rows", "replicates": 2, "baseline": "none", "rows": rows}))
    return path


def sweep(cluster: LogicalCluster, spec: Path, corpus: Path, runs: Path, cache: Path, *words: str) -> LocalRunStore:
    """`nmt sweep` as a user types it, into a directory that is not there yet."""
    assert not runs.exists()
    command = [
        *(sys.executable, "-m", "nmt.cli", "sweep", f"sweep={spec}", *SMALL, f"data.dir={corpus}", "columns=all"),
        *(f"paths.runs={runs}", f"paths.cache={cache}", f"paths.reports={runs / 'reports'}", "executor=ray_tune"),
        *(f"executor.address={cluster.address}", *words),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | cluster.environment | {"COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return LocalRunStore(runs)


def table(store: LocalRunStore) -> list[dict[str, str]]:
    """table.csv: a row's figures by column, with every digit."""
    (path,) = store.root.glob("reports/**/table.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


def result(store: LocalRunStore, run_id: str) -> dict[str, Any]:
    found = store.read_json(run_id, "result.json")
    assert found is not None
    return found


def trained_by(store: LocalRunStore, run_id: str) -> int:
    """The process that made all of a run's steps, in its first attempt; nothing of it was there before."""
    events = read_events(store.directory(run_id) / EVENTS)
    assert [event["kind"] for event in events if event["kind"] in ("start", "resume")] == ["start"]
    assert store.status(run_id).attempts == 1
    assert result(store, run_id)["steps"] == STEPS
    (pid,) = {event["pid"] for event in events}
    assert pid != os.getpid()
    return int(pid)


def helpers_of(store: LocalRunStore, run_id: str) -> dict[str, int]:
    """Process ids of a run's workers and servers, as each has written it into its own timeline."""
    found = {}
    for path in (store.directory(run_id) / "journals").glob("timeline-*.jsonl"):
        header = json.loads(path.read_text().splitlines()[0])
        found[header["process"]] = header["pid"]
    return found


def losses(store: LocalRunStore, run_id: str) -> list[str]:
    lines = map(json.loads, (store.directory(run_id) / "metrics.jsonl").read_text().splitlines())
    return [line["loss_hex"] for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(
    cluster: LogicalCluster, two_rows: Path, multi30k: Path, caches: Path, tmp_path_factory: pytest.TempPathFactory
) -> LocalRunStore:
    """The sweep in single processes."""
    return sweep(cluster, two_rows, multi30k, tmp_path_factory.mktemp("alone") / "runs", caches)


@pytest.mark.parametrize(
    ("words", "processes"),
    [(SERVED, ["server 0", "server 1", "worker 0", "worker 1"]), (ROUND, ["worker 0", "worker 1"])],
    ids=["parameter server", "ring of stages"],
)
def test_every_column_but_time_and_memory_is_that_of_single_processes(
    cluster: LogicalCluster,
    two_rows: Path,
    multi30k: Path,
    caches: Path,
    alone: LocalRunStore,
    tmp_path: Path,
    words: Sequence[str],
    processes: Sequence[str],
) -> None:
    shared = sweep(cluster, two_rows, multi30k, tmp_path / "runs", caches, *words)

    # Exact, so they are the same runs: that each sweep trained them itself has to be seen before they are compared.
    runs = sorted(alone.list_runs())
    assert len(runs) == 4
    assert runs == sorted(shared.list_runs())
    pids = []
    for run in runs:
        helpers = helpers_of(shared, run)
        assert sorted(helpers) == processes
        assert not helpers_of(alone, run)
        pids += [trained_by(shared, run), *helpers.values()]
    assert len(set(pids)) == 4 * (1 + len(processes))  # no process has had a part in two runs
    assert not set(pids) & {trained_by(alone, run) for run in runs}
    for run in runs:
        assert result(shared, run)["distribution"]["processes"].keys() >= set(processes)
        assert "distribution" not in result(alone, run)

    mine, theirs = table(shared), table(alone)
    assert [row["row"] for row in mine] == ["attention", "none"]
    compared = [name for name in mine[0] if not any(mark in name for mark in OF_ONE_EXECUTION)]
    assert {"row", "n", "parameters"} <= set(compared)
    assert len(compared) > len(mine[0]) / 2
    for one, other in zip(mine, theirs, strict=True):
        for name in compared:
            assert one[name] == other[name], name
    assert {name for name in mine[0] if name not in compared} >= {name for name in mine[0] if "seconds" in name}
    for run in runs:
        assert len(losses(shared, run)) == STEPS
        assert losses(shared, run) == losses(alone, run)
        assert result(shared, run)["best"] == result(alone, run)["best"]
