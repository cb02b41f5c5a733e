"""The run store: whole files or none, claims that die with their process, errors a person can act on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from nmt import runs
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunBusyError, RunStatus, runs_directory

RUN = "0123456789ab/s1"
OTHER = "0123456789ab/s10"


@pytest.fixture
def store(tmp_path: Path) -> LocalRunStore:
    return LocalRunStore(tmp_path)


def make_run(store: LocalRunStore, run_id: str = RUN) -> None:
    store.write_text(run_id, "config.yaml", "{}\n")


def test_json_carries_its_format_version(store: LocalRunStore) -> None:
    store.write_json(RUN, "result.json", {"a": 1})
    assert json.loads((store.directory(RUN) / "result.json").read_text()) == {"format_version": 1, "a": 1}
    assert store.read_json(RUN, "nothing.json") is None


def test_a_newer_format_is_refused_by_name(store: LocalRunStore) -> None:
    store.write_text(RUN, "result.json", '{"format_version": 99}')
    with pytest.raises(UserError, match=r"result\.json: was written in format 99"):
        store.read_json(RUN, "result.json")


NO_STATUS = ['{"state": "asleep"}', '{"state": "running", "step": "three"}']


@pytest.mark.parametrize("damage", ["{", "[]", '"text"', "\x00", "\xff", *NO_STATUS])
def test_damaged_json_is_named_and_set_aside_and_the_rest_goes_on(
    store: LocalRunStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_bytes(RUN, "status.json", damage.encode("latin-1"))
    assert store.status(RUN) == RunStatus()
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{RUN}/status.json is damaged" in message
    moved, reason = sorted((store.directory(RUN) / "quarantine").iterdir())
    assert moved.read_bytes() == damage.encode("latin-1")
    assert str(moved) in message
    assert reason.read_text().startswith("status.json is damaged (")
    assert store.status(RUN) == RunStatus()
    assert len(caplog.records) == 1  # named once


def test_on_a_disk_that_may_not_be_written_damage_is_named_and_stays(
    store: LocalRunStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_text(RUN, "result.json", "{")
    (store.directory(RUN) / "quarantine").write_text("in the way")
    assert store.read_json(RUN, "result.json") is None
    assert "result.json is damaged" in caplog.text
    assert (store.directory(RUN) / "result.json").read_text() == "{"


def test_what_a_writer_put_in_place_of_a_damaged_file_stays(
    store: LocalRunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_text(RUN, "result.json", "{")
    replace = Path.replace

    def as_it_is_moved(path: Path, target: Path) -> Path:
        if path.name == "result.json":
            path.write_text('{"state": "finished"}')
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", as_it_is_moved)
    assert store.read_json(RUN, "result.json") is None
    assert store.read_json(RUN, "result.json") == {"state": "finished"}
    assert list((store.directory(RUN) / "quarantine").iterdir()) == []
    assert "written anew meanwhile" in caplog.text


def test_without_a_status_the_other_files_tell(store: LocalRunStore) -> None:
    store.write_text(RUN, "checkpoints/step-00000005.pt", "")
    assert store.status(RUN).state == "interrupted"
    store.write_json(RUN, "result.json", {"state": "diverged", "steps": 7})
    assert store.status(RUN) == RunStatus(state="diverged", step=7, max_steps=7)


def test_a_line_below_a_torn_one_is_whole(store: LocalRunStore) -> None:
    store.append_line(RUN, "events.jsonl", "one")
    with (store.directory(RUN) / "events.jsonl").open("a") as file:
        file.write("tor")
    store.append_line(RUN, "events.jsonl", "two")
    store.append_line(RUN, "events.jsonl", "three")
    assert (store.directory(RUN) / "events.jsonl").read_text() == "one\ntor\ntwo\nthree\n"


def test_bytes_are_appended_as_they_are(store: LocalRunStore) -> None:
    for data in (b"\x00\n\xff", b"", b"torn"):
        store.append_bytes(RUN, "journals/trace/server0", data)
    assert (store.directory(RUN) / "journals/trace/server0").read_bytes() == b"\x00\n\xfftorn"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(store: LocalRunStore) -> None:
    store.write_text(RUN, "file", "old")

    def fail() -> None:
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        store.write_bytes(RUN, "file", b"new", before_rename=fail)
    assert [path.name for path in store.directory(RUN).iterdir()] == ["file"]
    assert (store.directory(RUN) / "file").read_text() == "old"


def test_a_directory_in_the_way_is_one_clear_line(store: LocalRunStore, tmp_path: Path) -> None:
    (tmp_path / "0123456789ab").write_text("a file where a directory should be")
    with pytest.raises(UserError, match="cannot be written"):
        store.write_text(RUN, "file", "text")


def test_a_full_disk_keeps_the_last_good_file(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse the write half-way, as a full disk does."""
    code = f"""
import resource, signal
from nmt.runs import LocalRunStore
from nmt.errors import UserError
store = LocalRunStore({str(tmp_path)!r})
store.write_bytes({RUN!r}, "checkpoint", b"good")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    store.write_bytes({RUN!r}, "checkpoint", b"x" * 100_000)
except UserError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cannot be written" in out
    assert "last good checkpoint is intact" in out
    assert [path.name for path in (tmp_path / RUN).iterdir()] == ["checkpoint"]
    assert (tmp_path / RUN / "checkpoint").read_bytes() == b"good"


def test_runs_are_listed_by_seed_number(store: LocalRunStore) -> None:
    for run_id in (OTHER, RUN, "0123456789ab/s2"):
        make_run(store, run_id)
    (store.root / "reports" / "s1").mkdir(parents=True)
    (store.root / "reports" / "s1" / "config.yaml").write_text("not a run")
    assert store.list_runs() == [RUN, "0123456789ab/s2", OTHER]


def test_a_run_is_found_by_prefix_or_path(store: LocalRunStore) -> None:
    make_run(store)
    make_run(store, "ffff56789abc/s2")
    assert store.resolve(RUN) == RUN
    assert store.resolve("0123") == RUN
    assert store.resolve("ffff/s2") == "ffff56789abc/s2"
    assert store.resolve(str(store.directory(RUN)) + "/") == RUN
    with pytest.raises(UserError, match="no such run"):
        store.resolve("eeee")
    make_run(store, OTHER)
    with pytest.raises(UserError, match=f"2 runs match; allowed: {RUN}, {OTHER}"):
        store.resolve("0123")


def test_a_claim_excludes_other_processes_and_dies_with_its_own(store: LocalRunStore) -> None:
    make_run(store)
    code = f"""
