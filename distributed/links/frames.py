"""Frames: what a message looks like on the wire, and every way in which it can be wrong.

    header (64 bytes, little endian) | payload (length bytes) | checksum (8 bytes, only where the header says so)

The header ends with its own crc32. The payload's checksum follows the payload, so that both ends compute it block by
block while the bytes are in the cache anyway. A payload in shared memory is not on the wire: the header says where it
lies. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from distributed.errors import FrameError

if TYPE_CHECKING:
    import torch

MAGIC = b"s2sL"
VERSION = 2  # in 1, checksums were sums
LENGTH_LIMIT = 1 << 36  # bytes: no payload is larger; what claims to be is not from us

# Flags
CHECKSUMMED = 1  # a checksum follows the payload
SHARED = 2  # the payload lies in shared memory: the header's segment and offset
NEW_SEGMENT = 4  # the segment's file descriptor comes with this header
_KNOWN_FLAGS = CHECKSUMMED | SHARED | NEW_SEGMENT

# Kinds that belong to the link itself and are never handed to anybody; a protocol's own kinds count from 1 to BEAT - 1.
GOODBYE = 0  # the end is meant
BEAT = 255  # nothing to say, but alive

_FIELDS = struct.Struct("<4sBBHIQQ3IQIQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size
TRAILER_BYTES = 8

BLOCK = 1 << 20  # bytes that are checksummed at once: stay in a core's second-level cache


class Frame(NamedTuple):
    """What a sender says about a message, and what its receiver learns.

    kind: 1 to 254, what the message is; numbered by the protocol that uses the link.
    step: the training step it belongs to.
    tags: three whole numbers below 2^32 that the kind gives a meaning.
    epoch: the membership epoch of the sender; frames of an older one are a fenced zombie's.
    length: bytes of the payload; filled in by the link.
    sequence: position of the frame in its direction of the link, from 0; filled in by the link.
    """

    kind: int
    step: int = 0
    tags: tuple[int, int, int] = (0, 0, 0)
    epoch: int = 0
    length: int = 0
    sequence: int = 0


class Header(NamedTuple):
    """A decoded header: the frame, and how its payload travels."""

    frame: Frame
    flags: int = 0
    segment: int = 0
    offset: int = 0

    @property
    def inline(self) -> int:
        """Bytes of the payload that follow the header on the wire."""
        return 0 if self.flags & SHARED else self.frame.length


def encode_header(frame: Frame, flags: int = 0, segment: int = 0, offset: int = 0) -> bytes:
    """The 64 bytes of a header; see `Header`.

    Raises ValueError where a field does not fit: a bug of the caller.
    """
    try:
        body = _FIELDS.pack(
            MAGIC,
            VERSION,
            frame.kind,
            flags,
            frame.epoch,
            frame.step,
            frame.sequence,
            *frame.tags,
            frame.length,
            segment,
            offset,
        )
    except struct.error as error:
        raise ValueError(f"{frame} does not fit a header: {error}") from None
    return body + _CRC.pack(zlib.crc32(body))


def decode_header(data: bytes | bytearray | memoryview, expected_sequence: int, limit: int = LENGTH_LIMIT) -> Header:
    """Read a header and check everything that can be checked without its payload.

    Raises FrameError for another magic, version or checksum, for unknown flags, for a frame that is not number
    `expected_sequence` of its direction, and for a payload of more than `limit` bytes.
    """
    if len(data) != HEADER_BYTES:
        raise FrameError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
    magic, version, kind, flags, epoch, step, sequence, *tags, length, segment, offset = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise FrameError("what arrived does not begin like a frame", hint="is the peer a process of this program?")
    if version != VERSION:
        raise FrameError(f"the peer speaks version {version} of the frames, this side {VERSION}")
    if zlib.crc32(data[: -_CRC.size]) != _CRC.unpack_from(data, HEADER_BYTES - _CRC.size)[0]:
        raise FrameError("a frame's header is damaged: its checksum is wrong")
    if flags & ~_KNOWN_FLAGS:
        raise FrameError(f"a frame carries unknown flags {flags:#x}")
    if sequence != expected_sequence:
        raise FrameError(f"frame {sequence} arrived where frame {expected_sequence} was due: a frame was lost")
    if length > limit:
        raise FrameError(f"a frame announces {length:,} bytes, more than the limit of {limit:,}")
    frame = Frame(kind, step, (tags[0], tags[1], tags[2]), epoch, length, sequence)
    return Header(frame, flags, segment, offset)


class Checksum:
    """The checksum of a payload, taken in block by block: XXH3 with 64 bits (Collet), which reads faster than a copy.

    It is not a cryptographic one: it guards against broken memory and broken programs; TLS guards against people.
    """

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()

    def add(self, block: memoryview) -> None:
        """Take in the next block. The interpreter is free meanwhile."""
        self._hash.update(block)

    def trailer(self) -> bytes:
        """The eight bytes that follow the payload."""
        return self._hash.intdigest().to_bytes(TRAILER_BYTES, "little")


def payload_checksum(payload: memoryview) -> bytes:
    """The trailer of a whole payload."""
    checksum = Checksum()
    for start in range(0, len(payload), BLOCK):
        checksum.add(payload[start : start + BLOCK])
    return checksum.trailer()


def as_bytes(payload: torch.Tensor | memoryview | bytes | bytearray) -> memoryview:
    """A payload's own bytes, flat and without a copy: of a contiguous tensor on the CPU, or of a buffer.

    Raises ValueError for a tensor that is not contiguous or lies on another device.
    """
    if isinstance(payload, (memoryview, bytes, bytearray)):
        return memoryview(payload).cast("B")
    if payload.device.type != "cpu" or not payload.is_contiguous():
        raise ValueError(f"a link carries contiguous CPU tensors, not {payload.stride()} on {payload.device}")
    import torch

    return payload.detach().view(-1).view(torch.uint8).numpy().data


def as_tensor(payload: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """A payload as a flat tensor on the same memory."""
    import torch

    return torch.frombuffer(payload, dtype=dtype) if len(payload) else torch.empty(0, dtype=dtype)


def json_payload(message: Mapping[str, Any]) -> bytes:
    """A control message as a payload. Floats arrive with the same bits, NaN and infinities included."""
    return json.dumps(message, separators=(",", ":")).encode()


def read_json(payload: memoryview | bytes) -> dict[str, Any]:
    """The control message in a payload.

    Raises FrameError where it is none.
    """
    try:
        message = json.loads(bytes(payload))
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise FrameError("a control message is no JSON object")
    return message
