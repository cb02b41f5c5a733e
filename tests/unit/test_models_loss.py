"""Token losses against their definition: in one piece, in chunks of the vocabulary, in pieces of the tokens."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nmt.models import vocabulary_chunk
from nmt.models.layers import ordered_sum
from nmt.models.loss import scored_tokens, token_losses, training_loss
from nmt.models.plain import plain_autograd


def tensors(tokens: int, units: int, vocab: int, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=g) * scale
        for shape in [(tokens, units), (vocab, units), (vocab,)]
    )
    return hidden, weight, bias, torch.randint(0, vocab, (tokens,), generator=g)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces, with several blocks each, of a few hundred tokens."""
    monkeypatch.setattr(vocabulary_chunk, "PIECE_BYTES", 64 * 37 * 4)
    monkeypatch.setattr(vocabulary_chunk, "BLOCK", 7 * 37)


@given(st.integers(1, 6), st.integers(2, 70), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_losses_are_their_definition_for_any_number_of_chunks(
    tokens: int, vocab: int, chunks: int, smoothing: float, seed: int
) -> None:
    hidden, weight, bias, targets = tensors(tokens, 3, vocab, seed=seed)
    with torch.no_grad():
        losses = token_losses(hidden, weight, bias, targets, smoothing, chunks)
    for row, target in enumerate(targets.tolist()):
        logits = weight.numpy() @ hidden[row].numpy() + bias.numpy()
        log_p = logits - math.log(sum(math.exp(x) for x in logits))
        expected = (1 - smoothing) * -log_p[target] + smoothing * np.mean(-log_p)
        assert losses[row].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("chunks", [1, 2, 3, 40])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tokens", [1, 5, 64, 200])
def test_the_training_loss_and_its_gradients_are_those_of_the_plain_computation(
    small_pieces: None, tokens: int, smoothing: float, chunks: int
) -> None:
    """In pieces and chunks by hand-written gradients; by autograd."""

    def run() -> list[torch.Tensor]:
        *inputs, targets = tensors(tokens, 8, 37, scale=3.0)
        leaves = [x.requires_grad_() for x in inputs]
        loss = training_loss(*leaves, targets, smoothing, chunks)
        (loss * 0.7).backward()
        return [loss.detach(), *(x.grad for x in leaves if x.grad is not None)]

    found = run()
    with plain_autograd():
        expected = run()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunks", [2, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_float32_chunks_differ_from_the_whole_by_rounding(chunks: int, smoothing: float) -> None:
    whole, parts = (loss_and_gradients(300, 1001, smoothing, units=16, chunks=number) for number in (1, chunks))
    for one, many in zip(whole, parts, strict=True):
        assert (one - many).norm() <= 1e-6 * one.norm()
    assert not all(torch.equal(one, many) for one, many in zip(whole, parts, strict=True))


@pytest.mark.parametrize("chunks", [1, 3])
def test_logits_of_any_size_neither_overflow_nor_vanish(chunks: int) -> None:
    weight = torch.zeros(40, 1)  # words of the first chunk alone, of the second, of the third
    weight[[0, 17, 18, 36]] = torch.tensor([[3e4], [-3e4], [2.9e4], [1.0]])
    arguments = (torch.ones(2, 1), weight.requires_grad_(), torch.zeros(40), torch.tensor([0, 17]))
    with torch.no_grad():
        assert token_losses(*arguments, 0.0, chunks).tolist() == [0.0, 6e4]
    training_loss(*arguments, 0.0, chunks).backward()
    assert weight.grad is not None
    assert {row: value for row, value in enumerate(weight.grad.flatten().tolist()) if value} == {0: 1.0, 17: -1.0}


def test_gradients() -> None:
    hidden, weight, bias, targets = tensors(4, 3, 7)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    assert gradcheck(lambda *x: token_losses(*x, targets, 0.1), inputs)


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
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
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


def loss_and_gradients(
    tokens: int,
    vocab: int,
    smoothing: float = 0.0,
    bf16: bool = False,
    units: int = 8,
    plain: bool = False,
    chunks: int = 1,
) -> list[torch.Tensor]:
    """The training loss of random float32 tensors divided by the tokens, as a step does it, and its gradients."""
    *inputs, targets = tensors(tokens, units, vocab, scale=0.5)
    hidden, weight, bias = (x.float().requires_grad_() for x in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16), plain_autograd() if plain else nullcontext():
        loss = training_loss(hidden, weight, bias, targets, smoothing, chunks)
    (loss / tokens).backward()
    return [loss.detach(), *(x.grad for x in (hidden, weight, bias) if x.grad is not None)]


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("needed", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(needed: int, chunks: int) -> None:
    *inputs, targets = tensors(20, 3, 40)
    expected, found = ([x.clone().requires_grad_(i == needed) for i, x in enumerate(inputs)] for _ in range(2))
    with plain_autograd():
        training_loss(expected[0], expected[1], expected[2], targets, 0.1).backward()
    training_loss(found[0], found[1], found[2], targets, 0.1, chunks).backward()
    for one, other in zip(expected, found, strict=True):
        assert (other.grad is None) == (one.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_the_plain_training_loss_can_be_differentiated_twice_and_the_other_says_that_it_cannot() -> None:
    hidden, weight, bias, targets = tensors(5, 3, 7)
    weight.requires_grad_()
    with plain_autograd():
        loss = training_loss(hidden, weight, bias, targets)
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), weight)[0].any()
    with pytest.raises(RuntimeError, match=r"within plain_autograd\(\)"):
        torch.autograd.grad(training_loss(hidden, weight, bias, targets), weight, create_graph=True)


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, bias, targets = tensors(5, 3, 7)
    loss = training_loss(hidden.requires_grad_(), weight, bias, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("chunks", [1, 5])
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 40_000), (300, 1001), (700, 97), (700, 17)])
def test_bits_of_the_training_loss_do_not_depend_on_the_number_of_threads(tokens: int, vocab: int, chunks: int) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(loss_and_gradients(tokens, vocab, smoothing=0.1, chunks=chunks))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("chunks", [1, 4])
def test_losses_without_gradient_have_the_bits_of_training(small_pieces: None, chunks: int) -> None:
    *inputs, targets = tensors(200, 8, 37)
    hidden, weight, bias = (x.float().requires_grad_() for x in inputs)
    plain = token_losses(hidden, weight, bias, targets)
    with torch.no_grad():
        losses = token_losses(hidden, weight, bias, targets, chunks=chunks)
    assert torch.allclose(losses, plain, rtol=1e-5, atol=1e-6)
    assert torch.equal(training_loss(hidden, weight, bias, targets, chunks=chunks), ordered_sum(losses))
    scored, hits = scored_tokens(hidden, weight, bias, targets, chunks)
    assert torch.equal(scored, losses)
    assert torch.equal(hits, (hidden @ weight.t() + bias).argmax(dim=-1) == targets)
    assert 0 < int(hits.sum()) < 200


