"""What nodes among which parameters rotate say to their neighbours. To nobody else do they say anything."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol

from distributed.links.frames import Frame
from distributed.links.link import Payload

Message = dict[str, Any]


class Kind(IntEnum):
    """Kinds of frames, to the successor but for `ROOM`. In brackets: what the three tags say."""

    GATHER = 64
    """A part of a unit's parameters [gather, part]."""
    REDUCE = 65
    """A part of a unit's gradient, summed over the seats where it has been [unit, part, how many these are]."""
    ROOM = 66
    """To the predecessor: parts may come [0: of a gather, 1: of a unit's gradient; number of the gather or unit]."""
    COPY = 67
    """A part of a seat's gradient, whole, for the second copy of the seat's shard [unit, part, seat]."""
    FACTS = 68
    """What there is to say of a seat's share and shard beside gradients (JSON) [seat]."""
    STATE = 69
    """A buffer of a seat's shard, for who takes the seat over or its second copy [seat, number of the buffer]."""
    STATE_END = 70
    """What belongs to a shard beside its buffers, after them (JSON) [seat]."""


PHASES: dict[int, str] = {
    Kind.GATHER: "gather",
    Kind.REDUCE: "reduce",
    Kind.ROOM: "room",
    Kind.COPY: "copy",
    Kind.FACTS: "facts",
    Kind.STATE: "state",
    Kind.STATE_END: "joined",
}
"""What frames are called where faults are injected."""


class Outbox(Protocol):
    """Where a node's messages go: there is no way to send a frame to anyone but the two neighbours.

    Nothing here waits; what cannot be delivered is noticed by the link.
    """

    def send(self, frame: Frame, payload: Payload = b"", done: Callable[[], None] | None = None) -> None:
        """A frame to the successor. The payload stays as it is until `done` is called, by any thread, or the epoch
        ends."""

    def send_back(self, frame: Frame) -> None:
        """A frame to the predecessor."""

    def tell(self, message: Message) -> None:
        """A JSON message to the coordinator."""
