"""Physical events: every attempt begins once and ends once, and a death is told by whoever finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nmt.events import BEGINNINGS, ENDS, KINDS, AttemptLog, read_events, record_event
from nmt.lease_file import kernel, read_lease
from nmt.runs import LocalRunStore, RunStatus
from sweeps.worker import record_failure

RUN = "0123456789ab/s1"


@pytest.fixture
def store(tmp_path: Path) -> LocalRunStore:
    return LocalRunStore(tmp_path)


def events(store: LocalRunStore) -> list[dict[str, Any]]:
    return read_events(store.directory(RUN) / "events.jsonl")


def facts(event: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(event.get(name) for name in names)


def die(store: LocalRunStore) -> None:
    """Make the newest attempt look as if its process had been killed."""
    path = store.directory(RUN) / "lease"
    text = path.read_text()
    assert '"released": true' in text
    path.write_text(text.replace('"released": true', '"released": false'))


def checkpoint(store: LocalRunStore, step: int) -> None:
    store.write_text(RUN, f"checkpoints/step-{step:08d}.pt", "")


def test_an_attempt_that_ends_by_itself(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        log = AttemptLog(held, RUN)
        log.begin("start", timing="exclusive")
        held.set_status(RUN, RunStatus(state="running", attempts=1, step=25))
        checkpoint(store, 20)
        log.end("failed", "ValueError: no luck")
    begin, end = events(store)
    assert facts(begin, "kind", "attempt", "step", "timing") == ("start", 1, 0, "exclusive")
    assert facts(end, "kind", "step_from", "step_to", "steps_run", "steps_kept") == ("failed", 0, 25, 25, 20)
    assert end["notice"] == "ValueError: no luck"
    assert begin["time"] <= end["time"]


def test_an_attempt_that_does_nothing_leaves_no_event(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        AttemptLog(held, RUN).end("finished")
    assert events(store) == []


def test_the_next_attempt_tells_of_a_death(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        AttemptLog(held, RUN).begin("start")
        held.set_status(RUN, RunStatus(state="running", attempts=1, step=17))
        checkpoint(store, 10)
    die(store)
    lease = read_lease(store.directory(RUN))
    assert lease is not None
    with store.claim(RUN) as held:
        log = AttemptLog(held, RUN)
        log.begin("resume")
        log.end("interrupted", "SIGTERM")
    start, killed, resume, end = events(store)
    assert facts(killed, "kind", "attempt", "pid", "node") == ("killed", 1, lease.pid, lease.host)
    assert facts(killed, "step_from", "step_to", "steps_run", "steps_kept") == (0, 17, 17, 10)
    assert start["time"] <= killed["last_seen"] <= killed["time"]
    assert facts(resume, "kind", "attempt", "step") == ("resume", 2, 10)
    # Nothing is known of steps of the second attempt: those of the first are not counted again.
    assert facts(end, "steps_run", "steps_kept", "notice") == (0, 0, "SIGTERM")


def test_a_death_is_told_by_an_attempt_that_finds_nothing_to_do(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        AttemptLog(held, RUN).begin("start")
    die(store)
    for _ in range(2):
        with store.claim(RUN) as held:
            AttemptLog(held, RUN).end("finished")
    assert [event["kind"] for event in events(store)] == ["start", "killed"]


def test_a_death_is_told_once_by_the_driver_that_saw_it(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        AttemptLog(held, RUN).begin("start")
        held.set_status(RUN, RunStatus(state="running", attempts=1, step=3))
    die(store)
    record = {"attempt": 1, "pid": 77, "host": "there", "kernel": kernel(), "released": False}
    (store.directory(RUN) / "lease").write_text(json.dumps(record))
    os.utime(store.directory(RUN) / "lease", (5.0, 5.0))
    written = store.status(RUN).heartbeat
    record_failure(store, RUN, "the process died: killed by SIGKILL")
    status = store.status(RUN)
    assert (status.state, status.pid, status.host, status.heartbeat) == ("failed", 77, "there", written)
    assert facts(events(store)[1], "pid", "node", "last_seen") == (77, "there", written)
    record_failure(store, RUN, "and again")
    with store.claim(RUN) as held:
        AttemptLog(held, RUN).begin("start")
    assert [event["kind"] for event in events(store)] == ["start", "killed", "start"]
    assert events(store)[1]["notice"] == "the process died: killed by SIGKILL"
    assert events(store)[1]["steps_run"] == 3


def test_a_driver_says_nothing_of_a_run_that_lives(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        held.set_status(RUN, RunStatus(state="running", attempts=1))
        record_failure(store, RUN, "the process died")
        assert store.status(RUN).state == "running"
    assert events(store) == []


def test_torn_and_foreign_lines_are_skipped(store: LocalRunStore) -> None:
    record_event(store, RUN, "start", 1, step=0, notice="a line\nin two \u2028 parts")
    with (store.directory(RUN) / "events.jsonl").open("ab") as file:
        file.write(b'[1]\n{"kind": "half"}\n\xff\xfe\n{"time": 1.0, "ki')
    record_event(store, RUN, "finished", 1, notice="")
    assert [event["kind"] for event in events(store)] == ["start", "finished"]
    assert events(store)[0]["notice"] == "a line\nin two \u2028 parts"
    assert "notice" not in events(store)[1]


def test_the_documentation_names_every_kind() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []
    assert not set(BEGINNINGS) & set(ENDS)
