"""Messages of the stage ring as frames: what comes out is what went in, and what is none is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from distributed.errors import FrameError
from distributed.links.frames import Frame, as_bytes
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.wire import PHASES, Assembler, frames_of

NAMED = {
    "h": torch.arange(6.0).view(2, 3),
    "mask": torch.tensor([True, False]),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "nothing": torch.empty(3, 0),
    "one": torch.tensor(2.5),
}
MESSAGES = [
    Message(Kind.FORWARD, 7, 3, (4, 1), NAMED),
    Message(Kind.BACKWARD, 7, 3, (4, 1), {}),
    Message(Kind.GRADIENT, 7, 3, (4, 0), torch.arange(5.0)),
    Message(Kind.STATE, 7, 2, (4, 1), torch.arange(5.0)),
    Message(Kind.SUMS, 7, 3, (1, 0), b"\x00\x01\x02"),
    Message(Kind.STATE_END, 7, 2, (4, 0), {"step": 2, "updates": 1}),
    Message(Kind.WALK, 1024, payload={"gone": [1], "statuses": []}),
]


def new_gradient(stage: int, elements: int) -> torch.Tensor:
    if elements != 5:
        raise FrameError(f"{elements} elements are no gradient of stage {stage}")
    return torch.zeros(elements)


def carried(assembler: Assembler, frames: Sequence[tuple[Frame, Any]], shared: bool = False) -> list[Message]:
    """What comes of frames; shared: their payloads lie in memory that no place is asked for."""
    found = []
    for frame, payload in frames:
        content = bytes(as_bytes(payload)) if len(as_bytes(payload)) else b""
        frame = frame._replace(length=len(content))
        target = assembler.place(frame) if content and not shared else None
        view = memoryview(bytearray(content)) if target is None else as_bytes(target)
        view[:] = content
        message = assembler.take(frame, view)
        found += [message] if message is not None else []
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


@pytest.mark.parametrize("shared", [False, True])
def test_messages_arrive_as_they_were(shared: bool) -> None:
    assembler = Assembler(new_gradient)
    found = carried(assembler, [frame for one in MESSAGES for frame in frames_of(one)], shared)
    assert [one._replace(payload=None) for one in found] == [one._replace(payload=None) for one in MESSAGES]
    assert all(same(one.payload, wanted.payload) for one, wanted in zip(found, MESSAGES, strict=True))


@pytest.mark.parametrize(("change", "line"), [
    (lambda frames: frames[1:], "tensor 1 of FORWARD is not the one that was to come"),
    (lambda frames: [frames[0], frames[2]], "tensor 2 of FORWARD is not the one"),
    (lambda frames: [frames[0], *frames_of(MESSAGES[4])], "SUMS comes within another message"),
    (lambda frames: [frames[0], *frames], "FORWARD comes within another message"),
    (lambda frames: [frames[0], (frames[1][0], torch.zeros(7))], r"a tensor of \[2, 3\] comes as 28 bytes"),
    (lambda frames: [(frames[0][0], b'{"h": ["complex64", [1]]}')], "what tensors are to come cannot be read"),
    (lambda frames: [(Frame(kind=Kind.GRADIENT), torch.zeros(4))], "4 elements are no gradient of stage 0"),
    (lambda frames: [(Frame(kind=Kind.STATE), b"123")], "3 bytes are no values"),
    (lambda frames: [(Frame(kind=9), b"")], "sends no frame of kind 9"),
])  # fmt: skip
def test_what_is_no_message_is_refused(change: Any, line: str) -> None:
    with pytest.raises(FrameError, match=line):
        carried(Assembler(new_gradient), change(list(frames_of(MESSAGES[0]))))


def test_phases_are_named_once() -> None:
    assert len(set(PHASES.values())) == len(PHASES)
