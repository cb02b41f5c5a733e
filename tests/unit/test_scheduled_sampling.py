"""Scheduled sampling: which inputs are replaced, by what, and what stays as it was."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from models_reference import PaddedBatch, model_config, padded_batch, random_model, token_log_probabilities
from torch import Tensor

from nmt.config import compose
from nmt.config.schema import BridgeConfig, ResidualConfig, ScheduledSamplingConfig
from nmt.errors import UserError
from nmt.models.attention import Memory
from nmt.models.dropout import NO_DROPOUT, AddressedDropout, Dropout
from nmt.models.scheduled_sampling import ScheduledSampling, draw, probability_at
from nmt.models.seq2seq import Seq2Seq
from nmt.models.watch import GradientWatch

SOURCES = [[3, 4, 5], [10], [6, 3, 9, 8, 7]]
TARGETS = [[4, 12, 3, 5], [7, 7], []]
FORMS = pytest.mark.parametrize("form", ["embedding", "output"])


@dataclass(frozen=True)
class Slot:
    batch: PaddedBatch
    sampling: ScheduledSampling | None = None
    dropout: Dropout = NO_DROPOUT
    watch: GradientWatch | None = None
    is_scored: bool = False

    @property
    def target_tokens(self) -> int:
        return int(self.batch.target_lengths.sum())


BATCH = padded_batch(SOURCES, TARGETS)


def sampling(form: str, probability: float) -> ScheduledSampling:
    return ScheduledSampling(form, probability, seed=5, step=7, slot=1)


def loss_of(model: Seq2Seq, slot: Slot, sampled: bool = True) -> Tensor:
    carried: dict[str, Tensor] = {}
    for stage in model.stages(sampled):
        carried = stage(slot, carried)
    return carried["loss"]


def gradients(model: Seq2Seq, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_probability_rises_over_its_ramp() -> None:
    config = ScheduledSamplingConfig(form="embedding", probability=0.5, ramp_steps=10)
    assert [probability_at(config, step) for step in (1, 5, 10, 11, 1000)] == [0.05, 0.25, 0.5, 0.5, 0.5]
    assert probability_at(replace(config, ramp_steps=0), 1) == 0.5
    assert probability_at(replace(config, form="none"), 10) == 0.0


def test_replacements_are_addressed_and_have_their_share() -> None:
    cpu = torch.device("cpu")
    first = sampling("embedding", 0.3).replaced(200, 50, cpu)
    assert torch.equal(first, sampling("output", 0.3).replaced(200, 50, cpu))
    assert not first[0].any()
    assert first[1:].double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 9950))
    other = replace(sampling("embedding", 0.3), step=8).replaced(200, 50, cpu)
    assert not torch.equal(first, other)
    # What is replaced at a small probability is replaced at every larger one.
    assert (sampling("embedding", 0.1).replaced(200, 50, cpu) <= first).all()


@FORMS
def test_without_probability_every_bit_is_that_of_ordinary_training(form: str) -> None:
    model = random_model(model_config(dropout=0.2)).float()
    dropout = AddressedDropout(1, 2, 3)
    ordinary = loss_of(model, Slot(BATCH, None, dropout), sampled=False)
    expected = gradients(model, ordinary)
    sampled = loss_of(model, Slot(BATCH, sampling(form, 0.0), dropout))
    assert torch.equal(ordinary, sampled)
    found = gradients(model, sampled)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


PLAIN = model_config(dropout=0.3, kind="lstm")
MEAN, DENSE = ResidualConfig(combiner="mean"), ResidualConfig(combiner="add", dense=True)
CONFIGS = {
    "plain": PLAIN,
    "residual with an input transform": replace(PLAIN, decoder=replace(PLAIN.decoder, residual=MEAN)),
    "dense residual": replace(PLAIN, decoder=replace(PLAIN.decoder, residual=DENSE)),
    "without attention": model_config(dropout=0.3, attention="none_state"),
    "concat input": replace(
        PLAIN, attention=replace(PLAIN.attention, name="none_input"), bridge=BridgeConfig(name="concat_input")
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@FORMS
def test_the_step_by_step_form_is_the_ordinary_one_where_nothing_is_replaced(form: str, name: str) -> None:
    model = random_model(CONFIGS[name])
    dropout = AddressedDropout(1, 2, 3)
    expected = gradients(model, loss_of(model, Slot(BATCH, None, dropout)))
    never = sampling(form, 1e-12)
    assert not never.replaced(5, 3, torch.device("cpu")).any()
    found = gradients(model, loss_of(model, Slot(BATCH, never, dropout)))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("attention", ["additive", "none_state"])
def test_always_drawn_is_the_slow_free_run(attention: str) -> None:
    """Each token is drawn from the distribution that the slow reference gives to what was drawn before."""
    model = random_model(model_config(attention=attention))
    always = sampling("embedding", 1.0)
    time, batch = BATCH.target_input.t().shape
    points = always.points(time, batch, torch.device("cpu")).numpy()
    expected = 0.0
    for sentence, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        fed: list[int] = []
        for t, token in enumerate([*target, 2]):
            scores = token_log_probabilities(model, source, fed)[t]
            expected -= scores[token]
            if t < len(target):
                cumulative = np.cumsum(np.exp(scores))
                fed.append(int(np.searchsorted(cumulative, points[t + 1, sentence] * cumulative[-1], side="right")))
        assert fed != target or not target
    assert loss_of(model, Slot(BATCH, always)).item() == pytest.approx(expected, abs=1e-10)


def test_always_the_output_is_the_decoder_fed_with_expected_embeddings() -> None:
    """Own inputs meet the dropout masks of their step, and are made of outputs under those of the step before."""
    model = random_model(replace(model_config(), dropout_embedding=0.3, dropout_mix=0.4))
    dropout, (time, batch) = AddressedDropout(1, 2, 3), BATCH.target_input.t().shape
    like = torch.zeros(0, dtype=torch.float64)
    input_mask = dropout.mask("target_embedding", (time, batch, 6), 0.3, like)
    mix_mask = dropout.mask("mix", (time, batch, 6), 0.4, like)
    assert input_mask is not None and mix_mask is not None
    encoded = model.encode(BATCH.source, BATCH.source_lengths, dropout)
    memory = Memory(encoded.keys, encoded.values, encoded.mask)
    state = model.start(encoded, 1)
    embedded = model.target_embedding(torch.ones(3, dtype=torch.int64))
    expected = torch.zeros((), dtype=torch.float64)
    for t in range(time):
        mix, state, _ = model.decoder.step((embedded * input_mask[t]).unsqueeze(1), state, memory)
        scores = model.output(mix.squeeze(1) * mix_mask[t]).log_softmax(-1)
        picked = scores.gather(1, BATCH.target_output[:, t : t + 1]).squeeze(1)
        expected = expected - picked[t < BATCH.target_lengths].sum()
        embedded = scores.exp() @ model.target_embedding.weight
    found = loss_of(model, Slot(BATCH, sampling("output", 1.0), dropout)).item()
    assert found == pytest.approx(expected.item(), abs=1e-10)


@FORMS
def test_gradients_are_those_of_finite_differences(form: str) -> None:
    """The draws stay where they are under so small a change, and the output's own path carries gradient."""
    model = random_model(model_config(dropout=0.2))
    slot = Slot(BATCH, sampling(form, 0.5), AddressedDropout(1, 2, 3))
    found = gradients(model, loss_of(model, slot))
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in found.items()}
    slope = sum((found[name] * direction[name]).sum() for name in found)
    width, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(direction[name], alpha=sign * width)
            values.append(loss_of(model, slot))
            for name, parameter in model.named_parameters():
                parameter.sub_(direction[name], alpha=sign * width)
    assert slope.item() == pytest.approx(((values[0] - values[1]) / (2 * width)).item(), rel=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 2, 9, 10, 37, 1000])
