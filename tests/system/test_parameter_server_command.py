"""`distribution=parameter_server` as a user types it: the run of `distribution=single`, and nothing left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import SECONDS, stop_at_a_step

from distributed.parameter_server.replay import trace_name
from distributed.parameter_server.trace import read_trace
from nmt.cli import main
from nmt.events import EVENTS, read_events
from nmt.runs import LocalRunStore

Command = Callable[..., tuple[int, str, str]]
TRAIN = [
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 400, validation_size: 20, test_size: 20}",
    "scale=smoke",
    "experiment=t5_add_512",
    "tracking=none",
    "device=cpu",
    "threads=1",
    "batch.size=32",
    "batch.micro_batches=4",
    "batch.groups=2",
    "model.dropout_mix=0.1",
    "training.max_steps=12",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=4",
    "validation.every_steps=6",
]
SERVERS = ["distribution=parameter_server", "distribution.workers=2", "distribution.servers=2"]
TIMES = {"seconds", "evaluation_seconds", "tokens_per_second", "timing", "peak_memory_bytes", "convergence", "energy"}
# Step 4 takes long: a signal that is sent once step 1 is told comes while steps are under way.
SLOW = "distribution.faults=[delay@worker0.forward:4:10]"


def bits(runs: Path) -> dict[str, Any]:
    """All that the one run in a directory recorded, but for times, memory and what its processes did."""
    store = LocalRunStore(runs)
    (run_id,) = store.list_runs()
    lines = map(json.loads, (store.directory(run_id) / "metrics.jsonl").read_text().splitlines())
    result = store.read_json(run_id, "result.json")
    assert result is not None
    return {
        "run": run_id,
        "records": [
            {
                name: value
                for name, value in line.items()
                if name not in TIMES and not name.startswith(("distribution/", "energy/"))
            }
            for line in lines
        ],
        "result": {name: value for name, value in result.items() if name not in TIMES | {"distribution"}},
        "convergence": {name: value for name, value in result["convergence"].items() if name != "seconds"},
        "decodes": {path.name: path.read_text() for path in (store.directory(run_id) / "decodes").glob("*.txt")},
        "state": store.status(run_id).state,
    }


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("single") / "runs"
    assert main(["train", *TRAIN, f"paths.runs={runs}"]) == 0
    return bits(runs)


def session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def assert_nothing_is_left(leader: int) -> None:
    """No process of a session: with them go their ports and their memory, which has no name outside of them."""
    for process in session(leader):
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], SECONDS)[0], f"process {process} goes on"
        finally:
            os.close(descriptor)
    assert session(leader) == []


def started(runs: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nmt.cli", "train", *TRAIN, f"paths.runs={runs}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | (env or {}),
    )


def test_it_is_the_run_of_one_process_and_its_times_are_drawn(
    nmt: Command, single: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "servers"
    assert nmt("train", *TRAIN, *SERVERS, f"paths.runs={runs}")[0] == 0
    assert bits(runs) == single
    directory = runs / single["run"]
    report = json.loads((directory / "result.json").read_text())["distribution"]
    assert list(report["processes"]) == ["server 0", "server 1", "worker 0", "worker 1"]
    journals = {path.name for path in (directory / "journals").iterdir()}
    assert {"timeline-worker-1.jsonl", "timeline-server-0.jsonl"} <= journals
    evaluations = [line for line in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
                   if line["kind"] == "evaluation"]  # fmt: skip
    assert all(any(name.startswith("distribution/") for name in line) for line in evaluations)

    monkeypatch.setenv("NMT_RUNS", str(runs))
    code, shown, _ = nmt("status")
    assert code == 0 and single["run"].partition("/")[0] in shown and "finished" in shown
    code, _, error = nmt("profile", f"run={single['run']}", f"out={tmp_path / 'drawn'}")
    assert code == 0, error
    assert {path.suffix for path in (tmp_path / "drawn").iterdir()} == {".png", ".json"}


@pytest.mark.exhaustive
def test_joules_of_a_host_count_once_whatever_processes_read_them(tmp_path: Path) -> None:
    package, ended = tmp_path / "powercap/intel-rapl:0", threading.Event()
    package.mkdir(parents=True)
    for name, content in (("name", "package-0"), ("max_energy_range_uj", "60000000"), ("energy_uj", "0")):
        (package / name).write_text(content)
    process = started(tmp_path / "runs", *SERVERS, env={"S2S_POWERCAP": str(package.parent)})
    used = 0
    while process.poll() is None and not ended.wait(0.01):  # 100 W, and the counter wraps round
        used += 1
        (package / "new").write_text(str(used * 1_000_000 % 60_000_000))
        (package / "new").rename(package / "energy_uj")
    assert process.wait() == 0
    assert_nothing_is_left(process.pid)
    result = next((tmp_path / "runs").glob("*/*/result.json"))
    energy = json.loads(result.read_text())["energy"]
    assert 0 < energy["training_joules"] + energy["evaluation_joules"] < used
    assert energy["measured_tokens"] == json.loads(result.read_text())["target_tokens"]
    assert (energy["hosts"], energy["counters"], "left_out" in energy) == (1, ["package-0"], False)


@pytest.mark.exhaustive
def test_an_asynchronous_run_that_dropped_shares_repeats_to_the_bit(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = [
        *("distribution=parameter_server", "distribution.mode=asp", "distribution.workers=3", "distribution.servers=2"),
        *("distribution.shadows=1", "distribution.on_loss=drop", "batch.micro_batches=6", "batch.groups=3"),
        "distribution.faults=[kill@worker1.forward:5,kill@worker0.pushed:9]",
    ]
    process = started(runs, *words)
    assert process.wait() == 0
    (run_id,) = LocalRunStore(runs).list_runs()
    told = json.loads((runs / run_id / "result.json").read_text())["distribution"]
    # Worker 1 had computed nothing of its share when it died; the steps of both losses are told.
    assert told["dropped"] and told["dropped"][0][:2] == [1, 5]
    assert (told["lost"]["workers"], told["lost"]["tickets"]) == (2, len(told["dropped"]))
    assert [recovery["step"] >= 5 for recovery in told["recoveries"]] == [True, True]
    journals = runs / run_id / "journals"
    left_out = [json.loads(line) for line in (journals / "left_out.jsonl").read_text().splitlines()]
    assert [(line["step"], line["leaves"]) for line in left_out] == [
        (step, [share]) for _, step, share in told["dropped"]
    ]
    for shard in range(2):
        trace = read_trace((journals / trace_name(shard)).read_bytes())
        assert [list(ticket) for ticket in trace.dropped()] == [one[1:] for one in told["dropped"]]
        assert sum(map(len, trace.contributors().values())) == 3 * 12 - len(told["dropped"])
    again = subprocess.run(
        [sys.executable, "-m", "nmt.cli", "rerun", f"run={run_id}", f"paths.runs={runs}", "verify=true", "replay=true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "bit-equal over 12 steps" in again.stdout + again.stderr


def test_a_lost_server_without_a_shadow_takes_the_run_back_to_its_checkpoint(
    nmt: Command, single: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "servers"
    words = [*TRAIN, *SERVERS, "distribution.faults=[kill@server1.apply:7]", f"paths.runs={runs}"]
    assert nmt("train", *words)[0] == 0
    assert bits(runs) == single
    (lost,) = [event for event in read_events(runs / single["run"] / EVENTS) if event["kind"] == "lost"]
    assert (lost["back_to"], lost["notice"]) == (6, "shard 1 was on server 1 alone")
    assert "back to the checkpoint of step 6" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_a_signal_writes_a_checkpoint_from_which_one_process_goes_on(
    nmt: Command, single: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    runs = tmp_path / "servers"
    process = started(runs, *SERVERS, SLOW)
    stop_at_a_step(process, number)
    assert_nothing_is_left(process.pid)
    assert LocalRunStore(runs).status(single["run"]).state == "interrupted"
    assert list((runs / single["run"] / "checkpoints").glob("*.pt"))
    assert nmt("train", *TRAIN, f"paths.runs={runs}")[0] == 0
    assert bits(runs) == single


@pytest.mark.parametrize("point", ["recorded:6", pytest.param("evaluation:6", marks=pytest.mark.exhaustive)])
def test_a_trainer_that_is_killed_leaves_no_process(tmp_path: Path, point: str) -> None:
    process = started(tmp_path, *SERVERS, f"faults=[kill@{point}]")
    assert process.wait(SECONDS) == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert_nothing_is_left(process.pid)


@pytest.mark.exhaustive
def test_a_sweep_has_the_table_of_one_process(nmt: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "two.yaml"
    rows = [{"label": "clipped", "overrides": ["optimizer.clip_norm=0.5"]},
            {"label": "smooth", "overrides": ["loss.label_smoothing=0.1"]}]  # fmt: skip
    sweep.write_text(json.dumps({"title": "Two rows", "replicates": 2, "rows": rows}))
    tables, runs_of = [], []
    words = [word for word in TRAIN if not word.startswith("experiment")]  # a row's own
    for name, distribution in (("single", []), ("servers", [*SERVERS, "executor.oversubscribe=true"])):
        runs = tmp_path / name
        code, _, error = nmt("sweep", f"sweep={sweep}", *words, *distribution, "executor=inline",
                             f"paths.runs={runs}", f"paths.reports={tmp_path / name / 'reports'}")  # fmt: skip
        assert code == 0, error
        store = LocalRunStore(runs)
        runs_of.append(sorted(store.list_runs()))
        tables.append({run: store.read_json(run, "result.json")["best"] for run in runs_of[-1]})  # type: ignore[index]
    assert len(runs_of[0]) == 4
    assert runs_of[0] == runs_of[1]
    assert tables[0] == tables[1]
