"""Streams: whole buffers through a connected socket, with a deadline on every wait."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import NoReturn

from distributed.errors import LinkClosed, LinkTimeout

# Bytes in flight inside one machine stay in the cache with small buffers; between machines the kernel tunes them.
LOCAL_BUFFER_BYTES = 1 << 18
# Who waits for much is woken when so much is there (half of what may be under way), not for each of the packets.
WAKE_BYTES = LOCAL_BUFFER_BYTES // 2
LARGE_BYTES = 1 << 20  # what much is: asking for it costs two calls of the kernel


class SocketStream:
    """A connected socket of the TCP or Unix family that blocks in the kernel, not in Python.

    The kernel's own timeouts bound each call, so that a payload of any size is one call without the interpreter's lock
    as long as bytes flow.

    stall_seconds: how long to wait for the next byte of something that has begun.
    silence_seconds: how long to wait for something to begin; None: for ever.
    """

    def __init__(self, connected: socket.socket, stall_seconds: float, silence_seconds: float | None = None):
        self.socket = connected
        connected.settimeout(None)
        self._wakes_late = connected.family != socket.AF_UNIX and self.local
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self.local:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER_BYTES)
        self.wait_at_most(stall_seconds, silence_seconds)

    @property
    def local(self) -> bool:
        """Whether both ends are on one machine."""
        if self.socket.family == socket.AF_UNIX:
            return True
        return bool(self.socket.getpeername()[0] == self.socket.getsockname()[0])

    @property
    def trusted(self) -> bool:
        """Whether bytes arrive as they were sent without a checksum of ours: they never leave the machine."""
        return self.local

    def wait_at_most(self, stall_seconds: float, silence_seconds: float | None = None) -> None:
        """Set both deadlines."""
        self._stall, self._silence = stall_seconds, silence_seconds
        shortest = min(stall_seconds, silence_seconds or stall_seconds)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_seconds))
        # A wait that ends early goes on unless its own deadline has passed.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(shortest / 4))

    def send(self, *parts: bytes | memoryview, descriptors: Sequence[int] = ()) -> None:
        """Write all parts.

        descriptors: open files that travel with the first byte (Unix sockets only).

        Raises LinkTimeout when the peer takes nothing for `stall_seconds`, LinkClosed when the connection is broken.
        """
        views = [memoryview(part) for part in parts if len(part)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
        ancillary = rights if descriptors else []
        try:
            while views:
                count = self.socket.sendmsg(views, ancillary)
                ancillary = []
                while views and count >= len(views[0]):
                    count -= len(views.pop(0))
                if count:
                    views[0] = views[0][count:]
        except BlockingIOError:
            raise LinkTimeout(f"the peer has taken nothing for {self._stall:g} s") from None
        except OSError as error:
            _broken(error)

    def send_now(self, *parts: bytes | memoryview) -> bool:
        """Write all parts if that needs no waiting; False where nothing is written, for whatever reason.

        Only for Unix sockets, which take so much at once or not at all, and for a few KiB.
        """
        try:
            count = self.socket.sendmsg(parts, [], socket.MSG_DONTWAIT)
        except OSError:  # full, or broken: `send` says so
            return False
        if count < sum(map(len, parts)):
            self.shutdown()  # the peer must not take the rest for a frame
        return True

    def receive(self, buffer: memoryview, begun: bool = True, until: float | None = None) -> int:
        """Fill the buffer; return how many bytes came, fewer only where the stream has ended.

        begun: False where a new frame may begin, for which the deadline of silence holds.
        until: a deadline for the whole, by `time.monotonic()`.

        Raises LinkTimeout and LinkClosed like `send`.
        """
        count = 0
        if len(buffer) >= LARGE_BYTES and self._wakes_late:
            # Only as long as so much is certain to follow: the end comes by itself.
            first = buffer[: len(buffer) - WAKE_BYTES]
            self._wake_at(WAKE_BYTES)
            count = self._fill(first, begun, until)
            self._wake_at(1)
            if count < len(first):
                return count
        return count + self._fill(buffer[count:], begun or count > 0, until)

    def _wake_at(self, count: int) -> None:
        """Let waits for bytes end once so many are there, or the stream does, or the deadline is over."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        except OSError as error:
            _broken(error)

    def _fill(self, buffer: memoryview, begun: bool, until: float | None) -> int:
        """See `receive`."""
        count = 0
        while count < len(buffer):
            arrived = self._arrive(buffer[count:], begun or count > 0, until, socket.MSG_WAITALL)
            if not arrived:
                break
            count += arrived
        return count

    def _arrive(self, buffer: memoryview, begun: bool, until: float | None = None, flags: int = 0) -> int:
        """Some bytes into the buffer; 0 at the end of the stream."""
        since = time.monotonic()
        while until is None or time.monotonic() < until:
            try:
                return self.socket.recv_into(buffer, 0, flags)
            except BlockingIOError:
                self._check_wait(since, begun)
            except OSError as error:
                _broken(error)
        raise LinkTimeout("not everything arrived in time")

    def receive_with_descriptors(self, buffer: memoryview, most: int) -> tuple[int, list[int]]:
        """Like `receive` of something new, with the open files that came along (at most `most` of them)."""
        since = time.monotonic()
        space = socket.CMSG_SPACE(most * struct.calcsize("i"))
        while True:
            try:
                count, ancillary, flags, _ = self.socket.recvmsg_into(
                    [buffer], space, socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self._check_wait(since, begun=False)
                continue
            except OSError as error:
                _broken(error)
            break
        descriptors = [
            descriptor
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for (descriptor,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])
        ]
        try:
            if flags & socket.MSG_CTRUNC:
                raise LinkClosed("the peer sent open files that this process has no room for", hint="see ulimit -n")
            if 0 < count < len(buffer):
                count += self.receive(buffer[count:])
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return count, descriptors

    def _check_wait(self, since: float, begun: bool) -> None:
        deadline = self._stall if begun else self._silence
        if deadline is not None and time.monotonic() - since >= deadline:
            what = "nothing more has arrived of what has begun" if begun else "the peer has been silent"
            raise LinkTimeout(f"{what} for {deadline:g} s")

    def shutdown(self) -> None:
        """End both directions, from any thread: blocked calls of both ends return."""
        with contextlib.suppress(OSError):  # it has ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self.socket.close()


def _timeval(seconds: float) -> bytes:
    micros = max(1, math.ceil(seconds * 1e6))  # zero would mean to wait for ever
    return struct.pack("ll", micros // 1_000_000, micros % 1_000_000)


def _broken(error: OSError) -> NoReturn:
    raise LinkClosed(f"the connection broke: {error.strerror or error}") from None
