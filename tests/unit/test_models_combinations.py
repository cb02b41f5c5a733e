"""Whole models of any valid configuration: against the slow reference, in both forms, and under other padding."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import models_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_reference import (
    SOURCES,
    TARGETS,
    ExampleSlot,
    gradients,
    model_config,
    padded_batch,
    random_model,
    run_stages,
)

from nmt.config.model_rules import MODEL_RULES
from nmt.config.schema import CellConfig, LossConfig, ModelConfig, ResidualConfig, RunConfig
from nmt.errors import UserError
from nmt.models.dropout import AddressedDropout
from nmt.models.parameters import count_parameters
from nmt.models.seq2seq import build_model

ENCODERS = ["unidirectional", "bidirectional", "stacked_bidirectional"]
KINDS, FAMILIES = ["gru", "lstm", "vanilla"], ["tf", "torch"]
ATTENTIONS = ["additive", "multiplicative", "dot", "none_state", "none_input"]
BRIDGES = ["zero", "pass_through", "projection", "concat_input"]
RESIDUALS = [("none", False), *product(["add", "mean", "concat"], [False, True])]
VOCAB = (11, 13)


def fits(model: ModelConfig) -> bool:
    """Whether validation lets a model pass."""
    try:
        for rule in MODEL_RULES:
            rule(RunConfig(model=model))
    except UserError:
        return False
    return True


def cell_size(cell: CellConfig, i: int, h: int) -> int:
    gates = {"gru": 3, "lstm": 4, "vanilla": 1}[cell.kind]
    return gates * h * (i + h) + gates * h * (1 if cell.family == "tf" else 2)


def stack_size(cell: CellConfig, residual: ResidualConfig, i: int, h: int, layers: int, ways: int = 1) -> list[int]:
    """Parameters of a stack, and the width at its top; `ways` cells a layer, joined at each."""
    total, combiner = 0, residual.combiner
    if combiner in ("add", "mean") and i != ways * h:
        total, i = i * ways * h + ways * h, ways * h
    widths = [i]
    for _ in range(layers):
        total += ways * cell_size(cell, widths[-1], h)
        beside = (sum(widths) if residual.dense else widths[-1]) if combiner == "concat" else 0
        widths.append(ways * h + beside)
    return [total, widths[-1]]


def expected_parameters(model: ModelConfig, source_vocab: int, target_vocab: int) -> int:
    """The formulas of the published layout, extended to every form."""
    e, A, encoder, decoder = model.embedding.units, model.attention.units, model.encoder, model.decoder
    ways = 1 if encoder.name == "unidirectional" else 2
    if encoder.name == "stacked_bidirectional":
        encoding, C = stack_size(encoder.cell, encoder.residual, e, encoder.units, encoder.layers, 2)
    else:
        one, width = stack_size(encoder.cell, encoder.residual, e, encoder.units, encoder.layers)
        encoding, C = ways * one, ways * width
    parts = {"lstm": 2}
    S = ways * encoder.layers * encoder.units * parts.get(encoder.cell.kind, 1)
    D = decoder.layers * decoder.units * parts.get(decoder.cell.kind, 1)
    bridge = {"projection": S * D + D, "concat_input": S * model.bridge.units + model.bridge.units}
    total = (source_vocab + target_vocab) * e + encoding + bridge.get(model.bridge.name, 0)
    context = 0 if model.attention.name.startswith("none") else C
    decoding, top = stack_size(
        decoder.cell, decoder.residual, e + model.bridge.units + context, decoder.units, decoder.layers
    )
    h = top
    if context:
        h = decoder.units
        total += (top + C) * h + h
        if model.attention.name != "dot":
            total += C * A + A + top * A + A
        total += A if model.attention.name == "additive" else 0
        total += model.attention.scaling == "learned"
    return total + decoding + h * target_vocab + target_vocab


def check_values(config: ModelConfig, extra: int = 0) -> None:
    """Losses are the reference's, decoding gives the logits of training, and the count is the formula's."""
    model = random_model(config, VOCAB)
    assert count_parameters(model) == expected_parameters(config, *VOCAB)
    batch = padded_batch(SOURCES, TARGETS, extra=extra)
    time = batch.source.shape[1]
    rows = [
        reference.token_log_probabilities(model, source, target, padded_to=time)
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    losses = {
        (t, row): -rows[row][t, token] for row, target in enumerate(TARGETS) for t, token in enumerate([*target, 2])
    }
    with torch.no_grad():
        found = model(batch).numpy()
        np.testing.assert_allclose(found, [losses[position] for position in sorted(losses)], rtol=0, atol=1e-12)
        encoded = model.encode(batch.source, batch.source_lengths)
        state = model.start(encoded, 1)
        for t in range(5):
            logits, state, _ = model.step(batch.target_input[:, t : t + 1], state, encoded)
            for row, target in enumerate(TARGETS):
                if t <= len(target):
                    np.testing.assert_allclose(logits[row, 0].log_softmax(-1).numpy(), rows[row][t], atol=1e-12)


def check_padding(config: ModelConfig) -> None:
    """Neither more padding nor other sentences beside a sentence change losses or gradients."""
    model = random_model(config, VOCAB)
    tight = gradients(model, run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS))))
    wide = gradients(model, run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS, extra=4, filler=8))))
    alone = [
        gradients(model, run_stages(model, ExampleSlot(padded_batch([source], [target]))))
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    for name, gradient in tight.items():
        torch.testing.assert_close(gradient, wide[name], rtol=0, atol=1e-10)
        torch.testing.assert_close(gradient, sum(each[name] for each in alone), rtol=0, atol=1e-10)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Any model that validation lets pass: what an attention or bridge asks for is put right rather than drawn."""

    def one(values: list) -> object:
        return draw(st.sampled_from(values))

    attention, bridge, encoder = one(ATTENTIONS), one(BRIDGES), one(ENCODERS)
    if attention == "none_state":
        bridge = one(["pass_through", "projection"])
    if attention == "none_input":
        bridge = "concat_input"
    layers, units = [draw(st.integers(1, 3)) for _ in range(2)], [draw(st.integers(1, 4)) for _ in range(2)]
    combiner, dense = one(RESIDUALS)
    scaling = {"additive": ["none", "learned"], "multiplicative": ["none", "sqrt", "learned"]}
    scaling["dot"] = scaling["multiplicative"]
    config = model_config(
        encoder, one(KINDS), attention, *layers, bridge=bridge, family=one(FAMILIES), reverse=draw(st.booleans()),
        combiner=combiner, dense=dense, scaling=one(scaling.get(attention, ["none"])), units=tuple(units),
        activation=one(["linear", "tanh"]) if bridge in ("projection", "concat_input") else "linear",
    )  # fmt: skip
    kind, family, residual = one(KINDS), one(FAMILIES), one(RESIDUALS)
    cell = replace(config.decoder.cell, kind=kind, family=family)
    own = ResidualConfig(combiner=residual[0], dense=residual[1])
    config = replace(config, decoder=replace(config.decoder, cell=cell, residual=own))
    if bridge == "pass_through":
        decoder = replace(config.decoder, units=units[0], layers=layers[0])
        if "lstm" in (kind, config.encoder.cell.kind):
            decoder = replace(decoder, cell=config.encoder.cell)
        config = replace(config, encoder=replace(config.encoder, name="unidirectional"), decoder=decoder)
    if attention == "dot" and not fits(config):
        own = ResidualConfig()
        ways = 1 if config.encoder.name == "unidirectional" else 2
        config = replace(
            config,
            encoder=replace(config.encoder, residual=own),
            decoder=replace(config.decoder, residual=own, units=ways * units[0]),
        )
        if bridge == "pass_through":
            config = replace(config, decoder=replace(config.decoder, units=units[0]))
    return config


