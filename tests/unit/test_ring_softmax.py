"""The ring softmax: the bits of one process, whoever holds which words and in whatever order messages come."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from ring_softmax_examples import example, in_a_ring, in_one_process

from distributed.arithmetic import FlatParameters
from nmt.models import vocabulary_chunk
from nmt.models.layers import Affine
from nmt.models.plain import plain_autograd
from nmt.models.ring_softmax import ChunkedAffine
from nmt.models.vocabulary_chunk import chunk_rows

LONG = ((3, 1, 5, 2), (40, 31, 17, 40, 2), (1,), (6, 2, 70))  # target tokens of sentences, slot by slot
OWNERS = ([0], [0, 1], [1, 0], [0, 1, 2, 3], [2, 3, 0, 1], [3, 1, 2, 0], [1, 1, 0, 0, 2], [0, 1, 0, 1])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces of a slot of more than 64 tokens, and several bands of each."""
    monkeypatch.setattr(vocabulary_chunk, "PIECE_BYTES", 1)
    monkeypatch.setattr(vocabulary_chunk, "BLOCK", 9 * 32)


def bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("owners", OWNERS, ids=str)
def test_a_ring_has_the_bits_of_one_process(owners: list[int], smoothing: float) -> None:
    """Whichever node holds which chunk, in whatever order messages are delivered, by reference or by copy."""
    given = example(90, 7, lengths=LONG)
    expected = in_one_process(given, smoothing, len(owners))
    for seed, keep in enumerate((True, False)):
        assert equal(in_a_ring(given, owners, smoothing, keep, seed=seed)[0], expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [17, 64, 129, 1001])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_ring_has_the_bits_of_one_process_in_all_sizes(vocabulary: int, smoothing: float, dtype: torch.dtype) -> None:
    """bfloat16 stands for autocast."""
    context = {"context": bf16} if dtype == torch.bfloat16 else {}
    kind = torch.float32 if dtype == torch.bfloat16 else dtype
    generator = torch.Generator().manual_seed(vocabulary)
    for case in range(12):
        nodes, chunks, units = (int(torch.randint(1, most, (1,), generator=generator)) for most in (5, 9, 40))
        chunks = len(chunk_rows(vocabulary, chunks))
        owners = torch.randint(0, nodes, (chunks,), generator=generator).tolist()
        given = example(vocabulary, units, kind, case, LONG)
        expected = in_one_process(given, smoothing, chunks, **context)
        assert equal(in_a_ring(given, owners, smoothing, bool(case % 2), seed=case, **context)[0], expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_and_gradients_are_those_of_a_vocabulary_in_one_piece(
    dtype: torch.dtype, tolerance: float, smoothing: float
) -> None:
    given = example(90, 7, dtype, lengths=LONG)
    found, _ = in_a_ring(given, [0, 1, 2, 3, 0], smoothing)
    with plain_autograd():
        expected = in_one_process(given, smoothing)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


def test_the_number_of_chunks_is_part_of_the_arithmetic() -> None:
    """So what equality means is seen: one chunk more has other bits."""
    given = example(90, 7, lengths=LONG)
    assert not equal(in_one_process(given, 0.0, 3), in_one_process(given, 0.0, 4))


def test_under_autocast_too() -> None:
    given = example(90, 16, lengths=LONG)
    expected = in_one_process(given, 0.1, 4, bf16)
    for keep in (True, False):
        assert equal(in_a_ring(given, [0, 1, 2, 0], 0.1, keep, bf16)[0], expected)
    assert not equal(expected, in_one_process(given, 0.1, 4))


def test_hidden_states_of_low_precision_collect_their_gradient_in_float32() -> None:
    given = example(90, 16, lengths=LONG)
    given.mixes = [mix.bfloat16() for mix in given.mixes]
    expected = in_one_process(given, 0.0, 4, bf16)
    assert expected.mixes[0].dtype == torch.bfloat16
    assert equal(in_a_ring(given, [0, 1, 2, 3], context=bf16)[0], expected)


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_chunk, "BLOCK", 1 << 15)
    given = example(400, 33, lengths=((100, 211),))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(in_a_ring(given, [0, 1, 2], 0.1)[0])
    finally:
        torch.set_num_threads(before)
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


@pytest.mark.parametrize(("smoothing", "fields"), [(0.0, 3), (0.1, 4)])
def test_what_travels(smoothing: float, fields: int) -> None:
    """With a chunk a node and the first beside the decoder: N - 1 messages there and as many back for each slot."""
    given = example(90, 7, lengths=LONG)
    _, ring = in_a_ring(given, [0, 1, 2, 3], smoothing)
    sizes = sorted(4 * slot.target_tokens * (7 + fields) for slot in given.slots for _ in range(3))
    assert sorted(ring.hops[False]) == sizes
    assert sorted(ring.hops[True]) == sizes


def test_a_loss_that_is_not_finite_passes_through() -> None:
    given = example(90, 7)
    given.mixes[1][0, 0, 3] = torch.nan
    found, _ = in_a_ring(given, [0, 1])
    assert found.losses[1].isnan()
    assert not found.losses[0].isnan()
    assert found.weight.isnan().any()


@pytest.mark.parametrize(("vocabulary", "chunks"), [(90, 4), (16, 3), (17, 2), (1, 4), (32_000, 7), (160, 10), (47, 3)])
def test_chunks_are_nearly_equal_and_lie_in_a_flat_buffer_as_the_whole_layer_does(vocabulary: int, chunks: int) -> None:
    layer = Affine(5, vocabulary)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape)
    cut = ChunkedAffine(layer, chunks)
    assert len(cut.rows) == min(chunks, -(-vocabulary // 16))
    assert [word for rows in cut.rows for word in range(rows.start, rows.stop)] == list(range(vocabulary))
    sizes = [rows.stop - rows.start for rows in cut.rows]
    assert max(sizes) - min(sizes) <= 16 + 15  # the last one's last line may be short
    assert [name for name, _ in cut.named_parameters()][: len(sizes)] == [
        f"weight.{number}" for number in range(len(sizes))
    ]
    assert torch.equal(FlatParameters(cut).values, FlatParameters(layer).values)


def test_chunks_share_the_memory_of_their_layer() -> None:
    layer = Affine(5, 40)
    cut = ChunkedAffine(layer, 3)
    cut.chunk(1)[0].data.fill_(3.0)
    assert torch.equal(layer.weight[cut.rows[1]], torch.full((16, 5), 3.0)[: cut.rows[1].stop - cut.rows[1].start])
