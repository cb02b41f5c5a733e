"""Encoders against reading each sentence alone, without padding."""

from __future__ import annotations

from itertools import product

import models_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from nmt import registry
from nmt.config.schema import CellConfig, EncoderConfig
from nmt.models.dropout import NO_DROPOUT, AddressedDropout
from nmt.models.encoder import BidirectionalEncoder, read_stacks, reorder, reversal
from nmt.models.plain import plain_autograd

NAMES, KINDS = ["unidirectional", "bidirectional", "stacked_bidirectional"], ["gru", "lstm", "vanilla"]
LENGTHS = [4, 1, 6]


def make(name: str, kind: str, layers: int = 2, dropout: float = 0.0, dropout_output: float = 0.0) -> torch.nn.Module:
    cell = CellConfig(kind=kind, dropout_input=dropout, dropout_output=dropout_output)
    config = EncoderConfig(name=name, units=4, layers=layers, cell=cell)
    return reference.randomised(registry.lookup("encoder", name, "encoder.name")(config, 3).double())


def embeddings(extra: int = 0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(max(LENGTHS), len(LENGTHS), 3, dtype=torch.float64, generator=generator)
    return torch.cat([real, torch.full((extra, len(LENGTHS), 3), 9.0, dtype=torch.float64)])


@pytest.mark.parametrize(("name", "kind", "layers"), product(NAMES, KINDS, [1, 3]))
def test_every_sentence_is_read_as_if_alone(name: str, kind: str, layers: int) -> None:
    encoder, x = make(name, kind, layers), embeddings(extra=2)
    outputs, final, _ = encoder(x, torch.tensor(LENGTHS), NO_DROPOUT)
    assert outputs.shape == (8, 3, encoder.output_units)
    assert final.shape == (3, encoder.state_units)
    for row, length in enumerate(LENGTHS):
        expected, expected_final = reference.encode(encoder, list(x[:length, row].numpy()))
        np.testing.assert_allclose(outputs[:length, row].detach().numpy(), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(final[row].detach().numpy(), expected_final, rtol=0, atol=1e-12)
        assert not outputs[length:, row].any()


@pytest.mark.parametrize(("name", "kind"), product(NAMES, KINDS))
def test_padding_changes_neither_outputs_nor_gradients(name: str, kind: str) -> None:
    lengths = torch.tensor(LENGTHS)

    def run(extra: int) -> list[Tensor]:
        encoder, x = make(name, kind), embeddings(extra).requires_grad_()
        outputs, final, _ = encoder(x, lengths, NO_DROPOUT)
        (outputs.sin().sum() + final.cos().sum()).backward()
        assert x.grad is not None
        assert all(not x.grad[length:, row].any() for row, length in enumerate(LENGTHS))
        return [outputs[:6], final, x.grad[:6], *(p.grad for p in encoder.parameters() if p.grad is not None)]

    for tight, padded in zip(run(0), run(5), strict=True):
        torch.testing.assert_close(tight, padded, rtol=0, atol=1e-12)


def test_the_backward_stack_reads_the_reversed_sentence() -> None:
    encoder = make("bidirectional", "gru", layers=1)
    assert isinstance(encoder, BidirectionalEncoder)
    encoder.backwards.load_state_dict(encoder.forwards.state_dict())
    x = embeddings()
    mirrored = torch.stack([torch.cat([x[:n, row].flip(0), x[n:, row]]) for row, n in enumerate(LENGTHS)], dim=1)
    ahead = encoder(x, torch.tensor(LENGTHS), NO_DROPOUT)
    back = encoder(mirrored, torch.tensor(LENGTHS), NO_DROPOUT)
    for row, n in enumerate(LENGTHS):
        torch.testing.assert_close(ahead.outputs[:n, row, :4], back.outputs[:n, row, 4:].flip(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(ahead.final_state[:, :4], back.final_state[:, 4:], rtol=0, atol=1e-14)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_reversal_turns_each_sentence_and_undoes_itself(lengths: list[int], extra: int) -> None:
    time = max(lengths) + extra
    order = reversal(torch.tensor(lengths), time)
    for row, length in enumerate(lengths):
        assert order[:, row].tolist() == [*range(length - 1, -1, -1), *range(length, time)]
    x = torch.arange(time * len(lengths) * 2.0).view(time, len(lengths), 2)
    assert torch.equal(reorder(reorder(x, order), order), x)


def test_dropout_is_drawn_per_cell_and_step_and_never_reaches_the_state() -> None:
    encoder = make("unidirectional", "gru", layers=2, dropout=0.5, dropout_output=0.25)
    masks, x, lengths = AddressedDropout(7, 3, 0), embeddings(), torch.tensor(LENGTHS)
    outputs, final, _ = encoder(x, lengths, masks)

    def mask(name: str, units: int, p: float) -> Tensor:
        drawn = masks.mask(name, (1, 6 * 3, units), p, x)  # packed: the longest sentence in the first row
        assert drawn is not None
        return drawn.view(6, 3, units)[:, [1, 2, 0]]

    for row, length in enumerate(LENGTHS):
        xs, states = x[:, row] * mask("encoder.0.input", 3, 0.5)[:, row], []
        for layer, cell in enumerate(encoder.forwards.cells):
            if layer:
                xs = xs * mask(f"encoder.{layer}.input", 4, 0.5)[:, row]
            h, undropped = (np.zeros(4),), []
            for step in xs[:length].detach().numpy():
                h = reference.cell_step(cell, step, h)
                undropped.append(h[0])
            states.append(h[0])
            xs = torch.tensor(np.array(undropped)) * mask(f"encoder.{layer}.output", 4, 0.25)[:length, row]
            if layer == 0:
                xs = torch.cat([xs, xs.new_zeros(6 - length, 4)])
        np.testing.assert_allclose(outputs[:length, row].detach().numpy(), xs.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(final[row].detach().numpy(), np.concatenate(states), rtol=0, atol=1e-12)


def test_every_mask_has_a_name_of_its_own() -> None:
    seen: list[str] = []

    class Recorder:
        def mask(self, name: str, shape: object, p: float, like: Tensor) -> None:
            raise AssertionError

        def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
            seen.append(name)
            return x

    for name in ("bidirectional", "stacked_bidirectional"):
        seen.clear()
        make(name, "gru", layers=3)(embeddings(), torch.tensor(LENGTHS), Recorder())
        assert len(seen) == len(set(seen)) == 3 * 2  # both directions are drawn together


def test_layers_that_are_joined_see_both_sides_from_the_second_one_on() -> None:
    """The last word reaches the first output of a forward cell of layer 2, but not where each way is a stack."""
    for name, reaches in (("bidirectional", False), ("stacked_bidirectional", True)):
        encoder, x = make(name, "gru", layers=2), embeddings().requires_grad_()
        outputs, _, _ = encoder(x, torch.tensor(LENGTHS), NO_DROPOUT)
        outputs[0, 2, :4].sum().backward()
        assert x.grad is not None
        assert bool(x.grad[5, 2].any()) is reaches


@pytest.mark.parametrize(("name", "kind", "layers"), [*product(["bidirectional"], KINDS, [1]), (NAMES[2], "gru", 2)])
def test_gradients(name: str, kind: str, layers: int) -> None:
    encoder = make(name, kind, layers)
    x = embeddings()[:4, :2].clone().requires_grad_()
    lengths = torch.tensor([4, 2])
    with plain_autograd():
        assert gradcheck(lambda x, *_: encoder(x, lengths, NO_DROPOUT)[:2], (x, *encoder.parameters()), fast_mode=True)


def test_final_state_holds_every_layer_and_part() -> None:
    stack = make("unidirectional", "lstm", layers=3).forwards
    _, final = read_stacks([stack], embeddings(), torch.tensor(LENGTHS), NO_DROPOUT)
    assert [tuple(part.shape) for part in final] == [(3, 4)] * 6