@given(models())
@settings(max_examples=30, deadline=None)
def test_any_valid_model_is_the_reference_in_training_and_decoding(config: ModelConfig) -> None:
    assert fits(config)
    check_values(config)


@given(models())
@settings(max_examples=12, deadline=None)
def test_any_valid_model_ignores_padding_and_neighbours(config: ModelConfig) -> None:
    check_padding(config)


@pytest.mark.exhaustive
@given(models())
@settings(max_examples=400, deadline=None)
def test_many_valid_models(config: ModelConfig) -> None:
    assert fits(config)
    check_values(config, extra=2)
    check_padding(config)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("encoder", "kind", "family"), product(ENCODERS, KINDS, FAMILIES))
def test_the_whole_matrix(encoder: str, kind: str, family: str) -> None:
    count = 0
    for attention, bridge, (combiner, dense), reverse, layers in product(
        ATTENTIONS, BRIDGES, RESIDUALS, [False, True], [(1, 1), (2, 2), (3, 1)]
    ):
        units = (4, 4) if encoder == "unidirectional" else (3, 6)
        config = model_config(
            encoder, kind, attention, *layers, bridge=bridge, family=family, combiner=combiner, dense=dense,
            reverse=reverse, units=units,
        )  # fmt: skip
        if fits(config):
            count += 1
            check_values(config)
    assert count > 300


