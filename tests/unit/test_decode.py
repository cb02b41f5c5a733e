from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoding_examples import VOCABULARY, random_model, random_sentences
from transition_model import TransitionModel, batch_of

from nmt.config.schema import LossConfig, SearchConfig
from nmt.data.vocabulary import EOS, SOS
from nmt.evaluation.decode import decode, teacher_forced
from nmt.models.seq2seq import Seq2Seq
from nmt.search.beam import Hypothesis, beam_search

MODELS = {
    "gru, multiplicative": {},
    "lstm, additive": {"cell": "lstm", "attention": "additive", "bridge": "projection"},
    "gru, none_state": {"attention": "none_state", "bridge": "projection"},
}


@pytest.mark.parametrize(
    ("kind", "beam"),
    [
        ("gru, multiplicative", 1),
        ("lstm, additive", 4),
        *(
            pytest.param(kind, beam, marks=pytest.mark.exhaustive)
            for kind, beam in product(MODELS, (1, 4))
            if (kind, beam) not in (("gru, multiplicative", 1), ("lstm, additive", 4))
        ),
    ],
)
def test_tokens_and_scores_are_the_same_for_every_batch_size(kind: str, beam: int) -> None:
    model, sentences = random_model(**MODELS[kind]), random_sentences(40)
    found = [
        decode(model, sentences, SearchConfig(beam=beam, n_best=beam, max_length=20, length_penalty=1.0, batch_size=b))
        for b in (1, 7, 100)
    ]
    assert found[0] == found[1] == found[2]
    best = {hypotheses[0].tokens for hypotheses in found[0]}
    assert len(best) > 10, "outputs that hardly depend on the source would prove nothing"


def test_hypotheses_stand_in_the_order_of_the_sentences() -> None:
    model, search = TransitionModel(2), SearchConfig(beam=3, n_best=2, max_length=10, batch_size=4)
    sentences = random_sentences(30, longest=20)
    found = decode(model, sentences, search)
    for sentence, hypotheses in zip(sentences, found, strict=True):
        assert [hypotheses] == beam_search(model, *batch_of([sentence.tolist()]), search)


def test_padding_never_reaches_beyond_the_length_class() -> None:
    widths: list[tuple[int, int]] = []

    class Watching(TransitionModel):
        def encode(self, source: torch.Tensor, lengths: torch.Tensor):  # type: ignore[no-untyped-def]
            widths.append((source.shape[1], int(lengths.min())))
            return super().encode(source, lengths)

    lengths = [1, 7, 8, 15, 16, 23, 40]
    decode(Watching(2), [np.full(n, 3, dtype=np.int32) for n in lengths], SearchConfig(beam=1, max_length=2))
    assert sorted(widths) == [(8, 2), (16, 9), (24, 17), (48, 41)]


def test_an_empty_sentence_has_an_empty_hypothesis_without_the_model() -> None:
    model = TransitionModel(2)
    nothing = np.zeros(0, dtype=np.int32)
    assert decode(model, [nothing, nothing], SearchConfig(beam=2)) == [[Hypothesis((), 0.0, 0.0)]] * 2
    assert model.steps == 0
    found = decode(model, [nothing, np.array([3, 4])], SearchConfig(beam=2, max_length=9))
    assert found[0] == [Hypothesis((), 0.0, 0.0)]
    assert [found[1]] == beam_search(model, *batch_of([[3, 4]]), SearchConfig(beam=2, max_length=9))
    assert decode(model, [], SearchConfig()) == []


def test_progress_counts_every_sentence() -> None:
    calls: list[tuple[int, int]] = []
    sentences = [np.zeros(0, dtype=np.int32), *random_sentences(9)]
    decode(
        TransitionModel(2),
        sentences,
        SearchConfig(beam=1, max_length=4, batch_size=2),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[0] == (1, 10)
    assert calls[-1] == (10, 10)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("kind", MODELS)
def test_teacher_forced_figures_are_means_over_target_tokens(kind: str) -> None:
    model = random_model(**MODELS[kind])
    encoded = SimpleNamespace(source=random_sentences(40, seed=1), target=random_sentences(40, seed=2))
    values = {teacher_forced(model, encoded, batch_size=size) for size in (1, 7, 100)}
    assert len(values) == 1

    losses, right = [], 0
    for source, target in zip(encoded.source, encoded.target, strict=True):
        with torch.inference_mode():
            memory = model.encode(*batch_of([source.tolist()]))
            state, previous = model.start(memory, 1), SOS
            for token in [*target.tolist(), EOS]:
                logits, state, _ = model.step(torch.tensor([[previous]]), state, memory)
                losses.append(-float(torch.log_softmax(logits[0, 0], dim=0)[token]))
                right += int(logits[0, 0].argmax()) == token
                previous = token
    found = values.pop()
    assert found.log_perplexity == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert 0 < right < len(losses)
    assert found.token_accuracy == 100 * right / len(losses)


def test_chunks_of_the_vocabulary_change_no_choice() -> None:
    whole = random_model()
    chunked = Seq2Seq(whole.config, VOCABULARY, VOCABULARY, LossConfig(vocab_chunks=3))
    chunked.load_state_dict(whole.state_dict())
    encoded = SimpleNamespace(source=random_sentences(9, seed=1), target=random_sentences(9, seed=2))
    one, other = teacher_forced(whole, encoded), teacher_forced(chunked, encoded)
    assert one.log_perplexity == pytest.approx(other.log_perplexity, rel=1e-6)
    assert one.token_accuracy == other.token_accuracy


def test_teacher_forced_figures_of_the_first_sentences_only() -> None:
    model = random_model()
    source, target = random_sentences(20, seed=1), random_sentences(20, seed=2)
    whole = SimpleNamespace(source=source, target=target)
    first = SimpleNamespace(source=source[:5], target=target[:5])
    assert teacher_forced(model, whole, limit=5) == teacher_forced(model, first)
    with pytest.raises(ValueError, match="no sentence"):
        teacher_forced(model, whole, limit=0)


def test_log_perplexity_of_a_uniform_model_is_the_logarithm_of_the_vocabulary() -> None:
    model = random_model()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
    encoded = SimpleNamespace(source=random_sentences(3), target=random_sentences(3, seed=5))
    found = teacher_forced(model, encoded)
    assert found.log_perplexity == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert found.token_accuracy == 0  # among equals the first is the choice, and no reference holds UNK


def test_log_perplexity_of_a_broken_model_is_not_a_number() -> None:
    model = random_model()
    with torch.no_grad():
        model.output.bias.fill_(math.nan)
    encoded = SimpleNamespace(source=random_sentences(3), target=random_sentences(3))
    assert math.isnan(teacher_forced(model, encoded).log_perplexity)
    assert all(len(hypotheses) == 1 for hypotheses in decode(model, encoded.source, SearchConfig(beam=3, max_length=4)))
