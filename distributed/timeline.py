"""What a process spends its time on: spans on a monotonic clock, at half a microsecond each.

A process has a *lane* for each of its threads that does something of interest. The main lane is the one of the thread
that plays the role (a worker's forward and backward passes, a server's sums and updates); threads that only move bytes
have lanes beside it. In a lane, time is one of

    busy          forward, backward, optimizer, sums
    wait_recv     a message is not here yet
    wait_barrier  the clock rule, or the end of a step, holds the role back
    wait_send     back-pressure: the peer does not take what is to be sent
    copy          packing, unpacking, casting

or none of them ("other"). Spans of a lane may stand inside each other; each counts with its own time, which is its
length less that of the spans inside it, so kinds never overlap and add up to at most the wall time. A span counts when
it ends.

*Idle* is the share of wall time in which the main lane waits: (wait_recv + wait_barrier + wait_send) / wall. Waits of
other lanes are recorded, and are no idleness: it is a receiver's work to wait.

    timeline = Timeline("worker 0")
    with timeline.main.wait_recv:
        piece = arrived.get()
    with timeline.main.busy:
        loss.backward()

Spans are kept in a ring, so memory does not grow; totals are of everything. `take` gives what is to be appended to the
run's journal, see `distributed.timeline_files`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

KINDS = ("busy", "wait_recv", "wait_barrier", "wait_send", "copy")
WAITS = ("wait_recv", "wait_barrier", "wait_send")
FORMAT_VERSION = 1
SHARE_WRITTEN = 1 / 16  # of the spans that a journal may still hold, at most this share is written at a time

_now = time.monotonic_ns


class Span:
    """A kind of time in a lane, as a context. The same one may be entered again inside itself, by the lane's thread."""

    __slots__ = ("_kind", "_lane", "_open")

    def __init__(self, lane: Lane, kind: int):
        self._lane, self._kind, self._open = lane, kind, lane.open

    def __enter__(self) -> None:
        self._open.append((_now(), self._lane.covered))

    def __exit__(self, *_: object) -> None:
        end = _now()
        lane = self._lane
        begin, covered = self._open.pop()
        length = end - begin
        lane.own[self._kind] += length - (lane.covered - covered)
        lane.covered = covered + length
        lane.spans.append((self._kind, begin, length, lane.step))
        lane.count += 1


class Lane:
    """The time of one thread. Made by the thread itself, and entered by no other.

    step: noted with every span; whoever computes sets it.
    """

    def __init__(self, name: str, capacity: int):
        self.name, self.step = name, 0
        self.open: list[tuple[int, int]] = []  # begin, and `covered` at that moment
        self.covered = 0  # time inside spans that stand in no other, of the innermost open one where there is one
        self.own = [0] * len(KINDS)  # nanoseconds
        self.spans: deque[tuple[int, int, int, int]] = deque(maxlen=capacity)  # kind, begin, length, step
        self.count = 0
        self.taken = 0  # of `count`
        self.busy, self.wait_recv, self.wait_barrier, self.wait_send, self.copy = (
            Span(self, kind) for kind in range(len(KINDS))
        )
        self._begun = _now()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._cpu = time.clock_gettime_ns(self._clock)

    def totals(self) -> Totals:
        """What was counted since the lane was made; while its thread lives, any thread may ask."""
        own = {kind: nanoseconds / 1e9 for kind, nanoseconds in zip(KINDS, self.own, strict=True)}
        cpu = time.clock_gettime_ns(self._clock) - self._cpu
        return Totals(wall=(_now() - self._begun) / 1e9, cpu=cpu / 1e9, seconds=own)


