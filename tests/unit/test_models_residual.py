"""Residual stacks: the forms by hand, and where the dropout masks and the input transform stand."""

from __future__ import annotations

import models_reference as reference
import numpy as np
import pytest
import torch
from models_reference import model_config

from nmt.config.schema import EncoderConfig, ResidualConfig
from nmt.models.dropout import NO_DROPOUT, AddressedDropout
from nmt.models.encoder import UnidirectionalEncoder
from nmt.models.residual import Residual

FORMS = [("add", False), ("add", True), ("mean", False), ("mean", True), ("concat", False), ("concat", True)]


@pytest.mark.parametrize(
    ("combiner", "dense", "passed"),
    [
        ("none", False, [[1.0], [10.0], [100.0], [1000.0]]),
        ("add", False, [[1.0], [11.0], [111.0], [1111.0]]),
        ("add", True, [[1.0], [11.0], [112.0], [1124.0]]),  # 100 + (1 + 11), 1000 + (1 + 11 + 112)
        ("mean", False, [[1.0], [11.0], [111.0], [1111.0]]),
        ("mean", True, [[1.0], [11.0], [106.0], [1000.0 + 118.0 / 3]]),  # 100 + (1 + 11) / 2, …
        ("concat", False, [[1.0], [10.0, 1.0], [100.0, 10.0, 1.0], [1000.0, 100.0, 10.0, 1.0]]),
        (
            "concat",
            True,
            [[1.0], [10.0, 1.0], [100.0, 1.0, 10.0, 1.0], [1000.0, 1.0, 10.0, 1.0, 100.0, 1.0, 10.0, 1.0]],
        ),
    ],
)
def test_what_three_layers_pass_on(combiner: str, dense: bool, passed: list[list[float]]) -> None:
    """Layers that make 10, 100 and 1000 of an input of 1: dense sums take what was *combined* before."""
    residual = Residual(ResidualConfig(combiner=combiner, dense=dense), 1, 1, 3)
    assert residual.input_transform is None
    found = [torch.tensor([1.0])]
    for y in (10.0, 100.0, 1000.0):
        found.append(residual.combine(torch.tensor([y]), found))
    assert [each.tolist() for each in found] == [pytest.approx(each) for each in passed]
    assert residual.widths == [len(each) for each in passed]


@pytest.mark.parametrize(
    ("combiner", "input_units", "has_one"),
    [("add", 3, True), ("mean", 3, True), ("add", 4, False), ("concat", 3, False), ("none", 3, False)],
)
def test_only_sums_of_another_width_transform_their_input(combiner: str, input_units: int, has_one: bool) -> None:
    residual = Residual(ResidualConfig(combiner=combiner), input_units, 4, 2)
    assert sum(p.numel() for p in residual.parameters()) == (input_units * 4 + 4 if has_one else 0)
    x = torch.randn(2, input_units)
    assert (residual.enter(x) is x) is not has_one


@pytest.mark.parametrize(("combiner", "dense"), FORMS)
def test_the_residual_path_is_not_dropped_in_an_encoder(combiner: str, dense: bool) -> None:
    """With every cell's output at zero (weights and biases of zero, GRU), only the undropped input is left."""
    config = model_config(dropout=0.5, combiner=combiner, dense=dense).encoder
    encoder = UnidirectionalEncoder(
        EncoderConfig(**{**vars(config), "name": "unidirectional", "layers": 2}), 5
    ).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    lengths = torch.tensor([4, 3])
    outputs, _, _ = encoder(x, lengths, AddressedDropout(1, 1, 0))
    undropped, _, _ = encoder(x, lengths, NO_DROPOUT)
    assert torch.equal(outputs, undropped)
    assert outputs[0].any()


@pytest.mark.parametrize(("combiner", "dense"), FORMS)
def test_masks_of_a_decoder_stand_on_cells_alone(combiner: str, dense: bool) -> None:
    """Input transform before the first mask, masks of cells' inputs and outputs, nothing on what goes past them."""
    config = model_config(decoder_layers=3, dropout=0.4, combiner=combiner, dense=dense)
    decoder = reference.random_model(config).decoder
    g = torch.Generator().manual_seed(0)
    embedded, outputs = (torch.randn(3, 2, width, dtype=torch.float64, generator=g) for width in (6, 2 * 5))
    if combiner == "concat":  # the encoder's own connections make its outputs wider
        outputs = torch.randn(3, 2, decoder.attention.context_units, dtype=torch.float64, generator=g)
    lengths = torch.tensor([3, 2])
    memory = decoder.attention.memory(reference.encoded(outputs), lengths)
    first = torch.randn(2, decoder.state_units, dtype=torch.float64, generator=g)
    masks = AddressedDropout(5, 2, 1)
    mixed = decoder(embedded, memory, first, masks)
    drawn = {}
    for layer, cell in enumerate(decoder.cells):
        drawn[layer, "input"] = masks.mask(f"decoder.{layer}.input", (3, 2, cell.input_units), 0.4, embedded)
        drawn[layer, "output"] = masks.mask(f"decoder.{layer}.output", (3, 2, 6), 0.2, embedded)
    for row, length in enumerate(lengths.tolist()):
        values = list(memory.values[row, :length].numpy())
        states = [(part,) for part in np.split(first[row].numpy(), 3)]
        context = np.zeros(decoder.attention.context_units)
        for t in range(3):
            passed = [reference.enter(decoder.residual, np.concatenate([embedded[t, row].numpy(), context]))]
            for layer, cell in enumerate(decoder.cells):
                x = passed[-1] * drawn[layer, "input"][t, row].numpy()
                states[layer] = reference.cell_step(cell, x, states[layer])
                y = states[layer][0] * drawn[layer, "output"][t, row].numpy()
                passed.append(reference.combine(decoder.residual.config, y, passed))
            context, _ = reference.attend(decoder.attention, passed[-1], values)
            expected = np.tanh(reference.affine(decoder.mix, np.concatenate([passed[-1], context])))
            np.testing.assert_allclose(mixed[t, row].detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("combiner", "dense"), [("none", False), *FORMS])
def test_a_decoder_that_is_fed_the_given_embeddings_does_what_it_does_with_all_at_once(
    combiner: str, dense: bool
) -> None:
    """The form of scheduled sampling, in which a step's embedding is known only after the step before."""
    decoder = reference.random_model(
        model_config(decoder_layers=2, dropout=0.3, combiner=combiner, dense=dense)
    ).decoder
    embedded = torch.randn(4, 2, 6, dtype=torch.float64)
    outputs = torch.randn(3, 2, decoder.attention.context_units, dtype=torch.float64)
    memory = decoder.attention.memory(reference.encoded(outputs), torch.tensor([3, 2]))
    first = torch.randn(2, decoder.state_units, dtype=torch.float64)
    masks = AddressedDropout(5, 2, 1)
    whole = decoder(embedded, memory, first, masks)
    fed = decoder(embedded, memory, first, masks, feed=lambda t, mix: embedded[t])
    torch.testing.assert_close(fed, whole, rtol=0, atol=1e-13)
