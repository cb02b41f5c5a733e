"""An embedding table in chunks: the bits of the whole table, whoever holds which words."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.arithmetic import FlatParameters
from nmt.models.layers import Table
from nmt.models.ring_embedding import ChunkedTable, RingEmbedding


def table(words: int, units: int, dtype: torch.dtype = torch.float32) -> Table:
    made = Table(words, units).to(dtype)
    made.weight.data = torch.randn(words, units, generator=torch.Generator().manual_seed(1), dtype=dtype)
    made.weight.data[3] = -0.0  # the sign of a zero is a bit, too
    return made


def slots(words: int, number: int = 3) -> list[Any]:
    generator = torch.Generator().manual_seed(2)
    return [SimpleNamespace(words=torch.randint(0, words, (9, 5 + one), generator=generator)) for one in range(number)]


def scaled(slot: Any, embedded: Tensor) -> Tensor:
    return embedded * (1 + slot.words.shape[1])


def in_one_piece(whole: Table, batches: list[Any]) -> list[Tensor]:
    whole.weight.grad = torch.zeros_like(whole.weight)
    found = []
    for slot in batches:
        embedded = scaled(slot, whole(slot.words.t()))
        embedded.backward(torch.sin(embedded.detach()))
        found.append(embedded.detach())
    return [*found, whole.weight.grad]


def in_chunks(whole: Table, batches: list[Any], chunks: int, seed: int = 0) -> list[Tensor]:
    """Every chunk alone, as on a node of its own; slots pass each other, and keep their order at a chunk."""
    cut = ChunkedTable(whole, chunks)
    for parameter in cut.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parts = RingEmbedding(cut, "source", lambda slot: slot.words.t(), scaled, "out").parts()
    there, back = [0] * len(parts), [0] * len(parts)
    carried: list[dict[str, Tensor]] = [{} for _ in batches]
    gradients: list[dict[str, Tensor]] = [{} for _ in batches]
    visits: dict[tuple[int, int], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    pick = random.Random(seed)
    while back[0] < len(batches):
        ahead = [c for c in range(len(parts)) if there[c] < (there[c - 1] if c else len(batches))]
        behind = [c for c in range(len(parts)) if back[c] < (back[c + 1] if c + 1 < len(parts) else there[c])]
        chunk, is_back = pick.choice([(c, False) for c in ahead] + [(c, True) for c in behind])
        number = (back if is_back else there)[chunk]
        if is_back:
            leaves, made = visits.pop((chunk, number))
            given = gradients[number]
            torch.autograd.backward(
                list(made.values()), [given[name] if name in given else torch.sin(made[name].detach()) for name in made]
            )
            gradients[number] = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
            back[chunk] += 1
        else:
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in carried[number].items()}
            made = parts[chunk].run(batches[number], leaves)  # type: ignore[arg-type]
            visits[chunk, number] = leaves, made
            carried[number] = {name: tensor.detach().clone() for name, tensor in made.items()}
            there[chunk] += 1
    weight = torch.cat([one.grad for one in cut.weight if one.grad is not None])
    return [*(one["out"] for one in carried), weight]


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int64) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
def test_a_table_in_chunks_has_the_bits_of_the_whole(chunks: int, dtype: torch.dtype) -> None:
    whole, batches = table(60, 7, dtype), slots(60)
    expected = bits(in_one_piece(whole, batches))
    for seed in range(3):
        assert all(map(torch.equal, bits(in_chunks(whole, batches, chunks, seed)), expected))


@pytest.mark.exhaustive
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("words", [5, 64, 3000, 20_000])
def test_a_table_in_chunks_has_the_bits_of_the_whole_in_all_sizes(words: int, threads: int) -> None:
    torch.set_num_threads(threads)
    whole, batches = table(words, 33), slots(words, 4)
    expected = bits(in_one_piece(whole, batches))
    for chunks in range(1, 9):
        assert all(map(torch.equal, bits(in_chunks(whole, batches, chunks, chunks)), expected))


def test_what_is_not_a_number_stays_in_its_row() -> None:
    whole = table(40, 3)
    whole.weight.data[20] = torch.nan
    slot = SimpleNamespace(words=torch.tensor([[1, 20, 39]]))
    found, _ = in_chunks(whole, [slot], 3)
    assert found.isnan().all(dim=-1).flatten().tolist() == [False, True, False]


def test_chunks_lie_in_a_flat_buffer_as_the_table_does() -> None:
    whole = table(90, 5)
    assert torch.equal(FlatParameters(ChunkedTable(whole, 4)).values, FlatParameters(whole).values)
