"""The whole model: against the slow reference, in its three forms, and in what it must not depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import models_reference as reference
import numpy as np
import pytest
import torch
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
from torch import Tensor

from nmt.config.schema import EncoderConfig, LossConfig
from nmt.errors import UserError
from nmt.models import piecewise
from nmt.models.dropout import AddressedDropout
from nmt.models.plain import plain_autograd
from nmt.models.seq2seq import Encoded, build_model
from nmt.models.vocabulary_chunk import chunk_rows

KINDS, ATTENTIONS = ["gru", "lstm"], ["additive", "multiplicative", "none_state"]


@pytest.mark.parametrize(
    ("encoder", "kind", "attention", "layers"), product(["unidirectional", "bidirectional"], KINDS, ATTENTIONS, [1, 2])
)
def test_losses_are_those_of_the_slow_reference(encoder: str, kind: str, attention: str, layers: int) -> None:
    model = random_model(model_config(encoder, kind, attention, encoder_layers=layers, decoder_layers=layers))
    batch = padded_batch(SOURCES, TARGETS, extra=2)
    losses = model(batch)
    expected = {}
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        log_p = reference.token_log_probabilities(model, source, target)
        expected |= {(t, row): -log_p[t, token] for t, token in enumerate([*target, 2])}
    in_time_order = [expected[position] for position in sorted(expected)]
    np.testing.assert_allclose(losses.detach().numpy(), in_time_order, rtol=0, atol=1e-12)
    total = run_stages(model, ExampleSlot(batch))
    assert total.item() == pytest.approx(sum(in_time_order), abs=1e-11)


@pytest.mark.parametrize(("kind", "attention"), product(KINDS, ATTENTIONS))
def test_decoding_gives_the_logits_of_training(kind: str, attention: str) -> None:
    model = random_model(model_config(kind=kind, attention=attention, bridge="projection"))
    batch = padded_batch(SOURCES, TARGETS)
    encoded = model.encode(batch.source, batch.source_lengths)
    state = model.start(encoded, 1)
    for t in range(5):
        logits, state, weights = model.step(batch.target_input[:, t : t + 1], state, encoded)
        for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
            if t <= len(target):
                expected = reference.token_log_probabilities(model, source, target)[t]
                np.testing.assert_allclose(logits[row, 0].log_softmax(-1).detach().numpy(), expected, atol=1e-12)
                total = 0.0 if attention == "none_state" else 1.0
                assert weights[row, 0, : len(source) + 1].sum().item() == pytest.approx(total)


def test_beams_of_a_sentence_equal_runs_of_their_own() -> None:
    model = random_model(model_config(kind="lstm", attention="additive"))
    batch, beams = padded_batch(SOURCES, TARGETS), torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]])
    encoded = model.encode(batch.source, batch.source_lengths)
    logits, state, _ = model.step(beams, model.start(encoded, 3), encoded)
    again, _, _ = model.step(beams.flip(0), state, encoded)
    for k in range(3):
        one, state_one, _ = model.step(beams[:, k : k + 1], model.start(encoded, 1), encoded)
        two, _, _ = model.step(beams.flip(0)[:, k : k + 1], state_one, encoded)
        torch.testing.assert_close(logits[:, k : k + 1], one, rtol=0, atol=1e-12)
        torch.testing.assert_close(again[:, k : k + 1], two, rtol=0, atol=1e-12)


def test_sentences_of_an_encoding_can_be_picked_by_row() -> None:
    model = random_model(model_config(attention="additive"))
    batch = padded_batch(SOURCES, TARGETS)
    encoded = model.encode(batch.source, batch.source_lengths)
    picked = Encoded(*(field[torch.tensor([2, 0])] for field in encoded))
    tokens = torch.tensor([[1]] * 3)
    all_logits, _, _ = model.step(tokens, model.start(encoded, 1), encoded)
    logits, _, _ = model.step(tokens[:2], model.start(picked, 1), picked)
    torch.testing.assert_close(logits, all_logits[[2, 0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "attention"), product(KINDS, ATTENTIONS))
def test_padding_changes_neither_loss_nor_gradients(kind: str, attention: str) -> None:
    model = random_model(model_config(kind=kind, attention=attention, encoder_layers=2))
    tight = run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS)))
    wide = run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS, extra=6, filler=8)))
    assert tight.item() == pytest.approx(wide.item(), abs=1e-11)
    one, other = gradients(model, tight), gradients(model, wide)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-11)


def test_a_batch_is_the_sum_of_its_sentences() -> None:
    model = random_model(model_config())
    whole = gradients(model, run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS))))
    losses = [
        run_stages(model, ExampleSlot(padded_batch([source], [target])))
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    for name, gradient in gradients(model, torch.stack(losses).sum()).items():
        torch.testing.assert_close(whole[name], gradient, rtol=0, atol=1e-11)


def test_label_smoothing_and_chunks_of_the_configuration_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, vocabularies = padded_batch(SOURCES, TARGETS), (11, 45)
    plain = random_model(model_config(), vocabularies)
    smooth = random_model(model_config(), vocabularies, LossConfig(label_smoothing=0.2))
    chunked = random_model(model_config(), vocabularies, LossConfig(label_smoothing=0.2, vocab_chunks=3))
    expected = 0.0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        log_p = reference.token_log_probabilities(plain, source, target)
        expected -= sum(0.8 * log_p[t, token] + 0.2 * log_p[t].mean() for t, token in enumerate([*target, 2]))
    assert run_stages(smooth, ExampleSlot(batch)).item() == pytest.approx(expected, abs=1e-11)
    cut: list[tuple[int, int]] = []
    monkeypatch.setattr(piecewise, "chunk_rows", lambda *what: cut.append(what) or chunk_rows(*what))
    assert run_stages(chunked, ExampleSlot(batch)).item() == pytest.approx(expected, abs=1e-11)
    assert cut == [(45, 3)]
    assert smooth(batch).sum().item() == pytest.approx(plain(batch).sum().item(), abs=1e-11)


def test_tables_can_be_shared_and_tied() -> None:
    shared = random_model(model_config(share=True, tie=True), vocab=(13, 13))
    assert shared.source_embedding is shared.target_embedding
    assert shared.output.weight is shared.target_embedding.weight
    assert [name for name, _ in shared.named_parameters() if name.startswith(("source", "target", "output"))] == [
        "source_embedding.weight",
        "output.bias",
    ]
    # The gradient of the one table is the sum of what three separate ones get.
    free = random_model(model_config(), vocab=(13, 13))
    state = {name: value.clone() for name, value in shared.state_dict().items()}
    free.load_state_dict(state)
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS))
    one, three = gradients(shared, run_stages(shared, slot)), gradients(free, run_stages(free, slot))
    tables = [three[f"{name}.weight"] for name in ("source_embedding", "target_embedding", "output")]
    torch.testing.assert_close(one["source_embedding.weight"], sum(tables), rtol=0, atol=1e-11)


def test_a_stored_model_of_shared_tables_loads_strictly_and_stays_shared() -> None:
    config = model_config(share=True, tie=True)
    model, loaded = build_model(config, 13, 13, seed=1), build_model(config, 13, 13)
    loaded.load_state_dict(model.state_dict())
    assert loaded.output.weight is loaded.source_embedding.weight
    assert torch.equal(loaded.output.weight, model.output.weight)


def test_dropout_is_a_function_of_its_address() -> None:
    reference.check_dropout_is_addressed(random_model(model_config(attention="additive", dropout=0.3)))


def test_every_mask_of_a_step_has_a_name_and_the_shape_of_what_it_drops() -> None:
    drawn: dict[str, tuple[int, ...]] = {}

    class Recorder(AddressedDropout):
        def mask(self, name: str, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor | None:
            assert name not in drawn
            drawn[name] = tuple(shape)
            return super().mask(name, shape, p, like)

    model = random_model(model_config(dropout=0.2))
    run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS), Recorder(1, 1, 0)))
    assert drawn == {
        "source_embedding": (6, 3, 6),
        "encoder.0.input": (2, 6 * 3, 6),  # both directions, packed
        "encoder.0.output": (2, 6 * 3, 5),
        "target_embedding": (5, 3, 6),
        "decoder.0.input": (5, 3, 16),
        "decoder.0.output": (5, 3, 6),
        "decoder.1.input": (5, 3, 6),
        "decoder.1.output": (5, 3, 6),
        "mix": (5, 3, 6),
    }


@pytest.mark.parametrize(("kind", "attention"), [("gru", "additive"), ("lstm", "multiplicative")])
def test_bits_do_not_depend_on_the_number_of_threads(kind: str, attention: str) -> None:
    reference.check_threads_change_no_bit(model_config(kind=kind, attention=attention, dropout=0.2), threads=2)


@pytest.mark.parametrize(("kind", "attention"), product(KINDS, ATTENTIONS))
def test_bf16_autocast_trains_and_decodes_near_float32(kind: str, attention: str) -> None:
    reference.check_bf16_is_near_float32(
        build_model(model_config(kind=kind, attention=attention, dropout=0.1), 11, 13, seed=1)
    )


def test_calls_leave_no_trace_on_the_model() -> None:
    model = random_model(model_config(dropout=0.2))
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS), AddressedDropout(1, 1, 0))
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    run_stages(model, slot)
    encoded = model.encode(slot.batch.source, slot.batch.source_lengths)
    kept = [field.clone() for field in encoded]
    model.step(torch.full((3, 2), 1), model.start(encoded, 2), encoded)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(old, new) for old, new in zip(kept, encoded, strict=True))


def test_the_loss_can_be_differentiated_twice() -> None:
    model = random_model(model_config(attention="additive"), loss=LossConfig(label_smoothing=0.1))
    parameters = list(model.parameters())
    with plain_autograd():
        loss = run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS)))
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
    assert all(g.isfinite().all() and g.any() for g in second)


def test_stages_are_named_and_carry_only_tensors() -> None:
    model = random_model(model_config())
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS))
    encoder, decoder, output = model.stages()
    assert [stage.name for stage in (encoder, decoder, output)] == ["encoder", "decoder", "output"]
    carried = encoder(slot, {})
    assert {name: tuple(t.shape) for name, t in carried.items()} == {"outputs": (6, 3, 10), "final_state": (3, 10)}
    carried = decoder(slot, carried)
    assert {name: tuple(t.shape) for name, t in carried.items()} == {"mix": (5, 3, 6)}
    assert output(slot, carried)["loss"].dim() == 0


def test_mistakes_are_told_before_anything_is_built() -> None:
    with pytest.raises(UserError, match=r"model\.embedding\.share: vocabularies of 11 and 13"):
        build_model(model_config(share=True), 11, 13)
    config = model_config(tie=True)
    with pytest.raises(UserError, match=r"model\.embedding\.tie_output: the output layer has 6 columns"):
        build_model(replace(config, embedding=replace(config.embedding, units=4)), 13, 13)
    options = EncoderConfig(name="bidirectional", units=5, options={"depth": 3})
    with pytest.raises(UserError, match=r"model\.encoder\.options: unknown option 'depth'"):
        build_model(replace(model_config(), encoder=options), 13, 13)
