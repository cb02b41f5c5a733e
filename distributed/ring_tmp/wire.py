"""Messages of the stage ring as frames, and back.

A message with tensors by name is a frame that says what they are (JSON), and one for each of them; all others are one
frame. One thread sends on a link, so frames of a message are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from distributed.errors import FrameError
from distributed.links.frames import Frame, as_tensor, json_payload, read_json
from distributed.ring_tmp.messages import Kind, Message

TO_TASKS = (Kind.FORWARD, Kind.BACKWARD)
BY_NAME = (*TO_TASKS, Kind.SCORED)
FLAT = (Kind.GRADIENT, Kind.STATE, Kind.ACROSS_REDUCE, Kind.ACROSS_GATHER)
DTYPES = {
    str(one).removeprefix("torch."): one
    for one in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool)
}
PHASES = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.GRADIENT: "gradient",
    Kind.SUMS: "sums",
    Kind.STATE: "state",
    Kind.STATE_END: "stated",
    Kind.WALK: "walk",
    Kind.VERDICT: "verdict",
    Kind.ACROSS_REDUCE: "reduce",
    Kind.ACROSS_GATHER: "gather",
    Kind.ACROSS_WORD: "across",
    Kind.SCORED: "scored",
}
"""What frames are called where faults are injected; walks and verdicts are of step 0."""


def frames_of(message: Message) -> Iterator[tuple[Frame, torch.Tensor | bytes]]:
    """A message's frames, with their payloads."""

    def frame(index: int = 0) -> Frame:
        return Frame(kind=message.kind, step=message.step, tags=(*message.tags, index), epoch=message.epoch)

    payload = message.payload
    if message.kind in BY_NAME:
        tensors: Mapping[str, torch.Tensor] = payload or {}
        about = {name: [str(one.dtype).removeprefix("torch."), list(one.shape)] for name, one in tensors.items()}
        yield frame(), json_payload(about)
        for index, tensor in enumerate(tensors.values(), start=1):
            yield frame(index), tensor.detach() if tensor.numel() else b""
    elif message.kind in FLAT:
        yield frame(), payload.detach()
    else:
        yield frame(), payload if isinstance(payload, bytes) else json_payload(payload)


class Assembler:
    """Makes messages of the frames of one link, in the thread that receives them.

    new_gradient: gives memory for the gradient of a stage, of so many elements.
    """

    def __init__(self, new_gradient: Callable[[int, int], torch.Tensor]):
        self._new_gradient = new_gradient
        self._head: Frame | None = None  # of the message that is under way
        self._about: list[tuple[str, torch.dtype, list[int]]] = []
        self._tensors: dict[str, torch.Tensor] = {}
        self._place: torch.Tensor | None = None

    def place(self, frame: Frame) -> torch.Tensor | None:
        """Where the payload of a frame goes; see `Link.start`."""
        self._place = None
        if frame.kind in BY_NAME and frame.tags[2]:
            _, dtype, shape = self._next(frame)
            if frame.length != math.prod(shape) * dtype.itemsize:
                raise FrameError(f"a tensor of {shape} comes as {frame.length} bytes")
            self._place = torch.empty(shape, dtype=dtype)
        elif frame.kind in FLAT:
            if frame.length % 4:
                raise FrameError(f"{frame.length} bytes are no values")
            elements = frame.length // 4
            is_gradient = frame.kind == Kind.GRADIENT
            self._place = self._new_gradient(frame.tags[0], elements) if is_gradient else torch.empty(elements)
        return self._place

    def take(self, frame: Frame, payload: memoryview) -> Message | None:
        """The message that ends with this frame, if one does. Raises FrameError for what is none."""
        if frame.kind not in set(Kind):
            raise FrameError(f"a node of the ring sends no frame of kind {frame.kind}")
        kind, placed = Kind(frame.kind), self._place
        self._place = None
        if self._head is not None and not (kind in BY_NAME and frame.tags[2]):
            raise FrameError(f"{kind.name} comes within another message")
        if kind in BY_NAME:
            return self._take_named(frame, payload, placed)
        content: Any
        if kind in FLAT:
            content = as_tensor(payload, torch.float32) if placed is None else placed
        else:
            content = bytes(payload) if kind == Kind.SUMS else read_json(payload)
        return Message(kind, frame.epoch, frame.step, frame.tags[:2], content)

    def _take_named(self, frame: Frame, payload: memoryview, placed: torch.Tensor | None) -> Message | None:
        if not frame.tags[2]:
            self._head, self._tensors = frame, {}
            try:
                about = read_json(payload).items()
                self._about = [(name, DTYPES[dtype], list(map(int, shape))) for name, (dtype, shape) in about]
            except (KeyError, TypeError, ValueError):
                raise FrameError("what tensors are to come cannot be read") from None
        else:
            name, dtype, shape = self._next(frame)
            if placed is None:
                placed = (as_tensor(payload, dtype) if len(payload) else torch.empty(0, dtype=dtype)).view(shape)
            self._tensors[name] = placed
        if len(self._tensors) < len(self._about):
            return None
        self._head = None
        return Message(Kind(frame.kind), frame.epoch, frame.step, frame.tags[:2], self._tensors)

    def _next(self, frame: Frame) -> tuple[str, torch.dtype, list[int]]:
        """What the tensor of a frame has to be."""
        head = self._head
        due = len(self._tensors) + 1
        if head is None or (frame.kind, frame.step, frame.epoch, *frame.tags) != (
            head.kind,
            head.step,
            head.epoch,
            *head.tags[:2],
            due,
        ):
            raise FrameError(f"tensor {frame.tags[2]} of {Kind(frame.kind).name} is not the one that was to come")
        return self._about[due - 1]
