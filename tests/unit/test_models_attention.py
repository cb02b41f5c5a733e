"""Attention against a loop over queries and keys."""

from __future__ import annotations

from itertools import product

import models_reference as reference
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from nmt import registry
from nmt.config.schema import AttentionConfig, InitialisationConfig
from nmt.errors import UserError
from nmt.models.attention import DotAttention, Memory, NoAttention
from nmt.models.initialisation import initialise

NAMES = ["additive", "multiplicative"]
SCALED = [
    ("additive", "none"),
    ("additive", "learned"),
    *product(["multiplicative", "dot"], ["none", "sqrt", "learned"]),
]
LENGTHS = torch.tensor([5, 2])


def make(name: str, scaling: str = "none", masked: bool = True) -> torch.nn.Module:
    """For queries of 3 units (6 with `dot`) and encoder outputs of 6."""
    config = AttentionConfig(name=name, units=4, scaling=scaling, masked=masked)
    attend = registry.lookup("attention", name, "attention.name")
    return reference.randomised(attend(config, query_units(name), 6, 6).double())


def query_units(name: str) -> int:
    return 6 if name == "dot" else 3


def tensors(seed: int = 1, units: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(5, 2, 6, dtype=torch.float64, generator=generator)
    return outputs, torch.randn(2, 3, units, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("name", "scaling"), SCALED)
def test_contexts_and_weights_of_k_queries(name: str, scaling: str) -> None:
    attention, (outputs, queries) = make(name, scaling), tensors(units=query_units(name))
    context, weights = attention.attend(queries, attention.memory(reference.encoded(outputs), LENGTHS))
    for row, length in enumerate(LENGTHS.tolist()):
        for k in range(3):
            values = list(outputs[:length, row].numpy())
            expected = reference.attend(attention, queries[row, k].numpy(), values, scaling)
            np.testing.assert_allclose(context[row, k].detach().numpy(), expected[0], rtol=0, atol=1e-13)
            np.testing.assert_allclose(weights[row, k, :length].detach().numpy(), expected[1], rtol=0, atol=1e-13)
    assert not weights[1, :, 2:].any()


@pytest.mark.parametrize("name", NAMES)
def test_padding_never_counts_whatever_it_holds(name: str) -> None:
    attention, (outputs, queries) = make(name), tensors()
    context, _ = attention.attend(queries, attention.memory(reference.encoded(outputs), LENGTHS))
    outputs[2:, 1] = 1e6
    changed, _ = attention.attend(queries, attention.memory(reference.encoded(outputs), LENGTHS))
    assert torch.equal(context, changed)


def test_without_a_mask_every_position_takes_part() -> None:
    attention, (outputs, queries) = make("multiplicative", masked=False), tensors()
    context, weights = attention.attend(queries, attention.memory(reference.encoded(outputs), LENGTHS))
    for k in range(3):
        expected = reference.attend(attention, queries[1, k].numpy(), list(outputs[:, 1].numpy()))
        np.testing.assert_allclose(context[1, k].detach().numpy(), expected[0], rtol=0, atol=1e-13)
    assert (weights > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_weights_are_exactly_zero_in_every_type(dtype: torch.dtype) -> None:
    attention = make("multiplicative").to(dtype)
    outputs, queries = (tensor.to(dtype) for tensor in tensors())
    _, weights = attention.attend(queries, attention.memory(reference.encoded(outputs), LENGTHS))
    assert not weights[1, :, 2:].any()
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(2, 3), rtol=0, atol=1e-2)


def test_multiplicative_scores_are_scaled_only_where_asked() -> None:
    query, keys = torch.ones(1, 1, 4, dtype=torch.float64), torch.full((1, 1, 4), 3.0, dtype=torch.float64)
    assert make("multiplicative").score(query, keys).item() == 12.0
    assert make("multiplicative", "sqrt").score(query, keys).item() == 6.0
    learned = make("multiplicative", "learned")
    assert learned.score(query, keys).item() == pytest.approx(12.0 * learned.scale.item())


def test_a_learned_scale_starts_where_tensorflow_starts_it() -> None:
    for name, first in (("multiplicative", 1.0), ("dot", 1.0), ("additive", 0.5)):
        attention = make(name, "learned")
        initialise(attention, InitialisationConfig(), 1)
        assert attention.scale.tolist() == [first]


def test_additive_attention_with_a_learned_scale_ignores_the_length_of_v() -> None:
    attention = make("additive", "learned")
    query, keys = torch.randn(1, 1, 4, dtype=torch.float64), torch.randn(1, 1, 4, dtype=torch.float64)
    before = attention.score(query, keys)
    with torch.no_grad():
        attention.v *= 7.0
    torch.testing.assert_close(attention.score(query, keys), before, rtol=0, atol=1e-14)


def test_dot_attention_has_no_parameters_and_needs_equal_widths() -> None:
    assert not list(make("dot").parameters())
    with pytest.raises(UserError, match=r"model\.attention\.name: attention 'dot' has no projections.* 3 units .* 6"):
        DotAttention(AttentionConfig(name="dot", units=0), 3, 6, 6)


@pytest.mark.parametrize(("name", "extra"), [("multiplicative", 0), ("additive", 4)])
def test_parameters_have_biases_except_v(name: str, extra: int) -> None:
    # key C·A + A, query h·A + A, and v without bias
    assert sum(p.numel() for p in make(name).parameters()) == (6 * 4 + 4) + (3 * 4 + 4) + extra


@pytest.mark.parametrize(("name", "scaling"), SCALED)
def test_gradients(name: str, scaling: str) -> None:
    attention, (outputs, queries) = make(name, scaling), tensors(units=query_units(name))

    def run(outputs: torch.Tensor, queries: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return attention.attend(queries, attention.memory(reference.encoded(outputs), LENGTHS))

    inputs = (outputs.requires_grad_(), queries.requires_grad_(), *attention.parameters())
    assert gradcheck(run, inputs, fast_mode=True)


def test_without_attention_the_context_is_empty_and_weights_are_zero() -> None:
    attention = make("none_state")
    assert isinstance(attention, NoAttention)
    outputs, queries = tensors()
    memory = attention.memory(reference.encoded(outputs), LENGTHS)
    assert memory.mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    context, weights = attention.attend(queries, memory)
    assert context.shape == (2, 3, 0)
    assert weights.shape == (2, 3, 5)
    assert not weights.any()
    assert not list(attention.parameters())


def test_memory_has_the_batch_first() -> None:
    memory = make("additive").memory(reference.encoded(tensors()[0]), LENGTHS)
    assert isinstance(memory, Memory)
    assert [tuple(t.shape) for t in memory] == [(2, 5, 4), (2, 5, 6), (2, 5)]


@pytest.mark.parametrize(
    ("time", "name", "scaling"),
    [
        *((time, "additive", "none") for time in (8, 24, 30, 40)),
        (24, "multiplicative", "learned"),
        (24, "dot", "learned"),
    ],
)
def test_gradients_have_the_same_bits_for_any_number_of_threads(time: int, name: str, scaling: str) -> None:
    """`torch.softmax`, for one, splits its gradient among threads in a way that shows; so does one scalar for all."""
    found, queries = [], 1 if scaling == "none" else 8
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(time)
        config = AttentionConfig(name=name, units=64, scaling=scaling)
        attention = reference.randomised(registry.lookup("attention", name, "attention.name")(config, 64, 64, 64))
        outputs = torch.randn(time, 128, 64, requires_grad=True)
        query = torch.randn(128, queries, 64, requires_grad=True)
        memory = attention.memory(reference.encoded(outputs), torch.full((128,), time))
        context, _ = attention.attend(query, memory)
        context.backward(torch.randn(128, queries, 64))
        found.append((context.detach(), outputs.grad, query.grad, *(p.grad for p in attention.parameters())))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
