"""The trace of a shard: what a server did to it, in order, so that an asynchronous run can be repeated bit for bit.

A trace is a file: a header, then records of 10 bytes (little endian). It is only ever appended to, so a resumed run
cuts it back to the length that it had at the checkpoint, and a process that is killed leaves at most a torn record at
the end.

    header   8s magic, u16 format version, u16 shard, u16 shards, u16 0, 16s train_id, u32 crc32 of what stands before
    record   u8 kind, u8 check, u16 worker, u16 share, u32 step

Between two horizons a worker's number belongs to one process: a replacement has a new one. A byte `check` makes
the sum of a record's bytes 0xA5 modulo 256, so that zeros, which a crash may leave behind, are no record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from distributed.errors import DistributedError
from distributed.parameter_server.tickets import Ticket

FORMAT_VERSION = 1
NOBODY = 0xFFFF  # in place of a worker's number
MAGIC = b"NMTTRACE"
RECORD_BYTES = 10

_HEADER = struct.Struct("<8sHHHH16sI")
_RECORD = struct.Struct("<BBHHI")
_TYPE = np.dtype([("kind", "u1"), ("check", "u1"), ("worker", "<u2"), ("share", "<u2"), ("step", "<u4")])
_CHECK = 0xA5


class TraceError(DistributedError):
    """A trace that is damaged, of another format, or not of the run that it is read for."""


class EventKind(IntEnum):
    """What happened."""

    APPLY = 1
    """A worker's push of a ticket was applied."""
    PULL = 2
    """A worker was answered with the values from which it computes a ticket."""
    HORIZON = 3
    """Every ticket up to the step is applied, and what was gathered up for one update is used; clocks restart."""
    DROP = 4
    """A share of a step was left out for good, in which a worker was lost: the others are the step's contributors."""
    UNUSED = 5
    """A worker's push of a ticket came that this shard had from another: it is not in the parameters, but its worker
    keeps that much less back (`distribution.top_k`)."""
    MEMORY = 6
    """Training began from a state behind this step: from here on, a worker keeps on with what worker `share` had kept
    back before (or nobody). See `distributed.parameter_server.lineage`."""


class Event(NamedTuple):
    """One record. A horizon is no worker's and has the step in its ticket."""

    kind: EventKind
    worker: int
    ticket: Ticket


class TraceWriter:
    """Makes a shard's trace, as bytes to be appended to its file.

    Parameters
    ----------
    shard, shards: which of how many.
    train_id: the run's, at most 16 ASCII characters.
    begun: whether the file has its header already (a resumed run, or a server that takes a shard over).
    """

    def __init__(self, shard: int, shards: int, train_id: str, begun: bool = False):
        self._bytes = bytearray()
        self._mark = (-1, -1, -1)
        if not begun:
            head = _HEADER.pack(MAGIC, FORMAT_VERSION, shard, shards, 0, train_id.encode(), 0)[:-4]
            self._bytes += head + struct.pack("<I", zlib.crc32(head))

    def apply(self, worker: int, ticket: Ticket) -> None:
        """A worker's push of a ticket was applied."""
        self._add(EventKind.APPLY, worker, ticket)

    def pull(self, worker: int, ticket: Ticket) -> None:
        """A worker was answered; it will compute this ticket."""
        self._add(EventKind.PULL, worker, ticket)

    def horizon(self, step: int) -> None:
        """Every ticket up to `step` is applied."""
        self._add(EventKind.HORIZON, 0, Ticket(step))

    def drop(self, worker: int, ticket: Ticket) -> None:
        """A lost worker's share of a step is left out for good."""
        self._add(EventKind.DROP, worker, ticket)

    def unused(self, worker: int, ticket: Ticket) -> None:
        """A worker's push of a ticket changed nothing here."""
        self._add(EventKind.UNUSED, worker, ticket)

    def memory(self, worker: int, source: int, step: int) -> None:
        """Training begins behind `step`; a worker has the memory that `source` had (NOBODY: none)."""
        self._add(EventKind.MEMORY, worker, Ticket(step, source))

    def take(self) -> bytes:
        """What was written since the last call."""
        data = bytes(self._bytes)
        self._bytes.clear()
        return data

    def _add(self, kind: EventKind, worker: int, ticket: Ticket) -> None:
        step, share = ticket
        bare = _RECORD.pack(kind, 0, worker, share, step)
        self._bytes += bare[:1] + bytes(((_CHECK - sum(bare)) & 0xFF,)) + bare[2:]


@dataclass(frozen=True)
class Trace:
    """A trace that was read.

    records: structured array [events] with fields kind, worker, share, step.
    torn: bytes at the end that are no whole record: a process was killed as it wrote.
    """

    shard: int
    shards: int
    train_id: str
    records: np.ndarray
    torn: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Event]:
        for kind, worker, share, step in self.records[["kind", "worker", "share", "step"]].tolist():
            yield Event(EventKind(kind), worker, Ticket(step, share))

    def dropped(self) -> list[Ticket]:
        """Shares that were left out, in order."""
        return [event.ticket for event in self if event.kind is EventKind.DROP]

    def contributors(self) -> dict[int, list[int]]:
        """By step, the shares whose pushes were applied, ascending."""
        found: dict[int, list[int]] = {}
        for record in self.of_kind(EventKind.APPLY):
            found.setdefault(int(record["step"]), []).append(int(record["share"]))
        return {step: sorted(shares) for step, shares in sorted(found.items())}

    def of_kind(self, kind: EventKind) -> np.ndarray:
        """The records of a kind, in order."""
        return self.records[self.records["kind"] == kind]


def read_trace(data: bytes) -> Trace:
    """Read a trace's bytes; a torn record at the end is left out.

    Raises TraceError for another format or version, and for damage before the end.
    """
    if len(data) < _HEADER.size:
        raise TraceError(f"a trace has a header of {_HEADER.size} bytes; this one has {len(data)} bytes in all")
    magic, version, shard, shards, _, train_id, check = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise TraceError("this is no trace: it does not begin with its mark")
    if version != FORMAT_VERSION:
        raise TraceError(f"a trace of format {version}; this program reads format {FORMAT_VERSION}")
    if check != zlib.crc32(data[: _HEADER.size - 4]):
        raise TraceError("the trace's header is damaged")
    body = memoryview(data)[_HEADER.size :]
    whole = len(body) // RECORD_BYTES * RECORD_BYTES
    records = np.frombuffer(body[:whole], dtype=_TYPE)
    good = np.frombuffer(body[:whole], dtype=np.uint8).reshape(-1, RECORD_BYTES).sum(1, dtype=np.uint8) == _CHECK
    good &= np.isin(records["kind"], list(EventKind))
    if not good.all():
        first = int(np.argmin(good))
        if any(body[first * RECORD_BYTES :]):
            raise TraceError(f"the trace is damaged at byte {_HEADER.size + first * RECORD_BYTES}")
        records, whole = records[:first], first * RECORD_BYTES
    return Trace(shard, shards, train_id.rstrip(b"\0").decode(), records, torn=len(body) - whole)
