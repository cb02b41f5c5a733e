"""Models with a Transformer decoder: its three forms, what it must not depend on, and search with it."""

from __future__ import annotations

from itertools import product
from typing import Any

import models_reference as reference
import non_recurrent_reference as slow
import numpy as np
import pytest
import torch
from models_reference import (
    SOURCES,
    TARGETS,
    ExampleSlot,
    gradients,
    numbers,
    padded_batch,
    random_model,
    run_stages,
)
from non_recurrent_reference import ENCODERS, model_config
from torch import Tensor
from torch.autograd import gradcheck

from nmt import registry
from nmt.config import compose
from nmt.config.options import OPTIONS
from nmt.config.schema import LossConfig, OptimizerConfig, ScheduleConfig, SearchConfig
from nmt.data.vocabulary import EOS, SOS
from nmt.errors import UserError
from nmt.models.dropout import NO_DROPOUT, AddressedDropout
from nmt.models.multi_head import attend
from nmt.models.parameters import planned_parameters
from nmt.models.plain import plain_autograd
from nmt.models.seq2seq import Encoded, Seq2Seq, build_model
from nmt.models.transformer import LayerNorm
from nmt.models.watch import GradientWatch
from nmt.search.beam import Hypothesis, beam_search
from nmt.training.schedule import learning_rate

PAIRS = [*product([*ENCODERS, "bidirectional"], ["transformer"]), *product(ENCODERS, ["recurrent"])]


