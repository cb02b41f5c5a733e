"""The decoder's training form, its single step and the bridges; whole-model references are in test_models_seq2seq."""

from __future__ import annotations

from itertools import product

import models_reference as reference
import numpy as np
import pytest
import torch
from models_reference import model_config
from torch import Tensor
from torch.autograd import gradcheck

from nmt.config.schema import BridgeConfig
from nmt.errors import UserError
from nmt.models.attention import Memory
from nmt.models.bridge import ConcatInputBridge, PassThroughBridge, ProjectionBridge, ZeroBridge
from nmt.models.decoder import RecurrentDecoder
from nmt.models.dropout import NO_DROPOUT, AddressedDropout
from nmt.models.plain import plain_autograd

KINDS, ATTENTIONS = ["gru", "lstm"], ["additive", "multiplicative", "none_state"]
LENGTHS = torch.tensor([4, 2])


def make(
    kind: str, attention: str, layers: int = 2, dropout: float = 0.0
) -> tuple[RecurrentDecoder, Tensor, Memory, Tensor]:
    """A decoder with embeddings [5, 2, 6], a memory of two sentences and a first state."""
    config = model_config(kind=kind, attention=attention, decoder_layers=layers, dropout=dropout)
    decoder = reference.random_model(config).decoder
    g = torch.Generator().manual_seed(0)
    embedded, outputs = (torch.randn(5, 2, width, dtype=torch.float64, generator=g) for width in (6, 10))
    first = torch.randn(2, decoder.state_units, dtype=torch.float64, generator=g)
    return decoder, embedded, decoder.attention.memory(reference.encoded(outputs), LENGTHS), first


@pytest.mark.parametrize(("kind", "attention", "layers"), product(KINDS, ATTENTIONS, [1, 3]))
def test_one_step_after_the_other_gives_the_training_form(kind: str, attention: str, layers: int) -> None:
    decoder, embedded, memory, first = make(kind, attention, layers)
    whole = decoder(embedded, memory, first, NO_DROPOUT)
    state = decoder.start(first, 1)
    for t in range(5):
        mix, state, _ = decoder.step(embedded[t].unsqueeze(1), state, memory)
        torch.testing.assert_close(mix.squeeze(1), whole[t], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "attention"), product(KINDS, ATTENTIONS))
def test_k_hypotheses_share_a_memory_and_never_meet(kind: str, attention: str) -> None:
    decoder, _, memory, first = make(kind, attention)
    g = torch.Generator().manual_seed(4)
    embedded = torch.randn(3, 2, 4, 6, dtype=torch.float64, generator=g)

    def run(inputs: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        state, seen = decoder.start(first, inputs.shape[2]), []
        for step in inputs:
            mix, state, weights = decoder.step(step, state, memory)
            seen += [mix, weights]
        return seen, state

    together, state = run(embedded)
    assert all(part.shape[:2] == (2, 4) for part in state)
    for k in range(4):
        alone, state_alone = run(embedded[:, :, k : k + 1])
        for one, many in zip([*alone, *state_alone], [*together, *state], strict=True):
            torch.testing.assert_close(one, many[:, k : k + 1], rtol=0, atol=1e-12)


def test_the_input_mask_covers_embedding_and_context_and_the_state_stays_whole() -> None:
    decoder, embedded, memory, first = make("gru", "multiplicative", layers=2, dropout=0.4)
    masks = AddressedDropout(5, 2, 1)
    mixed = decoder(embedded, memory, first, masks)
    drawn = {}
    for layer, width in enumerate([6 + 10, 6]):
        drawn[layer, "input"] = masks.mask(f"decoder.{layer}.input", (5, 2, width), 0.4, embedded)
        drawn[layer, "output"] = masks.mask(f"decoder.{layer}.output", (5, 2, 6), 0.2, embedded)
    for row, length in enumerate(LENGTHS.tolist()):
        values = list(memory.values[row, :length].numpy())
        states = [(part,) for part in np.split(first[row].numpy(), 2)]
        context = np.zeros(10)
        for t in range(5):
            x = np.concatenate([embedded[t, row].numpy(), context])
            for layer, cell in enumerate(decoder.cells):
                states[layer] = reference.cell_step(cell, x * drawn[layer, "input"][t, row].numpy(), states[layer])
                x = states[layer][0] * drawn[layer, "output"][t, row].numpy()
            context, _ = reference.attend(decoder.attention, x, values)
            expected = np.tanh(reference.affine(decoder.mix, np.concatenate([x, context])))
            np.testing.assert_allclose(mixed[t, row].detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "attention"), [("gru", "additive"), ("lstm", "multiplicative"), ("gru", "none_state")]
)
def test_gradients_with_dropout(kind: str, attention: str) -> None:
    decoder, embedded, memory, first = make(kind, attention, dropout=0.3)
    embedded = embedded[:3]
    values = memory.values.clone().requires_grad_()

    def run(embedded: Tensor, values: Tensor, first: Tensor, *_: Tensor) -> Tensor:
        keys = decoder.attention.memory(reference.encoded(values.transpose(0, 1)), LENGTHS)
        return decoder(embedded, keys, first, AddressedDropout(1, 1, 0))

    inputs = [embedded.requires_grad_(), values, first.requires_grad_(), *decoder.parameters()]
    with plain_autograd():
        assert gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_bridges(activation: str) -> None:
    final = torch.randn(3, 4, dtype=torch.float64)
    zero = ZeroBridge(BridgeConfig(), 4, 6)
    assert zero(final).shape == (3, 6)
    assert not zero(final).any()
    assert zero.appended(final).shape == (3, 0)
    projection = ProjectionBridge(BridgeConfig(name="projection", activation=activation), 4, 6)
    concat = ConcatInputBridge(BridgeConfig(name="concat_input", units=5, activation=activation), 4, 6)
    for bridge, made in ((projection, projection.forward), (concat, concat.appended)):
        reference.randomised(bridge.double())
        expected = np.array([reference.affine(bridge.projection, row.numpy()) for row in final])
        expected = np.tanh(expected) if activation == "tanh" else expected
        np.testing.assert_allclose(made(final).detach().numpy(), expected, rtol=0, atol=1e-13)
    assert concat(final).shape == (3, 6)
    assert not concat(final).any()
    assert projection.appended(final).shape == (3, 0)


def test_a_state_that_does_not_fit_is_not_passed_through() -> None:
    final = torch.randn(3, 4)
    assert PassThroughBridge(BridgeConfig(name="pass_through"), 4, 4)(final) is final
    with pytest.raises(UserError, match=r"model\.bridge\.name: the encoder's final state is 4 wide .* first one 6"):
        PassThroughBridge(BridgeConfig(name="pass_through"), 4, 6)


def test_the_first_state_fills_layers_and_parts_in_order() -> None:
    decoder, _, _, first = make("lstm", "multiplicative", layers=2)
    *parts, context = decoder.start(first, 3)
    assert [tuple(part.shape) for part in parts] == [(2, 3, 6)] * 4
    assert context.shape == (2, 3, 10)
    assert not context.any()
    torch.testing.assert_close(torch.cat([part[:, 2] for part in parts], dim=-1), first, rtol=0, atol=0)
