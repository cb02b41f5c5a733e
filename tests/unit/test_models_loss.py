"""Token losses against their definition, in one piece and in chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from nmt.models.loss import ordered_sum, token_losses


def tensors(tokens: int, units: int, vocab: int, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=g) * scale
        for shape in [(tokens, units), (vocab, units), (vocab,)]
    )
    return hidden, weight, bias, torch.randint(0, vocab, (tokens,), generator=g)


@given(st.integers(1, 6), st.integers(2, 17), st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_losses_are_their_definition_for_any_number_of_chunks(
    tokens: int, vocab: int, chunks: int, smoothing: float, seed: int
) -> None:
    hidden, weight, bias, targets = tensors(tokens, 3, vocab, seed=seed)
    losses = token_losses(hidden, weight, bias, targets, smoothing, chunks)
    for row, target in enumerate(targets.tolist()):
        logits = weight.numpy() @ hidden[row].numpy() + bias.numpy()
        log_p = logits - math.log(sum(math.exp(x) for x in logits))
        expected = (1 - smoothing) * -log_p[target] + smoothing * np.mean(-log_p)
        assert losses[row].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("chunks", [2, 3, 7, 40])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunks_change_neither_losses_nor_gradients(chunks: int, smoothing: float) -> None:
    def run(chunks: int) -> list[torch.Tensor]:
        *inputs, targets = tensors(50, 8, 37, scale=3.0)
        leaves = [x.requires_grad_() for x in inputs]
        losses = token_losses(*leaves, targets, smoothing, chunks)
        losses.square().sum().backward()
        return [losses, *(x.grad for x in leaves if x.grad is not None)]

    for one, many in zip(run(1), run(chunks), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunks", [1, 4])
def test_logits_of_any_size_neither_overflow_nor_vanish(chunks: int) -> None:
    weight = torch.tensor([[3e4], [0.0], [-3e4], [2.9e4], [1.0]])
    losses = token_losses(torch.ones(2, 1), weight, torch.zeros(5), torch.tensor([0, 2]), 0.0, chunks)
    assert losses.tolist() == [0.0, 6e4]


@pytest.mark.parametrize("chunks", [1, 3])
def test_gradients(chunks: int) -> None:
    hidden, weight, bias, targets = tensors(4, 3, 7)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    assert gradcheck(lambda *x: token_losses(*x, targets, 0.1, chunks), inputs)


def test_smoothing_covers_the_whole_vocabulary_target_included() -> None:
    # Uniform logits: every -log p is ln V, so smoothing changes nothing; two logits apart: by hand.
    flat = token_losses(torch.zeros(1, 1), torch.zeros(8, 1), torch.zeros(8), torch.tensor([3]), 0.4)
    assert flat.item() == pytest.approx(math.log(8), abs=1e-6)
    z = torch.tensor([0.0, math.log(3.0)])  # p = 1/4, 3/4
    loss = token_losses(torch.zeros(1, 1), torch.zeros(2, 1), z, torch.tensor([1]), 0.2)
    assert loss.item() == pytest.approx(-(0.9 * math.log(0.75) + 0.1 * math.log(0.25)), abs=1e-6)


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_softmax_stays_in_float32_under_bf16(chunks: int) -> None:
    hidden, weight, bias, targets = tensors(20, 8, 30)
    exact = token_losses(hidden, weight, bias, targets, 0.1, chunks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = token_losses(hidden.float(), weight.float(), bias.float(), targets, 0.1, chunks)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=0.15)


def test_the_sum_does_not_depend_on_the_number_of_threads() -> None:
    losses = torch.rand(300_001, generator=torch.Generator().manual_seed(0)) * 10
    before, sums = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.add(ordered_sum(losses).item())
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(losses.double().sum().item(), rel=1e-6)


def test_the_sum_of_nothing_is_zero() -> None:
    assert ordered_sum(torch.zeros(0)).item() == 0.0
