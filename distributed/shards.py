"""How a flat buffer of parameters is cut for sending and for servers: a pure function of its length and their number.

The buffer is cut into buckets from its end, which is where a backward pass begins, and each bucket into one piece a
shard. All cuts fall on the borders of chunks (`distributed.arithmetic.CHUNK`), so norms and updates have the same bits
whoever computes them, and what one number of shards has written another can read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed.arithmetic import CHUNK

MIB = 2**20
_BYTES = 4  # of an element
FIRST_BUCKET = MIB  # bytes: small, so that sending begins early in the backward pass


@dataclass(frozen=True)
class Piece:
    """A shard's part of a bucket: elements `start` to `stop` of the flat buffer, at `offset` in the shard's own.

    Pieces are numbered by `index` in the order in which a backward pass completes them.
    """

    index: int
    bucket: int
    shard: int
    start: int
    stop: int
    offset: int

    @property
    def elements(self) -> int:
        """Its length."""
        return self.stop - self.start

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """This part of a flat buffer."""
        return flat[self.start : self.stop]

    def local(self, buffer: torch.Tensor) -> torch.Tensor:
        """This part of a buffer of the shard's."""
        return buffer[self.offset : self.offset + self.elements]


@dataclass(frozen=True)
class ShardMap:
    """Every piece of a flat buffer of `elements`, by `Piece.index`, over `shards` shards."""

    elements: int
    shards: int
    pieces: tuple[Piece, ...]

    def of_shard(self, shard: int) -> Sequence[Piece]:
        """A shard's pieces in the order of the flat buffer: the order in which a forward pass needs them."""
        return sorted((piece for piece in self.pieces if piece.shard == shard), key=lambda piece: piece.start)

    def size(self, shard: int) -> int:
        """Elements of a shard."""
        return sum(piece.elements for piece in self.pieces if piece.shard == shard)

    def gather(self, shard: int, flat: torch.Tensor) -> torch.Tensor:
        """A shard's elements of a flat buffer, as a buffer of the shard's own."""
        return torch.cat([flat[:0], *(piece.of(flat) for piece in self.of_shard(shard))])

    def scatter(self, shard: int, buffer: torch.Tensor, flat: torch.Tensor) -> None:
        """Write a shard's own buffer to its places in a flat one."""
        for piece in self.of_shard(shard):
            piece.of(flat).copy_(piece.local(buffer))


def buckets(elements: int, bucket_bytes: int = 25 * MIB, first_bytes: int = FIRST_BUCKET) -> list[tuple[int, int]]:
    """Ranges of elements from the end of a flat buffer to its start: one of `first_bytes`, then of `bucket_bytes`."""
    cuts: list[tuple[int, int]] = []
    stop = elements
    while stop > 0:
        length = max(1, (bucket_bytes if cuts else first_bytes) // (_BYTES * CHUNK)) * CHUNK
        start = max(0, -(-(stop - length) // CHUNK) * CHUNK)
        cuts.append((start, stop))
        stop = start
    return cuts


def cut(elements: int, shards: int, bucket_bytes: int = 25 * MIB) -> ShardMap:
    """Cut a flat buffer over `shards` shards whose sizes differ by one chunk at most.

    Who gets a chunk more in a bucket goes round, so that every server has its part of every bucket and none has more to
    do than another.
    """
    ranges: list[tuple[int, int, int, int]] = []  # bucket, shard, start, stop
    turn = shards - 1  # the last shard has the buffer's last chunk, which may be a short one
    for bucket, (start, stop) in enumerate(buckets(elements, bucket_bytes)):
        chunks = -(-(stop - start) // CHUNK)
        each, more = divmod(chunks, shards)
        at = start
        for shard in range(shards):
            count = each + ((shard - turn) % shards < more)
            end = min(at + count * CHUNK, stop)
            if end > at:
                ranges.append((bucket, shard, at, end))
            at = end
        turn = (turn + more) % shards
    offsets = [0] * shards
    placed: dict[tuple[int, int], int] = {}
    for bucket, shard, start, stop in sorted(ranges, key=lambda one: one[2]):
        placed[bucket, shard] = offsets[shard]
        offsets[shard] += stop - start
    pieces = (
        Piece(index, bucket, shard, start, stop, placed[bucket, shard])
        for index, (bucket, shard, start, stop) in enumerate(ranges)
    )
    return ShardMap(elements, shards, tuple(pieces))
