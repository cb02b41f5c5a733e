"""What physically happened to a run: `events.jsonl`, one JSON object a line, appended and never changed.

Results do not depend on it. It tells what they cost: which machine was busy with which attempt from when to when, what
of that was kept, and what was done in vain because a process died. Every attempt has one event that begins it and one
that ends it; where it dies, whoever notices writes the end, which stands alone where it died before it began.
docs/training.md lists kinds and fields.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmt.lease_file import Lease
from nmt.runs import HeldRunStore, RunStore
from nmt.training.checkpoint_files import list_checkpoints

EVENTS = "events.jsonl"
BEGINNINGS = ("start", "resume", "decode")
ENDS = ("finished", "diverged", "interrupted", "failed", "killed", "expired")
KINDS = (*BEGINNINGS, "ready", "checkpoint", "lost", "stop", *ENDS)

Event = dict[str, Any]


class AttemptLog:
    """Writes the events of the attempt that holds a run; at once, how the one before ended, if it died without a word.

    Of an attempt that finds nothing to do, and so never begins, nothing is written. `first_step` is the step that the
    attempt goes on from.
    """

    def __init__(self, store: HeldRunStore, run_id: str):
        self.store, self.run_id, self.attempt = store, run_id, store.attempt
        self.first_step = max(list_checkpoints(store, run_id), default=0)
        self._begun = False
        dead = self.attempt.predecessor
        if dead is not None:
            how = "expired" if self.attempt.taken_over else "killed"
            record_death(store, run_id, dead, how, "found by the next attempt")

    def begin(self, kind: str, **facts: Any) -> None:
        """The attempt begins, with `start`, `resume` or `decode`."""
        self._begun = True
        self.note(kind, step=self.first_step, **facts)

    def note(self, kind: str, **facts: Any) -> None:
        """Something happens within the attempt."""
        record_event(self.store, self.run_id, kind, self.attempt.number, **facts)

    def end(self, kind: str, notice: str = "") -> None:
        """The attempt ends by itself."""
        if self._begun:
            steps = steps_of(self.store, self.run_id, self.attempt.number, self.first_step)
            self.note(kind, **steps, notice=notice)


def record_event(store: RunStore, run_id: str, kind: str, attempt: int, **facts: Any) -> None:
    """Append one event; `facts` without a value are left out.

    Time, node and process are this one's unless `facts` say otherwise.
    """
    event = {"time": time.time(), "kind": kind, "attempt": attempt, "node": socket.gethostname(), "pid": os.getpid()}
    event |= {name: value for name, value in facts.items() if value not in ("", None)}
    store.append_line(run_id, EVENTS, json.dumps(event, ensure_ascii=False))


def record_death(store: RunStore, run_id: str, dead: Lease, kind: str, notice: str) -> None:
    """Append the end of an attempt that could not do it itself: `killed`, or `expired` where it was only stopped.

    Node and process are those of the dead; `last_seen` is its last sign of life, and `seen_by` who noticed.
    """
    path = store.directory(run_id) / EVENTS
    begun = (event for event in read_events(path) if event["attempt"] == dead.attempt and event["kind"] in BEGINNINGS)
    first = next((int(event.get("step", 0)) for event in begun), None)
    steps = {} if first is None else steps_of(store, run_id, dead.attempt, first)
    status = store.status(run_id)
    record_event(
        store,
        run_id,
        kind,
        dead.attempt,
        node=dead.host,
        pid=dead.pid,
        last_seen=max(dead.heartbeat, status.heartbeat if status.attempts == dead.attempt else 0.0),
        seen_by=f"process {os.getpid()} on {socket.gethostname()}",
        **steps,
        notice=notice,
    )


def steps_of(store: RunStore, run_id: str, attempt: int, first: int) -> dict[str, int]:
    """What an attempt that began at step `first` has done so far, as the fields of its end.

    `steps_kept` lead to its newest checkpoint; `steps_run` are all that it is known to have made: for one that died,
    those up to its last line of status.
    """
    status = store.status(run_id)
    kept = max(list_checkpoints(store, run_id), default=0)
    reached = max(kept, status.step if status.attempts == attempt else 0, first)
    return {
        "step_from": first,
        "step_to": reached,
        "steps_run": reached - first,
        "steps_kept": max(0, kept - first),
    }


def read_events(path: Path) -> list[Event]:
    """The events in a file, oldest first; none where it is absent. Lines left torn by a killed process are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := _parse(line)) is not None]


def _parse(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, Mapping) and {"time", "kind", "attempt"} <= event.keys()
    return dict(event) if whole else None