@dataclass(frozen=True)
class Totals:
    """Seconds of a lane: by kind, in all (`wall`), and that its thread was on a core (`cpu`)."""

    wall: float
    cpu: float
    seconds: dict[str, float]

    def __sub__(self, earlier: Totals) -> Totals:
        """The totals of the time since `earlier`."""
        seconds = {kind: own - earlier.seconds[kind] for kind, own in self.seconds.items()}
        return Totals(self.wall - earlier.wall, self.cpu - earlier.cpu, seconds)

    @property
    def other(self) -> float:
        """Seconds in no span."""
        return max(0.0, self.wall - sum(self.seconds.values()))

    @property
    def idle(self) -> float:
        """Share of the wall time spent waiting."""
        return sum(self.seconds[kind] for kind in WAITS) / self.wall if self.wall > 0 else 0.0

    @property
    def oversubscribed(self) -> bool:
        """Whether the thread was held from its core for a fifth of the time in which it wanted to compute.

        Then the idle share is not that of the algorithm: what looks busy was waiting for a core. On a GPU the host's
        thread may sleep while the device computes, which looks the same.
        """
        computing = self.seconds["busy"] + self.seconds["copy"]
        return computing > 0.1 and self.cpu < 0.8 * computing

    def to_dict(self) -> dict[str, Any]:
        """Plain data for metrics and results."""
        return {
            **self.seconds,
            "other": self.other,
            "wall": self.wall,
            "cpu": self.cpu,
            "idle": self.idle,
            "oversubscribed": self.oversubscribed,
        }


class Timeline:
    """The lanes of a process. Made by the thread that plays the role: its lane is `main`.

    Parameters
    ----------
    process: its name, `worker 0`.
    capacity: spans that a lane keeps until they are taken; older ones give way.
    budget: spans that the journal holds in all; the later, the fewer of them are written at a time.
    """

    def __init__(self, process: str, capacity: int = 8192, budget: int = 200_000):
        self.process = process
        self._capacity, self._left = capacity, budget
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._head: list[dict[str, Any]] = [
            {
                "kind": "header",
                "format_version": FORMAT_VERSION,
                "process": process,
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
        ]
        self.main = self.lane("main")

    def lane(self, name: str) -> Lane:
        """A lane for the calling thread."""
        lane = Lane(name, self._capacity)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def totals(self) -> Totals:
        """The main lane's."""
        return self.main.totals()

    def clock(self, offset: ClockOffset) -> None:
        """The coordinator's clock as this process has measured it, for whoever lays timelines side by side."""
        with self._lock:
            self._head.append({"kind": "clock", "offset": offset.offset, "error": offset.error})

    def take(self) -> bytes:
        """Lines for the journal: the newest spans since the last call, as the budget allows, and the totals so far.

        Any thread may call it.
        """
        with self._lock:
            lines, self._head = self._head, []
            limit = int(self._left * SHARE_WRITTEN / max(1, len(self._lanes)))
            for lane in self._lanes:
                spans, left_out = _newest(lane, limit)
                if spans or left_out:
                    self._left -= len(spans)
                    lines.append(_block(lane.name, spans, left_out))
            lines.append({"kind": "totals", "at": _now(), **self.totals().to_dict()})
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def _newest(lane: Lane, limit: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """Empty a lane's ring; its newest `limit` spans, and how many older ones are left out."""
    count = lane.count
    spans = [lane.spans.popleft() for _ in range(len(lane.spans))]
    kept = spans[len(spans) - min(limit, len(spans)) :]
    left_out = max(0, count - lane.taken - len(kept))
    lane.taken = max(count, lane.taken)
    return kept, left_out


def _block(lane: str, spans: Sequence[tuple[int, int, int, int]], left_out: int) -> dict[str, Any]:
    """A line of spans: kind, begin as the distance from the one before, length, step; times in nanoseconds."""
    coded, before = [], 0
    for kind, begin, length, step in spans:
        coded.append((kind, begin - before, length, step))
        before = begin
    return {"kind": "spans", "lane": lane, "left_out": left_out, "spans": coded}


class Ping(NamedTuple):
    """A question and its answer: when it was sent, when the peer (by its clock) answered, when the answer was here."""

    sent: int
    answered: int
    received: int


class ClockOffset(NamedTuple):
    """A peer's clock is ours plus `offset`, give or take `error` (nanoseconds)."""

    offset: int
    error: int


def clock_offset(pings: Sequence[Ping]) -> ClockOffset:
    """The offset of a peer's clock, from the ping with the shortest round trip (as in NTP, Mills 1991).

    The answer was given somewhere between sending and receiving; in the middle, it is wrong by half the round trip at
    most. Raises ValueError without pings.
    """
    if not pings:
        raise ValueError("a clock's offset needs a ping")
    best = min(pings, key=lambda ping: ping.received - ping.sent)
    round_trip = best.received - best.sent
    return ClockOffset(best.answered - best.sent - round_trip // 2, -(-round_trip // 2))
