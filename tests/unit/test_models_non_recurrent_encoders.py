"""Convolutional, pooling and Transformer encoders against reading each sentence alone, position by position."""

from __future__ import annotations

from itertools import product
from typing import Any

import models_reference as reference
import non_recurrent_reference as slow
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from nmt import registry
from nmt.config import compose
from nmt.config.schema import EncoderConfig
from nmt.models.convolutional import Convolution
from nmt.models.dropout import NO_DROPOUT, AddressedDropout
from nmt.models.encoder import EncoderOutput
from nmt.models.parameters import planned_parameters

LENGTHS = [4, 1, 6]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("convolutional", {"value_units": 5, "value_layers": 2}),
    (
        "convolutional",
        {"kernel_size": 4, "value_units": 3, "value_layers": 3, "value_kernel_size": 2, "combiner": "add"},
    ),
    ("convolutional", {"positions": "learned", "num_positions": 3, "kernel_size": 1}),
    ("pooling", {}),
    ("pooling", {"pool_size": 2, "positions": "sinusoidal", "combiner": "add"}),
    ("pooling", {"pool_size": 9, "positions": "none"}),
    ("transformer", {"heads": 2, "feed_forward": 7}),
    ("transformer", {"heads": 1, "feed_forward": 3}),
]
SMALL = [CASES[0], CASES[3], CASES[6]]


def make(name: str, options: dict[str, Any], layers: int = 3, width: int = 3) -> torch.nn.Module:
    config = EncoderConfig(name=name, units=4, layers=layers)
    encoder = registry.lookup("encoder", name, "encoder.name")(config, width, **options)
    return reference.randomised(encoder.double())


def embeddings(extra: int = 0, width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(max(LENGTHS), len(LENGTHS), width, dtype=torch.float64, generator=generator)
    return torch.cat([real, torch.full((extra, len(LENGTHS), width), 9.0, dtype=torch.float64)])


def parts(encoded: EncoderOutput) -> list[Tensor]:
    return [part for part in encoded if part is not None]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("width", [3, 4])
def test_every_sentence_is_read_as_if_alone(name: str, options: dict[str, Any], width: int) -> None:
    encoder, x = make(name, options, width=width), embeddings(extra=2, width=width)
    encoded = encoder(x, torch.tensor(LENGTHS), NO_DROPOUT)
    values = encoded.outputs if encoded.values is None else encoded.values
    assert encoded.outputs.shape == (8, 3, encoder.output_units)
    assert values.shape == (8, 3, encoder.value_units)
    assert encoded.final_state.shape == (3, encoder.state_units)
    for row, length in enumerate(LENGTHS):
        outputs, expected_values, final = slow.encode(encoder, list(x[:length, row].numpy()))
        for found, expected in (
            (encoded.outputs[:length, row], outputs),
            (values[:length, row], expected_values),
            (encoded.final_state[row], final),
        ):
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-12)
        assert not encoded.outputs[length:, row].any()
        assert not values[length:, row].any()