import sys
from nmt.runs import LocalRunStore, RunStatus
store = LocalRunStore({str(store.root)!r})
with store.claim({RUN!r}):
    store.set_status({RUN!r}, RunStatus(state="running"))
    print("claimed", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "claimed\n"
    assert store.is_claimed(RUN)
    assert store.status(RUN).state == "running"
    with pytest.raises(RunBusyError, match=f"process {child.pid}"), store.claim(RUN):
        pass
    child.kill()
    child.wait()
    assert not store.is_claimed(RUN)
    assert store.status(RUN).state == "interrupted"
    with store.claim(RUN):
        assert store.is_claimed(RUN)
    assert not store.is_claimed(RUN)


def test_a_run_that_ends_while_its_status_is_read_is_not_taken_for_interrupted(
    store: LocalRunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process comes to its end after a reader has read that it runs, and before that one looks for it."""
    is_held, seen = runs.is_held, []

    def ends_first(directory: Path) -> bool:
        if not seen:
            store.set_status(RUN, RunStatus(state="finished", step=9))
        seen.append(is_held(directory))
        return seen[-1]

    store.set_status(RUN, RunStatus(state="running", step=8, latest={"bleu": math.nan}))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "is_held", ends_first)
        assert (store.status(RUN).state, seen) == ("finished", [False])
    store.set_status(RUN, RunStatus(state="running", step=8, latest={"bleu": math.nan}))
    assert store.status(RUN).state == "interrupted"


def test_status_of_an_unknown_run_is_queued(store: LocalRunStore) -> None:
    assert store.status(RUN) == RunStatus()
    assert store.status(RUN).state == "queued"


def test_the_directory_of_runs_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMT_RUNS", str(tmp_path / "there"))
    assert runs_directory() == tmp_path / "there"
    assert runs_directory(str(tmp_path)) == tmp_path
    monkeypatch.delenv("NMT_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs_directory() == tmp_path / "runs"
