"""The machinery that links share: a queue and a writer thread, a receiver thread, and one end."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from distributed.errors import FrameError, LinkClosed, LinkError, LinkTimeout
from distributed.links.counters import Counters
from distributed.links.frames import (
    BEAT,
    BLOCK,
    CHECKSUMMED,
    GOODBYE,
    HEADER_BYTES,
    TRAILER_BYTES,
    Checksum,
    Frame,
    Header,
    as_bytes,
    decode_header,
    encode_header,
)
from distributed.links.link import Closed, Deliver, Discard, LinkOptions, Payload, Peer, Place
from distributed.links.stream import SocketStream

EMPTY = memoryview(b"")


@dataclass(slots=True)
class _Queued:
    frame: Frame
    payload: memoryview
    done: Callable[[], None] | None


class SocketLink:
    """A link over a connected stream; see `distributed.links.link.Link`. Its children say how payloads travel.

    peer: the other end, as the handshake proved it.
    """

    def __init__(self, stream: SocketStream, peer: Peer, options: LinkOptions):
        self.peer, self.counters = peer, Counters()
        self._stream, self._options = stream, options
        self._checksums = options.checksum == "always" or bool(options.faults)
        self._queue: deque[_Queued] = deque()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the writer waits for something to do
        self._room = threading.Condition(self._lock)  # senders wait for room, flush for an empty queue
        self._started = self._writing = self._closing = self._aborted = False
        self._reason: LinkError | None = None
        self._threads: list[threading.Thread] = []
        self._sent = self._received = 0  # frames: the next sequence numbers
        stream.wait_at_most(options.stall_seconds, options.silence_seconds)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.peer}>"

    # What users call

    def start(self, place: Place, deliver: Deliver, closed: Closed) -> None:
        """See `Link.start`."""
        self._place, self._deliver, self._closed = place, deliver, closed
        with self._lock:
            if self._started:
                raise RuntimeError("a link is started once")
            self._started = True
            self._threads = [
                threading.Thread(target=self._run, args=(work,), name=f"link-{self.peer}-{name}", daemon=True)
                for name, work in (("writer", self._write), ("receiver", self._receive))
            ]
            for thread in self._threads:  # within the lock, so that whoever closes the link finds them started
                thread.start()

    def send(self, frame: Frame, payload: Payload = b"", done: Callable[[], None] | None = None) -> None:
        """See `Link.send`."""
        view = as_bytes(payload)
        if not GOODBYE < frame.kind < BEAT:
            raise ValueError(f"{frame} has no kind of a protocol: {GOODBYE + 1} to {BEAT - 1}")
        frame = frame._replace(length=len(view))
        encode_header(frame)
        with self._lock:
            self._wait_for(lambda: len(self._queue) < self._options.queued_frames, None, "room to send")
            if self._closing:  # the goodbye may be written already
                raise LinkClosed("closed by this side", orderly=True, where=f"link to {self.peer}")
            rests = self._started and not self._queue and not self._writing  # the writer
            if rests and done is None and self._transmit_now(frame._replace(sequence=self._sent), view):
                self._sent += 1
                return
            self._queue.append(_Queued(frame, view, done))
            self._work.notify()

    def flush(self, seconds: float | None = None) -> None:
        """See `Link.flush`."""
        with self._lock:
            self._wait_for(lambda: not self._queue and not self._writing, seconds, "everything to be written")

    def shutdown(self) -> None:
        """See `Link.shutdown`."""
        self._fail(LinkClosed("shut down by this side", orderly=True))

    def close(self, seconds: float | None = None) -> None:
        """See `Link.close`."""
        deadline = time.monotonic() + (self._options.stall_seconds if seconds is None else seconds)
        with self._lock:
            started, self._closing = self._started, True
            self._work.notify()
        if not started:
            self._fail(LinkClosed("closed by this side", orderly=True))
            self._stream.close()
            return
        if threading.current_thread() in self._threads:
            return  # this thread ends the link when its callback has returned
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._fail(LinkClosed("closed by this side", orderly=True))
        for thread in self._threads:
            thread.join()

    # The end

    def _wait_for(self, condition: Callable[[], bool], seconds: float | None, what: str) -> None:
        """With the lock held, wait until the condition holds; no longer than the link lives."""
        seconds = self._options.stall_seconds if seconds is None else seconds
        self._room.wait_for(lambda: self._reason is not None or condition(), seconds)
        if self._reason is not None:
            raise copy.copy(self._reason) from self._reason.__cause__
        if not condition():
            raise LinkTimeout(f"waited {seconds:g} s for {what}", where=str(self.peer))

    def _fail(self, reason: LinkError) -> None:
        """End the link at once; the first reason counts."""
        with self._lock:
            self._aborted = True
            if self._reason is None:
                reason.where = reason.where or f"link to {self.peer}"
                self._reason = reason
            self._work.notify_all()
            self._room.notify_all()
        self._stream.shutdown()

    def _run(self, work: Callable[[], None]) -> None:
        """The life of a thread: its work, and the reason when that ends."""
        try:
            work()
        except LinkError as error:
            self._fail(error)
        except Exception as error:
            failure = LinkError(f"a callback or the link itself failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._fail(failure)
        if work == self._receive:
            self._threads[0].join()
            for queued in self._queue:
                if queued.done is not None:
                    queued.done()
            self._queue.clear()
            assert self._reason is not None
            self._stream.close()
            self._release()
            self._closed(self._reason)

    def _release(self) -> None:
        """Let go of what only this kind of link holds."""

    # The writer

    def _write(self) -> None:
        while True:
            with self._lock:
                beat = not self._work.wait_for(
                    lambda: self._queue or self._closing or self._aborted, self._options.beat_seconds
                )
                if self._aborted:
                    return
                queued = self._queue.popleft() if self._queue else None
                self._writing = queued is not None or beat
                if queued is None and not beat:
                    break
                self._room.notify_all()
            frame, payload, done = (queued.frame, queued.payload, queued.done) if queued else (Frame(BEAT), EMPTY, None)
            try:
                self._write_frame(frame, payload)
            finally:
                if done is not None:
                    done()
            with self._lock:
                self._writing = False
                if not self._queue:
                    self._room.notify_all()
        self._write_frame(Frame(GOODBYE), EMPTY)
        # Whoever does not answer a goodbye is given up, even where nobody waits in `close`.
        self._stream.wait_at_most(self._options.stall_seconds, self._options.stall_seconds)

    def _write_frame(self, frame: Frame, payload: memoryview) -> None:
        """Number a frame, and write it unless an injected fault takes it away."""
        frame = frame._replace(sequence=self._sent)
        self._sent += 1
        fault = None
        if self._options.faults is not None and frame.kind in self._options.phases:
            fault = self._options.faults.of_frame(self._options.phases[frame.kind], frame.step)
        if fault != "drop":
            self._transmit(frame, payload, corrupt=fault == "corrupt")

    def _transmit_now(self, frame: Frame, payload: memoryview) -> bool:
        """Write a numbered frame at once, from the thread that sends it, where that takes no time; else False."""
        return False

    def _transmit(self, frame: Frame, payload: memoryview, corrupt: bool) -> None:
        """Write a frame with its payload behind it."""
        checksummed = bool(payload) and (self._checksums or not self._stream.trusted)
        header = encode_header(frame, CHECKSUMMED if checksummed else 0)
        if corrupt and not payload:
            header = flipped(header)
        if not checksummed:
            self._stream.send(header, flipped(payload) if corrupt and payload else payload)
            self.counters.sent.add(frame.kind, HEADER_BYTES, len(payload))
            return
        checksum = Checksum()
        parts: list[bytes | memoryview] = [header]
        for start in range(0, len(payload), BLOCK):
            block = payload[start : start + BLOCK]
            checksum.add(block)
            parts.append(flipped(block) if corrupt and not start else block)
            if start + BLOCK >= len(payload):
                parts.append(checksum.trailer())
            self._stream.send(*parts)
            parts.clear()
        self.counters.sent.add(frame.kind, HEADER_BYTES + TRAILER_BYTES, len(payload))

    # The receiver

    def _receive(self) -> None:
        head = memoryview(bytearray(HEADER_BYTES))
        while True:
            count = self._read_header(head)
            if not count and self._closing:
                raise LinkClosed("closed by this side", orderly=True)
            if not count:
                raise LinkClosed("the connection ended without a goodbye: the peer is gone or gave up")
            if count < HEADER_BYTES:
                raise FrameError(f"the connection ended within a header, after {count} of {HEADER_BYTES} bytes")
            header = decode_header(head, self._received, self._options.length_limit)
            self._received += 1
            frame = header.frame
            if frame.kind == GOODBYE:
                self._answer_goodbye()
            payload = self._read_payload(header)
            if payload is not None and frame.kind != BEAT:
                self._deliver(frame, payload)
            del payload  # it must not take memory until the next frame comes

    def _answer_goodbye(self) -> NoReturn:
        """The peer ends the link, and reads until this side has written what is queued and said goodbye, too."""
        with self._lock:
            what = "closed by this side" if self._closing else "the peer closed the link"
            reason = LinkClosed(what, orderly=True, where=f"link to {self.peer}")
            self._reason = self._reason or reason  # from here on nothing more can be sent
            self._closing = True
            self._work.notify()
            self._room.notify_all()
        self._threads[0].join()
        raise reason

    def _read_header(self, head: memoryview) -> int:
        """Fill `head` with the next header; the number of bytes that came."""
        return self._stream.receive(head, begun=False)

    def _read_payload(self, header: Header) -> memoryview | None:
        """The payload of a frame where it belongs; None when nobody wants it."""
        frame = header.frame
        if header.inline != frame.length:
            raise FrameError("a frame points into shared memory on a link that shares none")
        checksummed = bool(header.flags & CHECKSUMMED)
        framing = HEADER_BYTES + (TRAILER_BYTES if checksummed else 0)
        target: memoryview | None = EMPTY
        if frame.length:
            target = self._target(frame)
            checksum = Checksum() if checksummed else None
            if target is None:
                self._read_away(frame.length, checksum)
            else:
                self._fill(target, checksum)
            if checksum is not None:
                self._compare(checksum.trailer())
        self.counters.received.add(frame.kind, framing, frame.length)
        return target

    def _target(self, frame: Frame) -> memoryview | None:
        """Memory for a payload; None to throw it away."""
        place = self._place(frame)
        if isinstance(place, Discard):
            return None
        if place is None:
            if frame.length > self._options.allocation_limit:
                limit = self._options.allocation_limit
                raise FrameError(f"no place for a payload of {frame.length:,} bytes, more than {limit:,} by itself")
            return np.empty(frame.length, np.uint8).data
        target = as_bytes(place)
        if target.readonly:
            raise LinkError(f"a payload of {frame.length:,} bytes was given memory that cannot be written")
        if len(target) != frame.length:
            raise LinkError(f"a payload of {frame.length:,} bytes was given {len(target):,} bytes to go to")
        return target

    def _fill(self, target: memoryview, checksum: Checksum | None) -> None:
        """Read a payload to where it belongs: at once, or block by block where it is summed."""
        size = len(target) if checksum is None else BLOCK
        for start in range(0, len(target), size):
            block = target[start : start + size]
            self._read_all(block)
            if checksum is not None:
                checksum.add(block)

    def _read_away(self, length: int, checksum: Checksum | None) -> None:
        """Read a payload that nobody wants."""
        room = memoryview(bytearray(min(length, BLOCK)))
        for start in range(0, length, BLOCK):
            self._fill(room[: min(BLOCK, length - start)], checksum)

    def _read_all(self, buffer: memoryview) -> None:
        count = self._stream.receive(buffer)
        if count < len(buffer):
            raise FrameError("the connection ended within a payload")

    def _compare(self, expected: bytes) -> None:
        trailer = bytearray(TRAILER_BYTES)
        self._read_all(memoryview(trailer))
        if trailer != expected:
            raise FrameError("a payload is damaged: its checksum is wrong")


def flipped(data: memoryview | bytes) -> bytes:
    """A copy with one bit flipped, in the middle: an injected fault."""
    damaged = bytearray(data)
    damaged[len(damaged) // 2] ^= 1
    return bytes(damaged)
