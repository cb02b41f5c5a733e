"""Searches with real models: ensembles, scores of given pairs, and the same bits for every batch size and padding."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from decoding_examples import random_model, random_sentences
from transition_model import TransitionModel, batch_of

from nmt.config.schema import SearchConfig
from nmt.evaluation.decode import decode, score_pairs
from nmt.search.beam import beam_search
from nmt.search.ensemble import Ensemble
from nmt.search.trace import SearchTrace

OPTIONS = {
    "standard, bound": SearchConfig(beam=4, n_best=4, finishing="standard", stop="bound", length_penalty=0.6),
    "standard, patience": SearchConfig(
        beam=3, finishing="standard", stop="patience", patience=2.0, penalty="power", length_penalty=0.7
    ),
    "google, bound, average": SearchConfig(beam=4, n_best=2, stop="bound", penalty="average", penalty_counts_eos=True),
    "coverage wu": SearchConfig(beam=4, n_best=4, coverage="wu", coverage_weight=0.3, length_penalty=0.2),
    "coverage summary": SearchConfig(
        beam=4, finishing="standard", stop="bound", coverage="summary", coverage_weight=2.0
    ),
    "constraints": SearchConfig(beam=3, block_ngrams=2, block_unknown=True, min_length_ratio=0.5, stop="first_n"),
    "diverse": SearchConfig(beam=4, n_best=4, diverse_groups=2, diverse_strength=0.5),
    "sample": SearchConfig(method="sample", n_best=3, top_p=0.9, temperature=1.5),
    "sample, top k": SearchConfig(method="sample", n_best=2, top_k=10),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_the_same_bits_for_every_batch_size(name: str) -> None:
    model, sentences = random_model(4), random_sentences(14)
    search = replace(OPTIONS[name], max_length=8)
    prefixes = [sentence[:1] if number % 3 == 0 else sentence[:0] for number, sentence in enumerate(sentences)]
    found, traces = [], []
    for size in (1, 100):
        trace: dict[int, SearchTrace] = {}
        own = replace(search, batch_size=size)
        found.append(decode(model, sentences, own, prefixes=prefixes, attention=True, traces=trace))
        traces.append(trace)
    assert found[0] == found[1]
    assert len({hypotheses[0].tokens for hypotheses in found[0]}) > 5
    assert len({len(hypotheses[0].tokens) for hypotheses in found[0]}) > 1
    for number, pair in enumerate(zip(*found, strict=True)):
        for one, other in zip(*pair, strict=True):
            assert one.attention is not None and other.attention is not None
            assert torch.equal(one.attention, other.attention)
        for array in ("tokens", "parents", "scores", "log_probabilities"):
            assert np.array_equal(getattr(traces[0][number], array), getattr(traces[1][number], array))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("attention", ["multiplicative", "additive"])
def test_many_sentences_have_the_same_bits_for_every_batch_size(name: str, attention: str) -> None:
    model, sentences = random_model(9, attention), random_sentences(110, longest=30)
    found = [
        decode(model, sentences, replace(OPTIONS[name], max_length=20, batch_size=size), attention=True)
        for size in (1, 7, 100)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", OPTIONS)
def test_padding_changes_nothing_but_rounding(name: str) -> None:
    search = replace(OPTIONS[name], max_length=9)
    if search.method == "sample":
        return  # a draw may turn on the last bit
    model, sentences = TransitionModel(5, eos_bonus=0.5), [[3, 4, 3], [4], [3, 3, 3, 3, 4, 4]]
    wide = beam_search(model, *batch_of(sentences, width=23), search)
    for sentence, expected in zip(sentences, wide, strict=True):
        (found,) = beam_search(model, *batch_of([sentence]), search)
        assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-5)


@pytest.mark.parametrize("combination", ["log_prob", "prob"])
def test_an_ensemble_of_one_is_its_member_to_the_last_bit(combination: str) -> None:
    model, sentences = random_model(4), random_sentences(12)
    search = SearchConfig(beam=4, n_best=4, max_length=9, length_penalty=1.0)
    alone = decode(model, sentences, search, attention=True)
    together = decode(Ensemble([model], combination), sentences, search, attention=True)
    assert alone == together
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0].attention, other[0].attention)  # type: ignore[arg-type]
    targets = random_sentences(12, seed=3)
    assert score_pairs(model, sentences, targets) == score_pairs(Ensemble([model], combination), sentences, targets)


@pytest.mark.parametrize("combination", ["log_prob", "prob"])
def test_an_ensemble_averages_distributions_and_attention(combination: str) -> None:
    members = [TransitionModel(1), TransitionModel(2, states=53)]
    source, lengths = batch_of([[3, 4], [4]])
    ensemble = Ensemble(members, combination)
    encoded = ensemble.encode(source, lengths)
    tokens = torch.tensor([[1, 3], [4, 1]])
    logits, state, weights = ensemble.step(tokens, ensemble.start(encoded, 2), encoded)
    single = [member.step(tokens, member.start(own, 2), own) for member, own in zip(members, encoded, strict=True)]
    one, other = (torch.softmax(own.double(), dim=-1) for own, _, _ in single)
    mean = (one + other) / 2 if combination == "prob" else (one * other).sqrt()
    expected = mean / mean.sum(dim=-1, keepdim=True)
    assert torch.allclose(torch.softmax(logits.double(), dim=-1), expected, atol=1e-6)
    assert weights is not None and torch.allclose(weights, (single[0][2] + single[1][2]) / 2)
    assert torch.equal(state[1][0], single[1][1][0])


def test_members_without_attention_do_not_count_in_its_mean() -> None:
    class Blind(TransitionModel):
        def step(self, tokens, state, encoded):  # type: ignore[no-untyped-def]
            logits, after, weights = super().step(tokens, state, encoded)
            return logits, after, torch.zeros_like(weights)

    seeing, (source, lengths) = [TransitionModel(1), TransitionModel(2)], batch_of([[3, 4], [4]])
    tokens = torch.tensor([[1, 3], [4, 1]])

    def weights(*members: TransitionModel) -> torch.Tensor | None:
        ensemble = Ensemble(members, attends=[not isinstance(member, Blind) for member in members])
        encoded = ensemble.encode(source, lengths)
        return ensemble.step(tokens, ensemble.start(encoded, 2), encoded)[2]

    expected = weights(*seeing)
    assert expected is not None
    assert torch.equal(weights(seeing[0], Blind(3), seeing[1]), expected)  # type: ignore[arg-type]
    assert torch.equal(weights(Blind(3), seeing[0]), weights(seeing[0]))  # type: ignore[arg-type]
    assert weights(Blind(3), Blind(4)) is None


@pytest.mark.parametrize("combination", ["log_prob", "prob"])
def test_an_ensemble_decodes_and_scores_the_same_for_every_batch_size(combination: str) -> None:
    ensemble, sentences = Ensemble([random_model(4), random_model(7, "additive")], combination), random_sentences(9)
    search = SearchConfig(beam=3, max_length=8, length_penalty=1.0)
    found = [decode(ensemble, sentences, replace(search, batch_size=size)) for size in (1, 100)]
    assert found[0] == found[1]
    targets = [np.array(hypotheses[0].tokens, dtype=np.int32) for hypotheses in found[0]]
    scores = [score_pairs(ensemble, sentences, targets, batch_size=size) for size in (1, 100)]
    assert scores[0] == scores[1]
    for (best,), score in zip(found[0], scores[0], strict=True):
        if len(best.tokens) < 8:
            assert score.log_probability == pytest.approx(best.log_probability, abs=1e-4)


def test_an_ensemble_needs_members_and_a_known_combination() -> None:
    with pytest.raises(ValueError, match="no models"):
        Ensemble([])
    with pytest.raises(ValueError, match="geometric"):
        Ensemble([TransitionModel(1)], "geometric")


def test_scores_of_given_pairs_are_those_of_the_search() -> None:
    model, sentences = random_model(4), random_sentences(20)
    found = decode(model, sentences, SearchConfig(beam=3, max_length=12))
    targets = [np.array(hypotheses[0].tokens, dtype=np.int32) for hypotheses in found]
    scores = [score_pairs(model, sentences, targets, batch_size=size) for size in (1, 7, 100)]
    assert scores[0] == scores[1] == scores[2]
    ended = 0
    for (best, *_), score in zip(found, scores[0], strict=True):
        assert len(score.tokens) == len(best.tokens) + 1
        assert score.log_probability == math.fsum(score.tokens)
        if len(best.tokens) < 12:
            ended += 1
            assert score.log_probability == pytest.approx(best.log_probability, abs=1e-4)
    assert ended > 3


def test_pairs_with_empty_sides_are_scored_in_their_place() -> None:
    model, calls = random_model(4), []
    empty = np.zeros(0, dtype=np.int32)
    sentences, targets = [empty, *random_sentences(3), empty], [*random_sentences(4, seed=2), empty]
    found = score_pairs(model, sentences, targets, progress=lambda done, total: calls.append((done, total)))
    assert [len(score.tokens) for score in found] == [len(target) + 1 for target in targets]
    assert all(math.isfinite(score.log_probability) and score.log_probability < 0 for score in found)
    assert calls[0] == (0, 5) and calls[-1] == (5, 5)
    assert score_pairs(model, [], []) == []


def test_a_model_of_no_numbers_still_has_outputs() -> None:
    model = random_model(4)
    with torch.no_grad():
        model.output.bias.fill_(math.nan)
    for search in OPTIONS.values():
        found = decode(model, random_sentences(3), replace(search, max_length=4))
        assert all(hypotheses for hypotheses in found)
