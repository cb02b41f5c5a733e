"""The cut of a flat buffer: balanced, on chunk borders, and a function of length and number alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from distributed.arithmetic import CHUNK, norm, square_sums
from distributed.shards import MIB, buckets, cut

SIZES = (16, CHUNK - 16, CHUNK, 9 * CHUNK + 32, 64 * CHUNK, 8_000_000, 66_324_640)


@pytest.mark.parametrize("elements", SIZES)
def test_buckets_run_from_the_end_on_chunk_borders(elements: int) -> None:
    ranges = buckets(elements)
    assert ranges[0][1] == elements
    assert ranges[-1][0] == 0
    assert all(later[1] == earlier[0] for earlier, later in itertools.pairwise(ranges))
    assert all(start % CHUNK == 0 for start, _ in ranges)
    assert 4 * (ranges[0][1] - ranges[0][0]) <= MIB
    assert all(4 * (stop - start) <= 25 * MIB for start, stop in ranges)


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("elements", SIZES)
def test_every_element_has_one_shard(elements: int, shards: int) -> None:
    shard_map = cut(elements, shards)
    ranges = sorted((piece.start, piece.stop) for piece in shard_map.pieces)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == elements
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert all(piece.start % CHUNK == 0 for piece in shard_map.pieces)
    assert [piece.index for piece in shard_map.pieces] == list(range(len(shard_map.pieces)))
    assert [piece.bucket for piece in shard_map.pieces] == sorted(piece.bucket for piece in shard_map.pieces)
    sizes = [shard_map.size(shard) for shard in range(shards)]
    assert max(sizes) - min(sizes) <= CHUNK
    if elements >= 100 * shards * CHUNK:
        assert max(sizes) / (sum(sizes) / shards) <= 1.01
    for shard in range(shards):  # a shard's own buffer is cut at chunk borders too
        assert all(piece.offset % CHUNK == 0 for piece in shard_map.of_shard(shard))


def test_the_published_model_over_six_servers_is_balanced_in_every_bucket() -> None:
    shard_map = cut(66_324_640, 6)
    sizes = [shard_map.size(shard) for shard in range(6)]
    assert max(sizes) / (sum(sizes) / 6) <= 1.002
    counts = {bucket: [0] * 6 for bucket in range(shard_map.pieces[-1].bucket + 1)}
    for piece in shard_map.pieces:
        counts[piece.bucket][piece.shard] += piece.elements
    assert all(max(count) - min(count) <= CHUNK for count in counts.values())


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_gather_and_scatter_are_inverse_and_keep_norms(shards: int) -> None:
    flat = torch.randn(11 * CHUNK + 48, generator=torch.Generator().manual_seed(shards))
    shard_map = cut(flat.numel(), shards, bucket_bytes=3 * 4 * CHUNK)
    back, sums = torch.zeros_like(flat), []
    for shard in range(shards):
        own = shard_map.gather(shard, flat)
        assert own.numel() == shard_map.size(shard)
        shard_map.scatter(shard, own, back)
        sums += square_sums(own)
        for piece in shard_map.of_shard(shard):
            assert torch.equal(piece.local(own), piece.of(flat))
    assert torch.equal(back, flat)
    assert norm(sums) == norm(square_sums(flat))


def test_what_another_number_of_shards_wrote_can_be_read() -> None:
    flat = torch.arange(7.0 * CHUNK)
    three, two = cut(flat.numel(), 3), cut(flat.numel(), 2)
    back = torch.zeros_like(flat)
    for shard in range(3):
        three.scatter(shard, three.gather(shard, flat), back)
    assert torch.equal(two.gather(1, back), two.gather(1, flat))
