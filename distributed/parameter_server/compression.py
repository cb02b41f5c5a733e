"""The forms in which a piece of a gradient travels: as it is, in bfloat16, or without the rows that nothing touched.

A form belongs to one piece and is the same at both ends. It turns the piece's gradient, fp32 on the CPU [elements],
into one payload of bytes [bytes] and back into a dense fp32 piece, written over or added. Sums are always in fp32.
Little endian throughout, as the processors are.

The experimental form that sends only the largest elements is in `distributed.parameter_server.top_k`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from distributed.errors import FrameError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORTH = 0.5  # rows of a table go one by one where at most this share of them was touched
_DENSE = 0xFFFFFFFF  # in place of a count of rows: all of them
_BLOCK = 1 << 18  # elements that are cast at a time, in the cache


@dataclass(frozen=True)
class Content:
    """What a payload is made of: bytes that say what follows, gradient elements, and bytes of their places.

    rows: of tables, that went one by one.
    """

    head_bytes: int
    elements: int
    place_bytes: int = 0
    rows: int = 0


class WireForm(Protocol):
    """How the gradient of one piece travels."""

    most_bytes: int
    """The longest payload that `encode` makes."""

    def content(self, payload: torch.Tensor) -> Content:
        """What a payload that `encode` made has in it."""

    def encode(self, gradient: torch.Tensor, update: int = 1, out: torch.Tensor | None = None) -> torch.Tensor:
        """The payload, uint8, of a gradient fp32 [elements].

        `update` numbers the worker's pushes from 1. With `out`, uint8 of at least `most_bytes` (and aligned to 4), the
        payload is written there and is a view of it; without, it may be a view of the gradient itself.
        """

    def decode(self, payload: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        """Write a payload's gradient over `out`, fp32 [elements], or add it; raises FrameError for a wrong payload.

        What was not sent is zero: written as such, and left alone by an addition. (A buffer summed up from zeros holds
        no -0.0, which adding 0.0 would change.)
        """


class Dense:
    """Every element, in fp32 or rounded to the nearest bfloat16 (ties to even).

    elements: of the piece. wire: `fp32` or `bf16`.
    """

    def __init__(self, elements: int, wire: str = "fp32"):
        self._dtype = DTYPES[wire]
        self._elements = elements
        self.most_bytes = elements * self._dtype.itemsize

    def encode(self, gradient: torch.Tensor, update: int = 1, out: torch.Tensor | None = None) -> torch.Tensor:
        """The payload; without `out`, that of fp32 is the gradient itself."""
        if out is None and self._dtype == torch.float32:
            return gradient.view(torch.uint8)
        payload = (torch.empty(self.most_bytes, dtype=torch.uint8) if out is None else out)[: self.most_bytes]
        payload.view(self._dtype).copy_(gradient)
        return payload

    def content(self, payload: torch.Tensor) -> Content:
        """All elements."""
        return Content(0, self._elements)

    def decode(self, payload: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        """Write or add all elements."""
        _check_length(payload, self.most_bytes)
        _put(payload.view(self._dtype), out, add)


@dataclass(frozen=True)
class Rows:
    """Whole rows of a table inside a piece: `count` rows of `width` elements from element `start` of the piece."""

    start: int
    count: int
    width: int

    @property
    def stop(self) -> int:
        """The element behind the last row."""
        return self.start + self.count * self.width

    def of(self, piece: torch.Tensor) -> torch.Tensor:
        """The rows [count, width] of a piece's buffer."""
        return piece[self.start : self.stop].view(self.count, self.width)