@pytest.mark.parametrize(("attention", "scaling"), [("additive", "none"), ("multiplicative", "sqrt"), ("dot", "none")])
def test_without_a_mask_padding_takes_part_with_a_value_of_zero(attention: str, scaling: str) -> None:
    config = model_config("unidirectional", "gru", attention, scaling=scaling, masked=False, units=(6, 6))
    for extra in (0, 3):
        check_values(config, extra=extra)


SAMPLE = [
    model_config("stacked_bidirectional", "lstm", "additive", 2, 2, combiner="add", family="torch", scaling="learned"),
    model_config("unidirectional", "gru", "dot", 2, 2, units=(6, 6), bridge="pass_through", scaling="sqrt"),
    model_config("bidirectional", "vanilla", "none_input", 2, 3, combiner="mean", dense=True, reverse=True),
    model_config("bidirectional", "gru", "multiplicative", 2, 2, combiner="concat", dense=True, family="torch"),
]


@pytest.mark.parametrize("config", SAMPLE, ids=lambda config: f"{config.encoder.name}-{config.attention.name}")
def test_with_dropout_gradients_are_finite_differences(config: ModelConfig) -> None:
    cell = replace(config.decoder.cell, dropout_input=0.3, dropout_output=0.2)
    config = replace(
        config,
        encoder=replace(config.encoder, cell=replace(config.encoder.cell, dropout_input=0.3, dropout_output=0.2)),
        decoder=replace(config.decoder, cell=cell),
    )
    model = random_model(config, VOCAB)
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS), AddressedDropout(1, 2, 0))
    found, generator = gradients(model, run_stages(model, slot)), torch.Generator().manual_seed(0)
    direction = {name: torch.randn(p.shape, dtype=p.dtype, generator=generator) for name, p in model.named_parameters()}
    slope = sum((found[name] * direction[name]).sum().item() for name in found)
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            for name, parameter in model.named_parameters():
                parameter.add_(direction[name], alpha=sign * 1e-6)
            losses.append(run_stages(model, slot).item())
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("config", SAMPLE, ids=lambda config: f"{config.encoder.name}-{config.attention.name}")
def test_bf16_autocast_trains_and_decodes_near_float32(config: ModelConfig) -> None:
    reference.check_bf16_is_near_float32(build_model(config, *VOCAB, seed=1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("config", SAMPLE, ids=lambda config: f"{config.encoder.name}-{config.attention.name}")
def test_bits_do_not_depend_on_the_number_of_threads(config: ModelConfig) -> None:
    scale = 16
    config = replace(
        config,
        embedding=replace(config.embedding, units=96),
        encoder=replace(config.encoder, units=scale * config.encoder.units),
        decoder=replace(config.decoder, units=scale * config.decoder.units),
        attention=replace(config.attention, units=scale * config.attention.units),
        bridge=replace(config.bridge, units=scale * config.bridge.units),
    )
    model = build_model(config, 300, 300, LossConfig(), seed=1)
    g = torch.Generator().manual_seed(0)
    sentences = [
        [torch.randint(3, 300, (int(n),), generator=g).tolist() for n in torch.randint(4, 12, (48,), generator=g)]
        for _ in range(2)
    ]
    slot = ExampleSlot(padded_batch(*sentences), AddressedDropout(1, 1, 0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(model, run_stages(model, slot)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert [name for name in results[0] if not torch.equal(results[0][name], other[name])] == []


@pytest.mark.parametrize("config", SAMPLE, ids=lambda config: f"{config.encoder.name}-{config.attention.name}")
def test_no_parameter_is_forgotten_at_the_start(config: ModelConfig) -> None:
    assert all(parameter.isfinite().all() for parameter in build_model(config, *VOCAB, seed=1).parameters())
    assert all(parameter.isnan().all() for parameter in build_model(config, *VOCAB).parameters())


@pytest.mark.exhaustive
@pytest.mark.parametrize("config", SAMPLE, ids=lambda config: f"{config.encoder.name}-{config.attention.name}")
def test_it_learns_three_sentences_by_heart(config: ModelConfig) -> None:
    wide = replace(
        config,
        encoder=replace(config.encoder, units=24),
        decoder=replace(config.decoder, units=24),
        embedding=replace(config.embedding, units=24),
    )
    model, batch = build_model(wide, *VOCAB, seed=1), padded_batch(SOURCES, TARGETS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert loss.item() < 0.05


def test_a_reversed_source_is_read_backwards_and_shown_forwards() -> None:
    """Reading 'a b c EOS' reversed is reading 'EOS c b a'; weights and outputs come in the sentence's own order."""
    plain = model_config("unidirectional", "gru", "additive")
    reversing = random_model(replace(plain, encoder=replace(plain.encoder, reverse_source=True)), VOCAB)
    forward = random_model(plain, VOCAB)
    forward.load_state_dict(reversing.state_dict())
    source, lengths = torch.tensor([[3, 4, 5, 2, 9], [10, 2, 9, 9, 9]]), torch.tensor([4, 2])
    mirrored = torch.tensor([[2, 5, 4, 3, 9], [2, 10, 9, 9, 9]])
    with torch.no_grad():
        one, other = reversing.encode(source, lengths), forward.encode(mirrored, lengths)
        _, _, weights = reversing.step(torch.full((2, 1), 1), reversing.start(one, 1), one)
        _, _, mirrored_weights = forward.step(torch.full((2, 1), 1), forward.start(other, 1), other)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(one.values[row, :length], other.values[row, :length].flip(0))
        assert torch.equal(one.final_state, other.final_state)
        torch.testing.assert_close(
            weights[row, 0, :length], mirrored_weights[row, 0, :length].flip(0), rtol=0, atol=1e-14
        )


def test_reversal_goes_for_encoders_without_recurrence_too() -> None:
    config = model_config("pooling", "gru", "multiplicative", units=(6, 6))
    plain = random_model(config, VOCAB)
    turned = random_model(replace(config, encoder=replace(config.encoder, reverse_source=True)), VOCAB)
    source, lengths = torch.tensor([[3, 4, 5, 2, 9]]), torch.tensor([4])
    one, other = plain.encode(torch.tensor([[2, 5, 4, 3, 9]]), lengths), turned.encode(source, lengths)
    torch.testing.assert_close(one.keys[:, :4].flip(1), other.keys[:, :4], rtol=0, atol=1e-14)
    torch.testing.assert_close(one.values[:, :4].flip(1), other.values[:, :4], rtol=0, atol=1e-14)


def test_the_appended_vector_is_made_once_a_sentence() -> None:
    model = random_model(model_config("bidirectional", "gru", "none_input", units=(5, 6)), VOCAB)
    batch = padded_batch(SOURCES, TARGETS)
    encoded = model.encode(batch.source, batch.source_lengths)
    assert encoded.appended.shape == (3, 3)
    assert not any(part.any() for part in model.start(encoded, 2))
    _, state, weights = model.step(torch.full((3, 2), 1), model.start(encoded, 2), encoded)
    assert [tuple(part.shape) for part in state] == [(3, 2, 6), (3, 2, 6), (3, 2, 0)]
    assert not weights.any()