def test_draws_fall_where_probabilities_laid_side_by_side_say(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    probabilities = torch.rand((2000, vocabulary), generator=generator, dtype=torch.float64)
    probabilities[probabilities < 0.3] = 0.0
    probabilities[:, vocabulary // 2] += 0.1
    points = torch.rand(2000, generator=generator).double()
    found = draw(probabilities, points).tolist()
    for row, (token, point) in enumerate(zip(found, points.tolist(), strict=True)):
        ends = np.cumsum(probabilities[row].numpy())
        assert token == np.searchsorted(ends, point * ends[-1], side="right")
        assert probabilities[row, token] > 0


def test_a_draw_ends_with_the_last_token_and_skips_the_impossible() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]] * 4)
    points = torch.tensor([0.0, 0.49, 0.5, 1 - 2**-24], dtype=torch.float64)
    table = torch.eye(3)
    drawn = sampling("embedding", 1.0).own_input(logits, points, table).argmax(1)
    assert drawn.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["training.scheduled_sampling.probability=0.5"], "training.scheduled_sampling.form"),
        (["experiment=transformer", "training.scheduled_sampling.form=output"], "training.scheduled_sampling.form"),
        (["training.scheduled_sampling.probability=1.5"], "training.scheduled_sampling.probability"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], where: str) -> None:
    with pytest.raises(UserError) as error:
        compose(words)
    assert error.value.where == where


@FORMS
def test_under_bf16_losses_stay_near_those_of_float32(form: str) -> None:
    """Products are in bfloat16, distributions and draws are not."""
    model = random_model(model_config()).float()
    slot = Slot(BATCH, sampling(form, 1.0))
    with torch.no_grad():
        expected = loss_of(model, slot).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss_of(model, slot)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=0.05)
