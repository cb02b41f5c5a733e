"""Timelines that were written down: reading them, laying those of several processes side by side, Chrome traces.

A timeline's journal is a file `timeline-<process>.jsonl` of a JSON object a line, only ever appended to:

    {"kind": "header", "format_version", "process", "host", "pid"}      begins each attempt
    {"kind": "clock", "offset", "error"}                 ns; the coordinator's clock is this process's plus `offset`
    {"kind": "spans", "lane", "left_out", "spans": [[kind, begin, length, step], ...]}
    {"kind": "totals", "at", busy, ..., "other", "wall", "cpu", "idle", "oversubscribed"}     seconds, since the start

A span's kind is its place in `distributed.timeline.KINDS`; `begin` is the distance from the begin of the one before it
(from 0 for the first of a line), in nanoseconds of the process's monotonic clock. A torn last line is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distributed.errors import DistributedError
from distributed.timeline import FORMAT_VERSION, KINDS

PATTERN = "timeline-*.jsonl"


class RecordedSpan(NamedTuple):
    """A span: kind by name, begin and length in nanoseconds, the step that its thread was at."""

    kind: str
    begin: int
    length: int
    step: int

    @property
    def end(self) -> int:
        """When it ended."""
        return self.begin + self.length


@dataclass
class Recording:
    """One process in one attempt, times by its own clock until `side_by_side`.

    offset, error: of the clock, nanoseconds.
    lanes: spans by lane, in the order in which they ended.
    totals: of the main lane, as they were written last; empty where the process was killed before.
    left_out: spans that were not kept.
    """

    process: str
    host: str = ""
    pid: int = 0
    offset: int = 0
    error: int = 0
    lanes: dict[str, list[RecordedSpan]] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0

    def spans(self) -> Iterator[RecordedSpan]:
        """Of all lanes."""
        for lane in self.lanes.values():
            yield from lane


def file_name(process: str) -> str:
    """The journal's name of a process: `timeline-worker-0.jsonl`."""
    return PATTERN.replace("*", process.replace(" ", "-"))


def read_recordings(text: str, where: str = "timeline") -> list[Recording]:
    """The attempts in a journal, oldest first. Raises DistributedError for another format, and for a damaged line."""
    found: list[Recording] = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last line's end is torn
        try:
            data = json.loads(line)
            if data["kind"] == "header":
                _check_version(data["format_version"], where)
                found.append(Recording(data["process"], data["host"], data["pid"]))
            else:
                _add(found[-1], data)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DistributedError("is damaged", where=f"{where}:{number}") from error
    return found


def newest_recordings(folder: Path) -> list[Recording]:
    """The newest attempt of every process whose journal lies in a folder: coordinator, workers, servers by number."""
    found = []
    for path in folder.glob(PATTERN):
        found += read_recordings(path.read_text(), path.name)[-1:]
    return sorted(found, key=lambda recording: _place(recording.process))


def side_by_side(recordings: Iterable[Recording]) -> list[Recording]:
    """The same recordings by the coordinator's clock, from 0 at the first span."""
    moved = [
        Recording(
            **vars(one)
            | {
                "lanes": {
                    lane: [span._replace(begin=span.begin + one.offset) for span in spans]
                    for lane, spans in one.lanes.items()
                }
            }
        )
        for one in recordings
    ]
    first = min((span.begin for one in moved for span in one.spans()), default=0)
    for one in moved:
        one.lanes = {lane: [span._replace(begin=span.begin - first) for span in own] for lane, own in one.lanes.items()}
    return moved


def last_steps(recordings: Sequence[Recording], steps: int) -> list[Recording]:
    """What was recorded while the last steps went on; 0: everything.

    From where the first worker begins with them to where the last one ends, and until servers have applied them: an
    evaluation behind them is no part of it. Spans that stand across the borders of that time are cut.
    """
    numbers = step_numbers(recordings)
    if not steps or not numbers:
        return list(recordings)
    chosen = set(numbers[-steps:])
    shown = [span for span in _work(recordings) if span.step in chosen]
    begin, end = min(span.begin for span in shown), max(span.end for span in shown)
    soon = end + (end - begin) // 10
    behind = [span for one in recordings for span in one.lanes.get("main", []) if span.kind == "busy"]
    end = max([end, *(span.end for span in behind if span.step in chosen and begin <= span.begin <= soon)])
    return [
        Recording(**vars(one) | {"lanes": {lane: list(_cut(own, begin, end)) for lane, own in one.lanes.items()}})
        for one in recordings
    ]


def step_numbers(recordings: Iterable[Recording]) -> list[int]:
    """The steps that workers' main lanes computed something of, ascending; anybody's where no worker is recorded."""
    return sorted({span.step for span in _work(list(recordings)) if span.step})


def to_chrome_trace(recordings: Iterable[Recording]) -> dict[str, Any]:
    """The format that Perfetto and chrome://tracing open: processes, their lanes as threads, spans in µs."""
    events: list[dict[str, Any]] = []
    for pid, recording in enumerate(recordings, start=1):
        name = f"{recording.process} ({recording.host}, process {recording.pid})"
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}})
        for tid, (lane, spans) in enumerate(recording.lanes.items(), start=1):
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": lane}})
            events += (
                {
                    "ph": "X",
                    "name": span.kind,
                    "cat": "wait" if span.kind.startswith("wait") else "work",
                    "pid": pid,
                    "tid": tid,
                    "ts": span.begin / 1e3,
                    "dur": span.length / 1e3,
                    "args": {"step": span.step},
                }
                for span in spans
            )
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _work(recordings: Sequence[Recording]) -> list[RecordedSpan]:
    """What workers computed; what others did where there are none."""
    workers = [one for one in recordings if one.process.startswith("worker")]
    lanes = [one.lanes.get("main", []) for one in workers or recordings]
    return [span for lane in lanes for span in lane if span.kind == "busy"]


def _cut(spans: Iterable[RecordedSpan], begin: int, end: int) -> Iterator[RecordedSpan]:
    """The parts of spans that lie between two times."""
    for span in spans:
        first, last = max(span.begin, begin), min(span.end, end)
        if first < last:
            yield span._replace(begin=first, length=last - first)


def _add(recording: Recording, data: dict[str, Any]) -> None:
    """A line that is no header."""
    match data["kind"]:
        case "clock":
            recording.offset, recording.error = data["offset"], data["error"]
        case "spans":
            recording.left_out += data["left_out"]
            spans, begin = recording.lanes.setdefault(data["lane"], []), 0
            for kind, distance, length, step in data["spans"]:
                begin += distance
                spans.append(RecordedSpan(KINDS[kind], begin, length, step))
        case "totals":
            recording.totals = {key: value for key, value in data.items() if key not in ("kind", "at")}
        case other:
            raise ValueError(f"a line of kind {other}")


def _check_version(version: int, where: str) -> None:
    if version != FORMAT_VERSION:
        raise DistributedError(f"is of format {version}; this program reads format {FORMAT_VERSION}", where=where)


def _place(process: str) -> tuple[int, int, str]:
    """Coordinator first, then workers and servers, each by number."""
    role, _, number = process.partition(" ")
    roles = ("coordinator", "worker", "server")
    return (roles.index(role) if role in roles else len(roles), int(number) if number.isdigit() else 0, process)