SIZES = st.integers(1, 5)
POSITIONS = st.fixed_dictionaries(
    {
        "positions": st.sampled_from(["memn2n", "sinusoidal", "learned", "none"]),
        "combiner": st.sampled_from(["add", "multiply"]),
        "num_positions": st.integers(1, 8),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(["convolutional", "pooling", "transformer"]))
def test_any_encoder_reads_any_sentence_as_if_alone(data: st.DataObject, name: str) -> None:
    width, layers = data.draw(SIZES), data.draw(st.integers(1, 3))
    if name == "transformer":
        options = {"heads": data.draw(st.sampled_from([1, 2, 4])), "feed_forward": data.draw(SIZES)}
    else:
        keys = (
            ["pool_size"] if name == "pooling" else ["kernel_size", "value_units", "value_layers", "value_kernel_size"]
        )
        options = data.draw(POSITIONS) | {key: data.draw(SIZES) for key in keys}
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    encoder = make(name, options, layers, width)
    x = torch.randn(max(lengths) + 1, len(lengths), width, dtype=torch.float64)
    encoded = encoder(x, torch.tensor(lengths), NO_DROPOUT)
    for row, length in enumerate(lengths):
        outputs, values, final = slow.encode(encoder, list(x[:length, row].numpy()))
        np.testing.assert_allclose(encoded.outputs[:length, row].detach().numpy(), outputs, rtol=0, atol=1e-12)
        np.testing.assert_allclose(encoded.final_state[row].detach().numpy(), final, rtol=0, atol=1e-12)
        if encoded.values is not None:
            np.testing.assert_allclose(encoded.values[:length, row].detach().numpy(), values, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_padding_changes_neither_outputs_nor_gradients(name: str, options: dict[str, Any]) -> None:
    def run(extra: int) -> list[Tensor]:
        encoder, x = make(name, options), embeddings(extra).requires_grad_()
        encoded = parts(encoder(x, torch.tensor(LENGTHS), NO_DROPOUT))
        sum(part.sin().sum() for part in encoded).backward()
        assert x.grad is not None
        assert all(not x.grad[length:, row].any() for row, length in enumerate(LENGTHS))
        found = [part[:6] for part in encoded] + [x.grad[:6]]
        return found + [p.grad for p in encoder.parameters() if p.grad is not None]

    for tight, padded in zip(run(0), run(5), strict=True):
        torch.testing.assert_close(tight, padded, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_neighbours_change_nothing(name: str, options: dict[str, Any]) -> None:
    encoder, x = make(name, options), embeddings()
    together = parts(encoder(x, torch.tensor(LENGTHS), NO_DROPOUT))
    for row, length in enumerate(LENGTHS):
        alone = parts(encoder(x[:length, row : row + 1], torch.tensor([length]), NO_DROPOUT))
        for one, many in zip(alone, together, strict=True):
            many = many[:length, row : row + 1] if many.dim() == 3 else many[row : row + 1]
            torch.testing.assert_close(one, many, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_gradients(name: str, options: dict[str, Any]) -> None:
    encoder = make(name, options, layers=2)
    x = embeddings()[:4, :2].clone().requires_grad_()
    lengths = torch.tensor([4, 2])
    inputs = (x, *encoder.parameters())
    assert gradcheck(lambda x, *_: tuple(parts(encoder(x, lengths, NO_DROPOUT))), inputs, fast_mode=True)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_embeddings_are_dropped_after_their_positions_came_in(name: str, options: dict[str, Any]) -> None:
    encoder, x, masks = make(name, options | {"dropout": 0.5}, layers=1), embeddings(), AddressedDropout(7, 3, 0)
    dropped = {}

    class Recorder(AddressedDropout):
        def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
            assert name not in dropped
            dropped[name] = (x, super().__call__(name, x, p))
            return dropped[name][1]

    encoder(x, torch.tensor(LENGTHS), Recorder(7, 3, 0))
    before, after = dropped["encoder.embedded"]
    row = before[0] if name == "transformer" else before[:, 0]
    fill = slow.transformer_input if name == "transformer" else slow.with_positions
    expected = fill(encoder.input if name == "transformer" else encoder.positions, list(x[:, 0].numpy()))
    np.testing.assert_allclose(row.detach().numpy(), expected, atol=1e-13)
    mask = masks.mask("encoder.embedded", before.shape, 0.5, before)
    assert mask is not None
    assert torch.equal(after, before * mask)
    if name != "transformer":
        assert list(dropped) == ["encoder.embedded"]


def test_convolutions_start_with_tensorflows_fans() -> None:
    draw = Convolution(3, 5, 7).first_values()["weight"]
    assert draw.limits(1).item() == pytest.approx((6 / (3 * 5 + 3 * 7)) ** 0.5)  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "options"), [CASES[0], CASES[3], ("transformer", {"heads": 8, "feed_forward": 256})])
def test_bits_do_not_depend_on_the_number_of_threads(name: str, options: dict[str, Any]) -> None:
    config = EncoderConfig(name=name, units=96, layers=1)

    def run(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        encoder = registry.lookup("encoder", name, "")(config, 96, **options | {"dropout": 0.1})
        reference.randomised(encoder)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(17, 32, 96, generator=generator).requires_grad_()
        lengths = torch.randint(1, 18, (32,), generator=generator)
        encoded = parts(encoder(x, lengths, AddressedDropout(1, 1, 0)))
        sum((part * torch.randn(part.shape, generator=generator)).sum(0).sum(0).sum() for part in encoded).backward()
        return [*encoded, x.grad, *(p.grad for p in encoder.parameters())]  # type: ignore[list-item]

    try:
        one, other = run(1), run(3)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def affine_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_parameters_of_the_published_convolutional_model() -> None:
    """The original's nmt_conv: 15 convolutions of 512 and 5 of 256, four LSTM layers, additive attention of 512."""
    vocabulary, e, h = 37_007, 512, 512
    first = affine_parameters(3 * e, 512) + 14 * affine_parameters(3 * 512, 512)
    second = affine_parameters(3 * e, 256) + 4 * affine_parameters(3 * 256, 256)
    attention = 2 * affine_parameters(512, 512) + 512
    cells = 4 * affine_parameters(e + 256 + h, h) + 3 * 4 * affine_parameters(2 * h, h)
    decoder = attention + cells + affine_parameters(h + 256, h)
    expected = 2 * vocabulary * e + first + second + decoder + affine_parameters(h, vocabulary)
    found = compose(["scale=published", "experiment=convolutional", "tokenizer.vocab_size=37007"])
    assert planned_parameters(found) == expected == 79_705_487


def test_parameters_of_the_pooling_model() -> None:
    """The baseline less its encoder, and with contexts of 512 instead of 1024."""
    found = planned_parameters(compose(["scale=published", "experiment=pooling", "tokenizer.vocab_size=37007"]))
    narrower = 512 * (512 + 3 * 512 + 512)  # keys, the first cell's input, and the mixing layer
    assert found == 66_324_623 - 3_148_800 - narrower


@pytest.mark.parametrize(
    ("name", "units"), product(["convolutional", "transformer", "pooling"], ["${dim:512}", "${dim:128}"])
)
def test_sizes_shrink_with_the_scale(name: str, units: str) -> None:
    config = compose([f"model/encoder={name}", f"model.embedding.units={units}", "scale.dim_divisor=8"])
    options, embedding = config.model.encoder.options, 64 if "512" in units else 16
    assert config.model.embedding.units == embedding
    assert config.model.encoder.units == (embedding if name == "pooling" else 64)
    assert options.get("value_units", 32) == 32
    assert options.get("feed_forward", 256) == 256