@pytest.mark.parametrize("chunks", [1, 3])
def test_of_equally_likely_words_the_first_is_the_choice(chunks: int) -> None:
    bias = torch.zeros(40)
    bias[[3, 5, 20, 39]] = 2.0
    hits = scored_tokens(torch.zeros(40, 1), torch.zeros(40, 1), bias, torch.arange(40), chunks)[1]
    assert hits.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_token_whose_logits_are_not_finite_has_no_choice(chunks: int) -> None:
    hidden, weight, bias, targets = tensors(5, 3, 40)
    hidden[2] = math.nan
    losses, hits = scored_tokens(hidden, weight, bias, targets, chunks)
    assert losses.isnan().tolist() == [False, False, True, False, False]
    assert not hits[2]


@pytest.mark.parametrize("chunks", [1, 4])
def test_under_bf16_gradients_of_the_training_loss_are_as_near_as_those_of_autograd(chunks: int) -> None:
    exact = loss_and_gradients(300, 200, 0.1, units=16)
    plain = loss_and_gradients(300, 200, 0.1, units=16, bf16=True, plain=True)
    ours = loss_and_gradients(300, 200, 0.1, units=16, bf16=True, chunks=chunks)
    for right, other, found in zip(exact, plain, ours, strict=True):
        assert found.dtype == torch.float32
        assert (found - right).norm() <= 1.2 * (other - right).norm() + 1e-6 * right.norm()


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_loss_that_is_not_finite_passes_through(chunks: int) -> None:
    hidden, weight, bias, targets = tensors(5, 3, 40)
    hidden[2, 1] = math.nan
    loss = training_loss(hidden, weight.requires_grad_(), bias, targets, chunks=chunks)
    loss.backward()
    assert math.isnan(loss.item())
    assert weight.grad is not None
    assert weight.grad.isnan().any()


@pytest.mark.parametrize("chunks", [1, 3])
def test_no_tokens_lose_nothing(chunks: int) -> None:
    hidden, weight, bias, targets = tensors(0, 3, 40)
    loss = training_loss(hidden, weight.requires_grad_(), bias, targets, chunks=chunks)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("bf16", [False, True])
def test_logits_of_all_tokens_never_stand_in_memory(monkeypatch: pytest.MonkeyPatch, bf16: bool, chunks: int) -> None:
    monkeypatch.setattr(vocabulary_chunk, "PIECE_BYTES", 64 * 200 * 4)
    with Largest() as largest:
        loss_and_gradients(1000, 200, bf16=bf16, chunks=chunks)
    assert largest.elements <= max(128 * 200 // chunks, 1000 * 8)  # a piece's logits, or the hidden states
    with Largest() as largest:
        loss_and_gradients(1000, 200, plain=True)
    assert largest.elements == 1000 * 200  # what the bound is for is seen
