"""Frames: what is written is read, and whatever is damaged is refused."""

from __future__ import annotations

import math
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.errors import FrameError
from distributed.links import frames
from distributed.links.frames import (
    BLOCK,
    HEADER_BYTES,
    SHARED,
    Checksum,
    Frame,
    Header,
    as_bytes,
    as_tensor,
    decode_header,
    encode_header,
    json_payload,
    payload_checksum,
    read_json,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FRAMES = st.builds(
    Frame,
    kind=st.integers(0, 255),
    step=U64,
    tags=st.tuples(U32, U32, U32),
    epoch=U32,
    length=st.integers(0, frames.LENGTH_LIMIT),
    sequence=U64,
)
EXAMPLE = Header(Frame(7, step=12, tags=(1, 2, 3), epoch=4, length=5, sequence=6), SHARED, 8, 9)


@given(FRAMES, st.integers(0, 7), U32, U64)
@settings(max_examples=100, deadline=None)
def test_what_is_encoded_is_decoded(frame: Frame, flags: int, segment: int, offset: int) -> None:
    header = Header(frame, flags, segment, offset)
    data = encode_header(*header)
    assert len(data) == HEADER_BYTES == 64
    assert decode_header(data, frame.sequence) == header


def test_the_layout_is_the_one_that_is_documented() -> None:
    body = b"s2sL" + struct.pack("<BBHIQQ3IQIQ", 2, 7, SHARED, 4, 12, 6, 1, 2, 3, 5, 8, 9)
    assert encode_header(*EXAMPLE) == body + struct.pack("<I", zlib.crc32(body))


def test_a_flipped_bit_anywhere_in_a_header_is_found() -> None:
    data = encode_header(*EXAMPLE)
    for bit in range(8 * HEADER_BYTES):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode_header(damaged, EXAMPLE.frame.sequence)


def test_a_header_cut_at_any_byte_is_found() -> None:
    data = encode_header(*EXAMPLE)
    for length in range(HEADER_BYTES):
        with pytest.raises(FrameError, match=f"64 bytes, not {length}$"):
            decode_header(data[:length], EXAMPLE.frame.sequence)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"sequence": 7}, "frame 7 arrived where frame 6 was due: a frame was lost"),
        ({"sequence": 5}, "frame 5 arrived where frame 6 was due"),
        ({"length": 1001}, "announces 1,001 bytes, more than the limit of 1,000"),
    ],
)
def test_frames_that_are_well_formed_and_still_wrong(changes: dict[str, int], what: str) -> None:
    data = encode_header(EXAMPLE.frame._replace(**changes))
    with pytest.raises(FrameError, match=what):
        decode_header(data, 6, limit=1000)


def resealed(position: int, value: bytes) -> bytes:
    """The example's header with other bytes somewhere and a right checksum."""
    data = bytearray(encode_header(*EXAMPLE))
    data[position : position + len(value)] = value
    data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (resealed(0, b"GET "), "does not begin like a frame; is the peer a process of this program"),
        (resealed(4, b"\x01"), "the peer speaks version 1 of the frames, this side 2"),
        (resealed(6, b"\x08"), "unknown flags 0x8"),
    ],
)
def test_strangers_are_told_apart(data: bytes, what: str) -> None:
    with pytest.raises(FrameError, match=what):
        decode_header(data, EXAMPLE.frame.sequence)


@pytest.mark.parametrize("changes", [{"step": -1}, {"step": 2**64}, {"tags": (0, 2**32, 0)}, {"kind": 256}])
def test_what_fits_no_header_is_a_mistake_of_the_caller(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="does not fit a header"):
        encode_header(EXAMPLE.frame._replace(**changes))


@pytest.mark.parametrize("length", [1, 7, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 13])
def test_the_checksum_is_of_the_payload_and_of_no_cut(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()
    pieces = Checksum()
    for start in range(0, length, 777_777):
        pieces.add(memoryview(data)[start : start + 777_777])
    assert pieces.trailer() == payload_checksum(memoryview(data))


def test_the_checksum_is_the_published_one() -> None:
    """Of nothing, by the sanity checks of the reference implementation: 2d06800538d394c2."""
    assert Checksum().trailer() == bytes.fromhex("c294d3380580062d")


@given(st.binary(min_size=1, max_size=100), st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_changes_the_checksum(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    assert payload_checksum(memoryview(damaged)) != payload_checksum(memoryview(data))


def test_exchanged_blocks_change_the_checksum() -> None:
    one, two = random.Random(1).randbytes(BLOCK), random.Random(2).randbytes(BLOCK)
    assert payload_checksum(memoryview(one + two)) != payload_checksum(memoryview(two + one))


def test_tensors_travel_without_a_copy() -> None:
    tensor = torch.arange(12, dtype=torch.float32).view(3, 4)
    view = as_bytes(tensor)
    assert (view.nbytes, view.format, view.readonly) == (48, "B", False)
    back = as_tensor(view, torch.float32)
    assert back.data_ptr() == tensor.data_ptr()
    assert as_bytes(torch.nn.Parameter(tensor)).nbytes == 48
    assert as_bytes(torch.arange(3, dtype=torch.bfloat16)).nbytes == 6
    assert as_tensor(as_bytes(torch.empty(0)), torch.float32).numel() == 0
    with pytest.raises(ValueError, match="contiguous CPU tensors"):
        as_bytes(tensor.t())


def test_control_messages_keep_their_floats() -> None:
    message = {"norm": 0.1 + 0.2, "loss": math.inf, "names": ["a", "β"], "none": None}
    assert read_json(memoryview(json_payload(message))) == message
    assert math.isnan(read_json(json_payload({"loss": math.nan}))["loss"])


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"[" * 4000])
def test_what_is_no_control_message_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match="no JSON object"):
        read_json(data)