def whole_rows(start: int, stop: int, tables: Mapping[str, tuple[int, Sequence[int]]]) -> list[Rows]:
    """The whole rows of matrices in elements `start` to `stop` of a flat buffer, ascending.

    tables: offset in the flat buffer and shape by parameter, as in `FlatParameters.layout`; what is no matrix is passed
    over. Rows that a border of the piece cuts are not among them.
    """
    found = []
    for offset, shape in sorted((offset, tuple(shape)) for offset, shape in tables.values() if len(shape) == 2):
        rows, width = shape
        first = max(0, -(-(start - offset) // width))
        last = min(rows, (stop - offset) // width)
        if last > first:
            found.append(Rows(offset + first * width - start, last - first, width))
    return found


class SparseRows:
    """The rows that are not all zero, by number, and everything that is not part of a whole row: the same bits.

    After a backward pass an embedding table's gradient has as many rows as the batch has different words. Every table
    is looked at each time; one of which more than `WORTH` of the rows were touched goes as it is, so output matrices
    and weights may stand among the tables. A row of negative zeros counts as touched.

        u32 of each table: rows sent (0xFFFFFFFF: all), bytes of an id
        elements outside the tables, then of each table its rows, in the wire's type
        of each table the ids of its rows, each as the distance from the one before

    Parameters
    ----------
    elements: of the piece.
    tables: whole rows in it, as `whole_rows` finds them.
    wire: type of the elements sent; with `bf16` the bits are those of `Dense` in `bf16`.
    """

    def __init__(self, elements: int, tables: Sequence[Rows], wire: str = "fp32"):
        self._dtype = DTYPES[wire]
        self._tables = tuple(tables)
        self._between = _between(elements, self._tables)
        self._head = 8 * len(self._tables)
        self.most_bytes = (
            self._head + elements * self._dtype.itemsize + 4 * sum(int(WORTH * table.count) for table in self._tables)
        )

    def encode(self, gradient: torch.Tensor, update: int = 1, out: torch.Tensor | None = None) -> torch.Tensor:
        """The payload; its length depends on how many rows were touched."""
        touched = [_touched(gradient, table) for table in self._tables]
        ids = [None if rows is None else _distances(rows) for rows in touched]
        size = self._size([(_DENSE, 0) if one is None else (len(one), one.itemsize) for one in ids])
        payload = torch.empty(size, dtype=torch.uint8) if out is None else out[:size]
        head = payload[: self._head].numpy().view("<u4").reshape(-1, 2)
        at = self._head
        for start, stop in self._between:
            at = self._write(payload, at, gradient[start:stop])
        for number, (table, rows, own) in enumerate(zip(self._tables, touched, ids, strict=True)):
            if rows is None or own is None:
                head[number] = (_DENSE, 0)
                at = self._write(payload, at, gradient[table.start : table.stop])
            else:
                head[number] = (len(own), own.itemsize)
                at = self._gather(payload, at, table.of(gradient), torch.from_numpy(rows))
        for own in ids:
            if own is not None:
                payload.numpy()[at : at + own.nbytes] = own.view(np.uint8)
                at += own.nbytes
        return payload

    def content(self, payload: torch.Tensor) -> Content:
        """The rows that went one by one are counted; their elements are among the others."""
        head = self._read_head(payload)
        rows, place_bytes = (
            sum(count for count, size in head if size),
            sum(count * size for count, size in head if size),
        )
        values = payload.numel() - self._head - place_bytes
        return Content(self._head, values // self._dtype.itemsize, place_bytes, rows)

    def decode(self, payload: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        """Write or add the rows that were sent, and what is outside the tables."""
        if payload.numel() < self._head:
            raise FrameError(f"a payload of {payload.numel()} bytes is shorter than its head")
        head = self._read_head(payload)
        for table, (count, size) in zip(self._tables, head, strict=True):
            if (count, size) != (_DENSE, 0) and (count > table.count or size not in (1, 2, 4)):
                raise FrameError(f"{count} rows of a table of {table.count} with ids of {size} bytes")
        _check_length(payload, self._size(head))
        at, ids_at = self._head, self._size(head) - sum(count * size for count, size in head if size)
        for start, stop in self._between:
            at = self._read(payload, at, out[start:stop], add)
        for table, (count, size) in zip(self._tables, head, strict=True):
            if not size:
                at = self._read(payload, at, out[table.start : table.stop], add)
                continue
            stop = at + count * table.width * self._dtype.itemsize
            values = payload[at:stop].view(self._dtype).view(count, table.width)
            distances = payload.numpy()[ids_at : ids_at + count * size].view(f"<u{size}")
            _scatter(distances, values, table.of(out), add)
            at, ids_at = stop, ids_at + count * size

    def _read_head(self, payload: torch.Tensor) -> list[tuple[int, int]]:
        return [(int(count), int(size)) for count, size in payload[: self._head].numpy().view("<u4").reshape(-1, 2)]

    def _size(self, head: Sequence[tuple[int, int]]) -> int:
        """Bytes of a payload with this many rows and bytes of an id of each table."""
        size = self._head + self._dtype.itemsize * sum(stop - start for start, stop in self._between)
        for table, (count, id_bytes) in zip(self._tables, head, strict=True):
            rows = table.count if count == _DENSE else count
            size += rows * (table.width * self._dtype.itemsize + id_bytes)
        return size

    def _write(self, payload: torch.Tensor, at: int, values: torch.Tensor) -> int:
        stop = at + values.numel() * self._dtype.itemsize
        payload[at:stop].view(self._dtype).copy_(values)
        return stop

    def _gather(self, payload: torch.Tensor, at: int, rows: torch.Tensor, ids: torch.Tensor) -> int:
        """Write some rows of [count, width]."""
        stop = at + len(ids) * rows.shape[1] * self._dtype.itemsize
        place = payload[at:stop].view(self._dtype).view(len(ids), rows.shape[1])
        if self._dtype == rows.dtype:
            torch.index_select(rows, 0, ids, out=place)
        else:
            place.copy_(rows.index_select(0, ids))
        return stop

    def _read(self, payload: torch.Tensor, at: int, out: torch.Tensor, add: bool) -> int:
        stop = at + out.numel() * self._dtype.itemsize
        _put(payload[at:stop].view(self._dtype), out, add)
        return stop


def _touched(gradient: torch.Tensor, table: Rows) -> np.ndarray | None:
    """The rows with a bit set, ascending int64; None where they are too many to be told one by one."""
    bits = table.of(gradient).numpy()
    words = bits.view(np.uint64 if table.width % 2 == 0 else np.uint32)  # half as many where rows allow it
    rows = np.flatnonzero(np.bitwise_or.reduce(words, axis=1))
    return rows if len(rows) <= WORTH * table.count else None


def _distances(rows: np.ndarray) -> np.ndarray:
    """Ascending numbers as distances, in the narrowest unsigned type."""
    distances = np.diff(rows, prepend=0)
    largest = int(distances.max(initial=0))
    return distances.astype("<u1" if largest < 1 << 8 else "<u2" if largest < 1 << 16 else "<u4")


def _scatter(distances: np.ndarray, values: torch.Tensor, rows: torch.Tensor, add: bool) -> None:
    """Put `values` [ids, width] into `rows` [count, width], the others being zero."""
    ids = np.cumsum(distances, dtype=np.int64)
    if len(ids) and (ids[-1] >= len(rows) or not distances[1:].all()):
        raise FrameError("rows that are not in the table, or come twice")
    if not add:
        rows.zero_()
    where, values = torch.from_numpy(ids), values.to(rows.dtype)
    if add:
        rows.index_add_(0, where, values)
    else:
        rows.index_copy_(0, where, values)


def _between(elements: int, tables: Sequence[Rows]) -> list[tuple[int, int]]:
    """The ranges of a piece that belong to no table."""
    borders = [0, *(border for table in tables for border in (table.start, table.stop)), elements]
    return [(start, stop) for start, stop in zip(borders[::2], borders[1::2], strict=True) if start < stop]


def _put(values: torch.Tensor, out: torch.Tensor, add: bool) -> None:
    """Copy or add values of any type to fp32."""
    if not add:
        out.copy_(values)
    elif values.dtype == out.dtype:
        out.add_(values)
    else:  # torch adds two types far more slowly than it casts one
        for part, target in _blocks(values, out):
            target.add_(part.to(out.dtype))


def _blocks(*buffers: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(buffer.split(_BLOCK) for buffer in buffers), strict=True)


def _check_length(payload: torch.Tensor, wanted: int) -> None:
    if payload.numel() != wanted:
        raise FrameError(f"a gradient of {payload.numel()} bytes where {wanted} belong")
