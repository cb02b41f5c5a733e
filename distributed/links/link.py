"""What a link is to those who use it, whatever carries it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from distributed.errors import DistributedError, LinkError
from distributed.links.counters import Counters
from distributed.links.frames import LENGTH_LIMIT, Frame

if TYPE_CHECKING:
    import torch

    from distributed.links.faults import Faults
    from distributed.links.shared_memory import SharedArena

Payload: TypeAlias = "torch.Tensor | memoryview | bytes | bytearray"


class Discard(enum.Enum):
    """The answer of a `place` that does not want a payload: it is read and thrown away, and nothing is delivered."""

    DISCARD = enum.auto()


DISCARD = Discard.DISCARD

CHECKSUMS = ("auto", "always")

Place: TypeAlias = "Callable[[Frame], torch.Tensor | memoryview | bytearray | Discard | None]"
Deliver: TypeAlias = Callable[[Frame, memoryview], None]
Closed: TypeAlias = Callable[[LinkError], None]


@dataclass(frozen=True)
class Peer:
    """Who is at an end of a link.

    role: `coordinator`, `worker`, `server`, … or `agent` before a role is given.
    id: its number within the role.
    incarnation: 0 for the first process in this place, one more for each that replaced it.
    epoch: the membership epoch that it knew when the link was made.
    """

    role: str
    id: int = 0
    incarnation: int = 0
    epoch: int = 0

    def __str__(self) -> str:
        return f"{self.role}{self.id}" + (f".{self.incarnation}" if self.incarnation else "")


@dataclass(frozen=True)
class LinkOptions:
    """How a link behaves.

    queued_frames: frames that may wait to be written; `send` waits when there are more.
    stall_seconds: the deadline of every wait in the middle of something: room in the queue, bytes of a frame that has
        begun, a peer that takes what is written. It starts anew with every byte.
    beat_seconds: send a sign of life after so many seconds without a frame; None: never. It also uncovers a frame that
        was lost at the end.
    silence_seconds: give the link up when nothing at all arrived for so many seconds; None: whoever uses the link
        judges silence. More than the peer's `beat_seconds`.
    checksum: `auto` puts checksums on payloads that cross a wire without TLS (not on what stays inside one machine),
        `always` on every payload, in shared memory too, as do links with injected faults. Headers always have one.
    allocation_limit: bytes of the largest payload for which the link itself makes room.
    length_limit: bytes of the largest payload at all.
    arena: where payloads that go through shared memory lie.
    faults, phases: injected faults, and the phase's name of each kind of frame that they may concern.
    """

    queued_frames: int = 256
    stall_seconds: float = 30.0
    beat_seconds: float | None = None
    silence_seconds: float | None = None
    checksum: str = "auto"
    allocation_limit: int = 1 << 28
    length_limit: int = LENGTH_LIMIT
    arena: SharedArena | None = None
    faults: Faults | None = None
    phases: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.checksum not in CHECKSUMS:
            raise DistributedError(f"'{self.checksum}' is no choice", where="checksum", allowed=CHECKSUMS)


class Link(Protocol):
    """A connection to one peer that carries frames both ways, in order.

    It ends once, for one reason, whoever or whatever ends it; from then on `send` raises that reason.
    """

    peer: Peer
    counters: Counters

    def start(self, place: Place, deliver: Deliver, closed: Closed) -> None:
        """Begin to receive and to write. Call it once.

        All three are called by the link's receiver thread, one after the other, and hold up what follows on this link
        while they run.

        place: asked once the header of a frame with a payload is there, where the payload goes: writable memory of
            exactly `frame.length` bytes (a contiguous CPU tensor or a buffer); None: the link makes room, up to
            `allocation_limit`; DISCARD: throw it away. Not asked for payloads in shared memory. Only `deliver` says
            that the payload is whole: a link that ends before leaves the place partly written.
        deliver: receives every frame, with its payload: what `place` gave, as bytes, or the peer's shared memory
            itself, which stays as it is until the receiver's own protocol says that it is done with it.
            `frames.as_tensor` makes a tensor of it.
        closed: called exactly once, after the last `deliver` and after the last `done`, with the reason.
        """

    def send(self, frame: Frame, payload: Payload = b"", done: Callable[[], None] | None = None) -> None:
        """Queue a frame to be written; return at once unless the queue is full.

        payload: a contiguous CPU tensor or a buffer; must stay as it is until `done` is called. A payload within the
            arena's shared memory is not copied on a link that shares memory: it must stay as it is until the receiver
            has answered in its own protocol.
        done: called once, by a thread of the link, when the link needs the payload no more: it is written, or the link
            has ended. It must not block.

        Raises LinkTimeout when the queue stays full, the link's reason when it has ended, ValueError for a frame that
        has no header.
        """

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything queued is in the hands of the kernel.

        Raises LinkTimeout after `seconds` (`stall_seconds` by default), the link's reason when it has ended.
        """

    def shutdown(self) -> None:
        """End the link at once, from any thread: blocked calls of both ends return. What is under way may be lost."""

    def close(self, seconds: float | None = None) -> None:
        """End the link in order: write what is queued, say goodbye, wait until the peer has read it, release all.

        After `seconds` (`stall_seconds` by default) without success, like `shutdown`. Afterwards the link's threads and
        descriptors are gone, except the thread that calls. Safe to call twice and from the link's own callbacks.
        """
