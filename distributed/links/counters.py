"""What went over a link: messages and bytes, each way, by kind of frame."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Traffic:
    """What went one way.

    messages: frames.
    framing_bytes: headers and checksums.
    payload_bytes: payloads that went through the socket.
    shared_bytes: payloads that stayed in shared memory; only their place was sent.
    """

    messages: int = 0
    framing_bytes: int = 0
    payload_bytes: int = 0
    shared_bytes: int = 0

    def add(self, framing: int, payload: int, shared: int) -> None:
        """Count one frame."""
        self.messages += 1
        self.framing_bytes += framing
        self.payload_bytes += payload
        self.shared_bytes += shared

    def as_dict(self) -> dict[str, int]:
        """Plain data."""
        return {
            "messages": self.messages,
            "framing_bytes": self.framing_bytes,
            "payload_bytes": self.payload_bytes,
            "shared_bytes": self.shared_bytes,
        }


@dataclass(slots=True)
class Direction:
    """The traffic of one direction, in all and by kind of frame. One thread counts; any thread may read.

    at: when the last byte was seen, by `time.monotonic()`: how long a peer has been silent.
    """

    total: Traffic = field(default_factory=Traffic)
    by_kind: dict[int, Traffic] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    def add(self, kind: int, framing: int, payload: int = 0, shared: int = 0) -> None:
        """Count one frame."""
        self.at = time.monotonic()
        self.total.add(framing, payload, shared)
        if kind not in self.by_kind:
            # A new dictionary, so that a reader in another thread never sees one that changes its size.
            self.by_kind = {**self.by_kind, kind: Traffic()}
        self.by_kind[kind].add(framing, payload, shared)

    def include(self, kind: int, traffic: Traffic) -> None:
        """Count what was counted elsewhere."""
        own = self.by_kind.setdefault(kind, Traffic())
        for each in (self.total, own):
            each.messages += traffic.messages
            each.framing_bytes += traffic.framing_bytes
            each.payload_bytes += traffic.payload_bytes
            each.shared_bytes += traffic.shared_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain data: the totals, and under `by_kind` the same by kind (as text, because JSON has no other keys)."""
        by_kind = {str(kind): traffic.as_dict() for kind, traffic in sorted(self.by_kind.items())}
        return {**self.total.as_dict(), "by_kind": by_kind}


@dataclass(slots=True)
class Counters:
    """Both directions of a link."""

    sent: Direction = field(default_factory=Direction)
    received: Direction = field(default_factory=Direction)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for reports."""
        return {"sent": self.sent.as_dict(), "received": self.received.as_dict()}


def total(links: Iterable[Counters]) -> dict[str, Any]:
    """What went over several links, as `Counters.as_dict` gives it for one."""
    found = Counters()
    for one in links:
        for sum_, own in ((found.sent, one.sent), (found.received, one.received)):
            for kind, traffic in own.by_kind.items():
                sum_.include(kind, traffic)
    return found.as_dict()
