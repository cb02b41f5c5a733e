"""Links within one machine."""

from __future__ import annotations

import os

from distributed.errors import FrameError
from distributed.links.frames import (
    CHECKSUMMED,
    HEADER_BYTES,
    NEW_SEGMENT,
    SHARED,
    TRAILER_BYTES,
    Frame,
    Header,
    encode_header,
    payload_checksum,
)
from distributed.links.link import LinkOptions, Peer
from distributed.links.shared_memory import SharedSegment
from distributed.links.socket_link import SocketLink, flipped
from distributed.links.stream import SocketStream

SMALL_BYTES = 1 << 12  # of a payload that goes through the socket at once


class ShmLink(SocketLink):
    """A link over a Unix socket between processes that share memory.

    A payload that lies in this side's arena stays where it is: the header says where, and the peer delivers the very
    memory. Its segment's descriptor goes along the first time. Other payloads go through the socket.
    """

    def __init__(self, stream: SocketStream, peer: Peer, options: LinkOptions):
        super().__init__(stream, peer, options)
        self._told: set[int] = set()  # numbers of own segments that the peer has
        self._mapped: dict[int, SharedSegment] = {}  # the peer's segments
        self._came: list[int] = []  # descriptors that came with the header in hand

    def _transmit_now(self, frame: Frame, payload: memoryview) -> bool:
        # To wake the writer for the few bytes of a place in shared memory costs more than to write them.
        if self._checksums:  # also where a frame may have to be damaged or lost
            return False
        found = self._options.arena.find(payload) if self._options.arena is not None else None
        if found is None:
            if len(payload) > SMALL_BYTES or not self._stream.send_now(encode_header(frame), payload):
                return False
            self.counters.sent.add(frame.kind, HEADER_BYTES, len(payload))
            return True
        segment, offset = found
        if segment.number not in self._told:
            return False
        if not self._stream.send_now(encode_header(frame, SHARED, segment.number, offset)):
            return False
        self.counters.sent.add(frame.kind, HEADER_BYTES, shared=len(payload))
        return True

    def _transmit(self, frame: Frame, payload: memoryview, corrupt: bool) -> None:
        arena = self._options.arena
        found = arena.find(payload) if arena is not None else None
        if found is None:
            super()._transmit(frame, payload, corrupt)
            return
        segment, offset = found
        flags, trailer = SHARED, b""
        if self._checksums:
            flags, trailer = flags | CHECKSUMMED, payload_checksum(payload)
        new = segment.number not in self._told
        if new:
            flags |= NEW_SEGMENT
            self._told.add(segment.number)
        header = encode_header(frame, flags, segment.number, offset)
        if corrupt:  # the memory is its owner's: what travels is damaged
            header, trailer = (header, flipped(trailer)) if trailer else (flipped(header), trailer)
        self._stream.send(header, trailer, descriptors=[segment.descriptor] if new else [])
        self.counters.sent.add(frame.kind, HEADER_BYTES + len(trailer), shared=len(payload))

    def _read_header(self, head: memoryview) -> int:
        count, self._came = self._stream.receive_with_descriptors(head, most=1)
        return count

    def _read_payload(self, header: Header) -> memoryview | None:
        try:
            self._map(header)
        finally:
            for descriptor in self._came:
                os.close(descriptor)
            self._came = []
        if not header.flags & SHARED:
            return super()._read_payload(header)
        frame = header.frame
        segment = self._mapped.get(header.segment)
        if segment is None or header.offset + frame.length > len(segment.bytes):
            raise FrameError("a frame points to shared memory that is not there")
        payload = segment.bytes[header.offset : header.offset + frame.length]
        framing = HEADER_BYTES
        if header.flags & CHECKSUMMED:
            framing += TRAILER_BYTES
            self._compare(payload_checksum(payload))
        self.counters.received.add(frame.kind, framing, shared=frame.length)
        return payload

    def _map(self, header: Header) -> None:
        """Take in the segment whose descriptor came with the header."""
        if bool(header.flags & NEW_SEGMENT) != bool(self._came):
            raise FrameError("a frame came without the shared memory that it announces, or with some that it does not")
        if self._came:
            self._mapped[header.segment] = SharedSegment.received(header.segment, self._came.pop())

    def _release(self) -> None:
        self._mapped.clear()