def slow_rows(model: Seq2Seq, source: list[int], target: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log-probabilities [len(target) + 1, V] and attention weights of a teacher-forced target."""
    embedded = [numbers(model.source_embedding.weight)[token] for token in [*source, EOS]]
    outputs, values, _ = slow.encode(model.encoder, embedded)
    previous = [numbers(model.target_embedding.weight)[token] for token in [SOS, *target]]
    hidden, weights = slow.decode(model.decoder, previous, outputs, values)
    logits = np.array([reference.affine(model.output, x) for x in hidden])
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)), weights


@pytest.mark.parametrize("encoder", [*ENCODERS, "bidirectional"])
def test_losses_and_steps_are_those_of_the_slow_reference(encoder: str) -> None:
    model = random_model(model_config(encoder))
    batch = padded_batch(SOURCES, TARGETS, extra=2)
    rows = [slow_rows(model, source, target) for source, target in zip(SOURCES, TARGETS, strict=True)]
    expected = {
        (t, row): -rows[row][0][t, token]
        for row, target in enumerate(TARGETS)
        for t, token in enumerate([*target, EOS])
    }
    in_time_order = [expected[position] for position in sorted(expected)]
    np.testing.assert_allclose(model(batch).detach().numpy(), in_time_order, rtol=0, atol=1e-12)

    encoded = model.encode(batch.source, batch.source_lengths)
    state = model.start(encoded, 1)
    for t in range(5):
        logits, state, weights = model.step(batch.target_input[:, t : t + 1], state, encoded)
        for row, (log_p, attention) in enumerate(rows):
            if t <= len(TARGETS[row]):
                length = len(SOURCES[row]) + 1
                np.testing.assert_allclose(logits[row, 0].log_softmax(-1).detach(), log_p[t], rtol=0, atol=1e-12)
                np.testing.assert_allclose(weights[row, 0, :length].detach(), attention[t], rtol=0, atol=1e-12)
                assert not weights[row, 0, length:].any()


def test_one_step_after_the_other_gives_the_training_form() -> None:
    model = random_model(model_config())
    decoder, g = model.decoder, torch.Generator().manual_seed(0)
    embedded = torch.randn(6, 2, 6, dtype=torch.float64, generator=g)
    outputs = torch.randn(4, 2, 8, dtype=torch.float64, generator=g)
    memory = decoder.memory(reference.encoded(outputs), torch.tensor([4, 2]))
    first = outputs.new_zeros(2, 0)
    whole = decoder(embedded, memory, first, NO_DROPOUT)
    state = decoder.start(first, 1)
    for t in range(6):
        out, state, _ = decoder.step(embedded[t].unsqueeze(1), state, memory)
        torch.testing.assert_close(out.squeeze(1), whole[t], rtol=0, atol=1e-12)
    assert [tuple(part.shape) for part in state] == [(2, 1, 3, 6, 4)] * 4


def test_a_later_token_never_changes_an_earlier_output() -> None:
    model = random_model(model_config())
    target = [4, 12, 3, 5, 7]
    batch = padded_batch([SOURCES[0]], [target])
    encoded = model.encoder(model.source_embedding(batch.source.t()), batch.source_lengths, NO_DROPOUT)
    memory = model.decoder.memory(encoded, batch.source_lengths)
    embedded = model.target_embedding(batch.target_input.t()).detach().requires_grad_()
    outputs = model.decoder(embedded, memory, embedded.new_zeros(1, 0), NO_DROPOUT)
    for t in range(len(outputs)):
        (gradient,) = torch.autograd.grad(outputs[t].sum(), embedded, retain_graph=True)
        assert not gradient[t + 1 :].any()
        assert all(gradient[: t + 1].flatten(1).any(dim=1))


def test_beams_of_a_sentence_equal_runs_of_their_own_and_can_be_reordered() -> None:
    model = random_model(model_config())
    batch, beams = padded_batch(SOURCES, TARGETS), torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]])
    encoded = model.encode(batch.source, batch.source_lengths)
    logits, state, _ = model.step(beams, model.start(encoded, 3), encoded)
    order = torch.tensor([2, 0, 0])
    again, _, weights = model.step(beams.flip(0), tuple(part[:, order] for part in state), encoded)
    for k in range(3):
        one, _, _ = model.step(beams[:, k : k + 1], model.start(encoded, 1), encoded)
        torch.testing.assert_close(logits[:, k : k + 1], one, rtol=0, atol=1e-12)
        came_from = beams[:, order[k] : order[k] + 1]
        _, state_one, _ = model.step(came_from, model.start(encoded, 1), encoded)
        two, _, weights_two = model.step(beams.flip(0)[:, k : k + 1], state_one, encoded)
        torch.testing.assert_close(again[:, k : k + 1], two, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[:, k : k + 1], weights_two, rtol=0, atol=1e-12)


def test_sentences_of_an_encoding_can_be_picked_by_row() -> None:
    model = random_model(model_config())
    batch = padded_batch(SOURCES, TARGETS)
    encoded = model.encode(batch.source, batch.source_lengths)
    assert all(len(field) == 3 for field in encoded)
    picked = Encoded(*(field[torch.tensor([2, 0])] for field in encoded))
    tokens = torch.tensor([[1]] * 3)
    all_logits, _, _ = model.step(tokens, model.start(encoded, 1), encoded)
    logits, _, _ = model.step(tokens[:2], model.start(picked, 1), picked)
    torch.testing.assert_close(logits, all_logits[[2, 0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_padding_and_neighbours_change_neither_loss_nor_gradients(encoder: str, decoder: str) -> None:
    model = random_model(model_config(encoder, decoder))
    tight = run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS)))
    wide = run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS, extra=6, filler=8)))
    single = [
        run_stages(model, ExampleSlot(padded_batch([source], [target])))
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    alone = torch.stack(single).sum()
    expected = gradients(model, tight)
    for other in (wide, alone):
        assert other.item() == pytest.approx(tight.item(), abs=1e-11)
        for name, gradient in gradients(model, other).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-11)


def test_gradients_with_dropout() -> None:
    model = random_model(model_config(dropout=0.3))
    decoder, g = model.decoder, torch.Generator().manual_seed(0)
    embedded = torch.randn(3, 2, 6, dtype=torch.float64, generator=g).requires_grad_()
    outputs = torch.randn(4, 2, 8, dtype=torch.float64, generator=g).requires_grad_()

    def run(embedded: Tensor, outputs: Tensor, *_: Tensor) -> Tensor:
        memory = decoder.memory(reference.encoded(outputs), torch.tensor([4, 2]))
        return decoder(embedded, memory, outputs.new_zeros(2, 0), AddressedDropout(1, 1, 0))

    assert gradcheck(run, (embedded, outputs, *decoder.parameters()), fast_mode=True)


def test_the_loss_can_be_differentiated_twice() -> None:
    model = random_model(model_config(), loss=LossConfig(label_smoothing=0.1))
    parameters = list(model.parameters())
    with plain_autograd():
        loss = run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS)))
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
    assert all(g.isfinite().all() and g.any() for g in second)


def test_every_mask_of_a_step_has_a_name_of_its_own() -> None:
    drawn: dict[str, tuple[int, ...]] = {}

    class Recorder(AddressedDropout):
        def mask(self, name: str, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor | None:
            assert name not in drawn
            assert p == 0.2
            drawn[name] = tuple(shape)
            return super().mask(name, shape, p, like)

    model = random_model(model_config(dropout=0.2))
    run_stages(model, ExampleSlot(padded_batch(SOURCES, TARGETS), Recorder(1, 1, 0)))
    expected = {"source_embedding": (6, 3, 6), "target_embedding": (5, 3, 6), "mix": (5, 3, 12)}
    for side, shape, heads in (("encoder", (3, 6, 8), 2), ("decoder", (3, 5, 12), 3)):
        expected[f"{side}.embedded"] = shape
        for layer in range(2):
            name, time = f"{side}.{layer}", shape[1]
            expected |= {
                f"{name}.self_attention": shape,
                f"{name}.self_attention.weights": (3, heads, time, time),
                f"{name}.feed_forward": shape,
                f"{name}.feed_forward.relu": (3, time, 10),
            }
            if side == "decoder":
                expected |= {
                    f"{name}.cross_attention": shape,
                    f"{name}.cross_attention.weights": (3, 4, 5, 6),
                }
    assert drawn == expected


def test_a_watch_is_told_of_every_layers_output_and_changes_nothing() -> None:
    model, watch = random_model(model_config()), GradientWatch()
    batch = padded_batch(SOURCES, TARGETS)
    watched = gradients(model, run_stages(model, ExampleSlot(batch, watch=watch)))
    for name, gradient in gradients(model, run_stages(model, ExampleSlot(batch))).items():
        assert torch.equal(gradient, watched[name])
    seen = watch.square_sums()
    assert {name: len(sums) for name, sums in seen.items()} == {"decoder.0": 15, "decoder.1": 15}
    real = [t < len(target) + 1 for target in TARGETS for t in range(5)]
    assert [square > 0 for square in seen["decoder.1"]] == real


def test_dropout_is_a_function_of_its_address() -> None:
    reference.check_dropout_is_addressed(random_model(model_config(dropout=0.3)))


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_bf16_autocast_trains_and_decodes_near_float32(encoder: str, decoder: str) -> None:
    reference.check_bf16_is_near_float32(build_model(model_config(encoder, decoder, dropout=0.1), 11, 13, seed=1))


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    reference.check_threads_change_no_bit(model_config(dropout=0.2), threads=3)


@pytest.mark.parametrize("time", [24, 40])
def test_gradients_of_attention_have_the_same_bits_for_any_number_of_threads(time: int) -> None:
    """`torch.softmax`, for one, splits its gradient among threads in a way that shows."""
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(time)
        query, keys, values = (torch.randn(64, 4, n, 8, requires_grad=True) for n in (5, time, time))
        context, _ = attend(query, keys, values, None, "", 0.0, NO_DROPOUT)
        context.backward(torch.randn_like(context))
        found.append((context.detach(), query.grad, keys.grad, values.grad))
    torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_layer_norm_normalises_and_starts_as_nothing_more() -> None:
    layer = LayerNorm(5)
    draws = layer.first_values()
    assert (draws["gain"].value, draws["bias"].value) == (1.0, 0.0)  # type: ignore[union-attr]
    reference.randomised(layer.double())
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    expected = torch.nn.functional.layer_norm(x, (5,), layer.gain, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-14)


def test_calls_leave_no_trace_on_the_model() -> None:
    model = random_model(model_config(dropout=0.2))
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS), AddressedDropout(1, 1, 0))
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    run_stages(model, slot)
    encoded = model.encode(slot.batch.source, slot.batch.source_lengths)
    kept = [field.clone() for field in encoded]
    _, state, _ = model.step(torch.full((3, 2), 1), model.start(encoded, 2), encoded)
    kept_state = [part.clone() for part in state]
    model.step(torch.full((3, 2), 3), state, encoded)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(old, new) for old, new in zip([*kept, *kept_state], [*encoded, *state], strict=True))
    assert list(model.buffers()) == []


def test_each_layer_attends_with_parameters_of_its_own() -> None:
    model = build_model(model_config(tie=True), 13, 13, seed=1)
    one, other = (layer.cross_attention.key.weight for layer in model.decoder.layers)
    assert one is not other
    assert not torch.equal(one, other)
    assert model.output.weight is model.target_embedding.weight is model.source_embedding.weight
    assert model.decoder.input.projection is None


def source_batch(sources: list[list[int]]) -> tuple[Tensor, Tensor]:
    batch = padded_batch(sources, [[]] * len(sources))
    return batch.source, batch.source_lengths


def search_model(encoder: str = "transformer") -> Seq2Seq:
    """A float32 model whose distributions are far from flat, and whose outputs end now and then."""
    seed, bonus = {"transformer": (5, 1.0), "convolutional": (5, 1.5), "pooling": (4, 1.5)}[encoder]
    model = build_model(model_config(encoder), 30, 9)
    reference.randomised(model, seed)
    with torch.no_grad():
        model.output.bias[EOS] += bonus
    return model.eval()


def likelihood(model: Seq2Seq, source: list[int], hypothesis: Hypothesis, ended: bool) -> float:
    losses = model(padded_batch([source], [list(hypothesis.tokens)])).detach().double()
    return -losses[: None if ended else -1].sum().item()


SEARCHED = [[3, 4, 5], [10], [6, 3, 9, 8, 7, 20], [29, 3], [11, 12, 13, 14]] * 4


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_beam_search_finds_scores_as_in_training(encoder: str) -> None:
    """Reordered and cut caches: the log-probability of each hypothesis is what the training form says of it."""
    model = search_model(encoder)
    search = SearchConfig(beam=4, n_best=4, max_length=7)
    found = beam_search(model, *source_batch(SEARCHED), search)
    lengths = set()
    for source, hypotheses in zip(SEARCHED[:5], found[:5], strict=True):
        for hypothesis in hypotheses:
            ended = len(hypothesis.tokens) < 7
            lengths.add(len(hypothesis.tokens))
            exact = likelihood(model, source, hypothesis, ended)
            either = (exact,) if ended else (exact, likelihood(model, source, hypothesis, True))
            assert any(hypothesis.log_probability == pytest.approx(value, abs=1e-4) for value in either)
    assert len(lengths) > 3
    assert found[:5] * 4 == found


def test_a_sentence_is_found_alone_as_in_a_batch_to_the_last_bit() -> None:
    model = search_model()
    search = SearchConfig(beam=3, n_best=3, max_length=7)
    together = beam_search(model, *source_batch(SEARCHED), search)
    for source, expected in zip(SEARCHED[:5], together[:5], strict=True):
        width = max(len(other) for other in SEARCHED) + 1
        tokens = torch.tensor([[*source, EOS] + [EOS] * (width - len(source) - 1)])
        (alone,) = beam_search(model, tokens, torch.tensor([len(source) + 1]), search)
        assert alone == expected


def test_a_beam_of_one_takes_the_likeliest_token_of_the_training_form() -> None:
    model = search_model()
    found = beam_search(model, *source_batch(SEARCHED), SearchConfig(beam=1, max_length=7))
    for source, (hypothesis,) in zip(SEARCHED[:5], found[:5], strict=True):
        tokens: list[int] = []
        while len(tokens) < 7:
            batch = padded_batch([source], [tokens])
            embedded = model.source_embedding(batch.source.t())
            encoded = model.encoder(embedded, batch.source_lengths, NO_DROPOUT)
            mix = model.decoder(
                model.target_embedding(batch.target_input.t()),
                model.decoder.memory(encoded, batch.source_lengths),
                encoded.final_state.new_zeros(1, 0),
                NO_DROPOUT,
            )
            best = int(model.output(mix[-1, 0]).argmax())
            if best == EOS:
                break
            tokens.append(best)
        assert hypothesis.tokens == tuple(tokens)


def affine_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@pytest.mark.parametrize(("extra", "saved"), [([], 0), (["share", "tie_output"], 2 * 37_007 * 512)])
def test_parameters_of_the_base_model(extra: list[str], saved: int) -> None:
    d, inner, vocabulary = 512, 2048, 37_007
    norm, attention = 2 * d, 4 * affine_parameters(d, d)
    sublayer = affine_parameters(d, inner) + affine_parameters(inner, d) + norm
    encoder = 6 * (attention + norm + sublayer) + norm
    decoder = 6 * (2 * (attention + norm) + sublayer) + norm
    expected = 2 * vocabulary * d + encoder + decoder + affine_parameters(d, vocabulary) - saved
    overrides = ["scale=published", "experiment=transformer", "tokenizer.vocab_size=37007"]
    found = planned_parameters(compose([*overrides, *(f"model.embedding.{key}=true" for key in extra)]))
    assert found == expected
    assert found + saved == 101_020_303


def test_the_schedule_is_that_of_the_paper() -> None:
    """Vaswani et al. 2017, equation 3, at the rate that conf/model/transformer.yaml names: (512 · 4000)^-0.5."""
    optimizer = OptimizerConfig(learning_rate=(512 * 4000) ** -0.5)
    schedule = ScheduleConfig(name="inverse_sqrt", warmup_steps=4000)
    assert optimizer.learning_rate == pytest.approx(7e-4, rel=2e-3)
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        paper = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert learning_rate(optimizer, schedule, step) == pytest.approx(paper, rel=1e-12)


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["model/decoder=transformer"], ["model.attention.name", "model/attention=multi_head"]),
    (["model/attention=multi_head"], ["model.attention.name", "model/decoder=transformer"]),
    (["model=transformer", "model/attention=additive"], ["model.attention.name", "multi_head"]),
    (["model=transformer", "model/bridge=projection"], ["model.bridge.name", "model/bridge=zero"]),
    (["model=transformer", "model.attention.units=0"], ["model.attention.units", "at least 1"]),
    (["model=transformer", "model.encoder.options.heads=7"], ["model.encoder.options.heads", "divisor"]),
    (["model=transformer", "model.decoder.units=30"], ["model.decoder.options.heads", "divisor"]),
    (["model=transformer", "model.attention.options.heads=0"], ["model.attention.options.heads", ">= 1"]),
    (["model=transformer", "model.decoder.options.heads=many"], ["'many' is not an integer"]),
    (["model=transformer", "model.decoder.options.dropout=true"], ["'True' is not a number"]),
    (["model=transformer", "model.decoder.options.dropout_relu=1"], ["dropout_relu", ">= 0 and < 1"]),
    (["model/encoder=pooling", "model.encoder.units=9"], ["model.encoder.units", "allowed: 128"]),
    (["model/encoder=pooling", "model.encoder.layers=2"], ["model.encoder.layers", "allowed: 1"]),
    (["model/encoder=pooling", "model.encoder.options.combiner=sum"], ["combiner", "add, multiply"]),
    (["model/encoder=convolutional", "model.encoder.options.positions=3"], ["'3' is not a name"]),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=lambda value: " ".join(value)[:50])
def test_a_mistake_is_told_when_the_configuration_is_composed(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(overrides)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_option_is_told_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"model\.decoder\.options: unknown option 'head'.*did you mean heads"):
        planned_parameters(compose(["model=transformer", "model.decoder.options.head=2"]))


def test_the_declared_options_are_the_constructors() -> None:
    import inspect

    wanted: dict[str, Any] = {"int": int, "float": float, "str": str}
    for (kind, name), options in OPTIONS.items():
        parameters = inspect.signature(registry.lookup(kind, name, "")).parameters
        found = {key: wanted[p.annotation] for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
        assert {key: constraints["type"] for key, constraints in options.items()} == found
