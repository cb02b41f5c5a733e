"""The two ends of a gradient's way: a worker makes payloads of its pieces, a server makes pieces of payloads.

Which form a piece travels in is a function of the setup, so it is the same at both ends. Payloads and what is decoded
of them lie in buffers that are used again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from distributed.buffers import BufferPool
from distributed.errors import FrameError
from distributed.parameter_server.compression import DTYPES, Dense, SparseRows, WireForm, whole_rows
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.top_k import ErrorFeedback, TopK
from distributed.shards import Piece

_BYTES = 4  # of an fp32 element


def form_of(piece: Piece, setup: Setup, memory: ErrorFeedback | None = None) -> WireForm:
    """How a piece's gradient travels; `memory`: what the sending end keeps back with `top_k`."""
    wire = setup.wire
    if wire.top_k:
        return TopK(piece.start, piece.stop, wire.top_k, memory, wire.warm_up, wire.type)
    if wire.sparse:
        return SparseRows(piece.elements, whole_rows(piece.start, piece.stop, setup.matrices), wire.type)
    return Dense(piece.elements, wire.type)


@dataclass
class Sent:
    """What a worker has made payloads of, and what they are: `bytes` is the sum of the three parts of all payloads.

    fp32_bytes: of the gradients as they lie in memory.
    payloads, bytes: number and length of the payloads; one that is sent again is counted once.
    head_bytes, elements, place_bytes, rows: as in `compression.Content`.
    """

    payloads: int = 0
    fp32_bytes: int = 0
    bytes: int = 0
    head_bytes: int = 0
    elements: int = 0
    place_bytes: int = 0
    rows: int = 0

    def to_dict(self) -> dict[str, float]:
        """Plain data for reports, with `ratio`: bytes as a share of those in fp32."""
        return asdict(self) | {"ratio": self.bytes / self.fp32_bytes if self.fp32_bytes else 1.0}


class SendingEnd:
    """A worker's end.

    Parameters
    ----------
    setup: the run.
    allocate: gives a buffer that may be sent from.
    """

    def __init__(self, setup: Setup, allocate: Callable[[int], torch.Tensor]):
        self.is_plain = setup.wire.is_plain
        self.memory = ErrorFeedback(setup.elements, setup.wire.momentum) if setup.wire.top_k else None
        """What is kept back, in a form that has a memory."""
        self.sent = Sent()
        self._forms = {piece.index: form_of(piece, setup, self.memory) for piece in setup.shard_map.pieces}
        self._rooms = BufferPool(allocate)

    def encode(self, piece: Piece, gradient: torch.Tensor, step: int) -> torch.Tensor:
        """The payload of a piece of a flat gradient; once it is answered it belongs to `give_back`.

        A plain payload is the gradient itself, which has to stay as it is; any other is a buffer of its own.
        """
        form, own = self._forms[piece.index], piece.of(gradient)
        if self.is_plain:
            payload = own
        else:
            room = self._rooms.take(-(-form.most_bytes // _BYTES)).view(torch.uint8)
            payload = form.encode(own, step, room)
        self._count(piece, form, payload.view(torch.uint8))
        return payload

    def give_back(self, payload: torch.Tensor) -> None:
        """Let a payload's buffer be used again."""
        self._rooms.give_back(payload)

    def _count(self, piece: Piece, form: WireForm, payload: torch.Tensor) -> None:
        sent, content = self.sent, form.content(payload)
        sent.payloads += 1
        sent.fp32_bytes += _BYTES * piece.elements
        sent.bytes += payload.numel()
        sent.head_bytes += content.head_bytes
        sent.elements += content.elements
        sent.place_bytes += content.place_bytes
        sent.rows += content.rows


class ReceivingEnd:
    """A server's end.

    Parameters
    ----------
    setup: the run.
    pool: gives the buffers that gradients are decoded to.
    """

    def __init__(self, setup: Setup, pool: BufferPool):
        self._is_plain, self._pool = setup.wire.is_plain, pool
        self._forms = {piece.index: form_of(piece, setup) for piece in setup.shard_map.pieces}
        self._rooms = BufferPool()

    def place(self, piece: Piece, length: int) -> torch.Tensor:
        """Where a payload of so many bytes is to be received. Raises FrameError for one that no sender makes."""
        most = self._forms[piece.index].most_bytes
        if length > most:
            raise FrameError(f"a gradient of {length:,} bytes where {most:,} are the most")
        if self._is_plain and length == most:
            return self._pool.take(piece.elements)
        return self._rooms.take(-(-most // _BYTES)).view(torch.uint8)[:length]

    def decode(self, piece: Piece, payload: torch.Tensor) -> torch.Tensor:
        """The gradient [elements of the piece] of a payload, uint8: in a buffer of the pool, or where it was sent from.

        Raises FrameError for a payload that no gradient of this piece has.
        """
        form = self._forms[piece.index]
        if self._is_plain:
            if payload.numel() != form.most_bytes:
                raise FrameError(f"a gradient of {payload.numel():,} bytes where {form.most_bytes:,} belong")
            return payload.view(DTYPES["fp32"])
        gradient = self._pool.take(piece.elements)
        try:
            with torch.inference_mode():  # buffers of the pool may have been made in it
                form.decode(payload, gradient)
        except FrameError:
            self._pool.give_back(gradient)
            raise
        finally:
            self._rooms.give_back(payload)
        return gradient
