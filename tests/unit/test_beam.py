from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transition_model import TransitionModel, batch_of

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS, SOS
from nmt.search.beam import STABLE_ROWS, Hypothesis, beam_search, length_limit
from nmt.search.scores import length_penalty

VOCABULARY = 5
SOURCES = [[3, 4, 3], [4], [3, 3, 3, 3, 4, 4], [4, 3], [3]]


def close(found: list[Hypothesis], expected: list[Hypothesis]) -> bool:
    return [h.tokens for h in found] == [h.tokens for h in expected] and all(
        math.isclose(one.score, other.score, abs_tol=1e-5)
        and math.isclose(one.log_probability, other.log_probability, abs_tol=1e-5)
        for one, other in zip(found, expected, strict=True)
    )


def first_state(model: TransitionModel, sentence: list[int]) -> int:
    return int(model.encode(*batch_of([sentence])).first)


def every_output(model: TransitionModel, sentence: list[int], longest: int, alpha: float) -> list[Hypothesis]:
    """All outputs: each sequence of up to `longest` tokens with EOS, and those of full length without; best first."""
    first, outputs = first_state(model, sentence), []
    others = [token for token in range(VOCABULARY) if token != EOS]
    for length in range(longest + 1):
        for tokens in itertools.product(others, repeat=length):
            total = sum(float(model.log_probabilities(first, tokens[:i])[tokens[i]]) for i in range(length))
            if length < longest:
                total += float(model.log_probabilities(first, tokens)[EOS])
            outputs.append(Hypothesis(tokens, total / ((5 + length) / 6) ** alpha, total))
    return sorted(outputs, key=lambda hypothesis: -hypothesis.score)


def plain_beam_search(model: TransitionModel, sentence: list[int], search: SearchConfig) -> list[Hypothesis]:
    """One sentence, one hypothesis at a time, straight from the definition."""
    first, alpha = first_state(model, sentence), search.length_penalty
    beam: list[tuple[tuple[int, ...], float, bool]] = [((), 0.0, False)]
    for _ in range(length_limit(len(sentence), search)):
        candidates = []
        for slot, (tokens, total, finished) in enumerate(beam):
            if finished:
                candidates.append((total / length_penalty(float(len(tokens)), alpha), -slot, -EOS, tokens, total, True))
                continue
            for token, gain in enumerate(model.log_probabilities(first, tokens).double().tolist()):
                longer = tokens if token == EOS else (*tokens, token)
                score = (total + gain) / length_penalty(float(len(longer)), alpha)
                candidates.append((score, -slot, -token, longer, total + gain, token == EOS))
        beam = [candidate[3:] for candidate in sorted(candidates, reverse=True)[: search.beam]]
        if all(finished for *_, finished in beam):
            break
    scored = [Hypothesis(t, total / length_penalty(float(len(t)), alpha), total) for t, total, _ in beam]
    return scored[: search.n_best]


def test_length_penalty_is_that_of_the_paper() -> None:
    assert length_penalty(1.0, 0.6) == 1.0
    assert length_penalty(25.0, 1.0) == 5.0
    assert length_penalty(7.0, 2.0) == 4.0
    assert torch.equal(length_penalty(torch.tensor([1.0, 13.0]), 1.0), torch.tensor([1.0, 3.0]))
    assert length_penalty(40.0, 0.0) == 1.0


def test_length_limit_is_a_function_of_the_sentence() -> None:
    assert length_limit(7, SearchConfig(max_length=100)) == 100
    assert length_limit(7, SearchConfig(max_length=100, max_length_ratio=1.5)) == 21
    assert length_limit(70, SearchConfig(max_length=100, max_length_ratio=1.5)) == 100
    assert length_limit(0, SearchConfig(max_length=5, max_length_ratio=1.5)) == 5


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, -0.5])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_beam_wide_enough_finds_the_best_of_all_outputs(seed: int, alpha: float) -> None:
    model = TransitionModel(seed, VOCABULARY)
    longest = 4
    width = sum((VOCABULARY - 1) ** length for length in range(longest + 1))
    search = SearchConfig(beam=width, n_best=width, max_length=longest, length_penalty=alpha)
    for sentence, found in zip(SOURCES, beam_search(model, *batch_of(SOURCES), search), strict=True):
        expected = every_output(model, sentence, longest, alpha)
        assert len(found) == len(expected) == width
        assert len({hypothesis.tokens for hypothesis in found}) == width
        by_tokens = {hypothesis.tokens: hypothesis for hypothesis in expected}
        assert close(found, [by_tokens[hypothesis.tokens] for hypothesis in found])
        assert close(found[:10], expected[:10])
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beam=st.integers(1, 7),
    alpha=st.sampled_from([0.0, 0.6, 1.0, -0.4]),
    longest=st.integers(1, 9),
    ratio=st.sampled_from([0.0, 0.5]),
    vocabulary=st.integers(4, 9),
    eos_bonus=st.sampled_from([-3.0, 0.0, 3.0]),
)
def test_a_narrow_beam_is_the_plain_search(
    seed: int, beam: int, alpha: float, longest: int, ratio: float, vocabulary: int, eos_bonus: float
) -> None:
    model = TransitionModel(seed, vocabulary, eos_bonus=eos_bonus)
    search = SearchConfig(
        beam=beam, n_best=beam, max_length=longest, max_length_ratio=ratio, length_penalty=alpha, batch_size=3
    )
    for sentence, found in zip(SOURCES, beam_search(model, *batch_of(SOURCES), search), strict=True):
        assert close(found, plain_beam_search(model, sentence, search))


def test_greedy_takes_the_likeliest_token_each_time() -> None:
    model = TransitionModel(3, VOCABULARY)
    search = SearchConfig(beam=1, max_length=12)
    for sentence, (found,) in zip(SOURCES, beam_search(model, *batch_of(SOURCES), search), strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 12:
            token = int(model.log_probabilities(first_state(model, sentence), tokens).argmax())
            if token == EOS:
                break
            tokens = (*tokens, token)
        assert found.tokens == tokens


def test_equal_scores_go_to_the_lower_slot_then_the_lower_token() -> None:
    model = TransitionModel(1, vocabulary=6)
    model.table.zero_()
    uniform = -math.log(6)
    search = SearchConfig(beam=3, n_best=3, max_length=2)
    (found,) = beam_search(model, *batch_of([[3]]), search)
    # first step: tokens 0, 1 and 2 = EOS; the finished one costs nothing more and leads, then slot 0 goes on
    assert [hypothesis.tokens for hypothesis in found] == [(), (0, 0), (0, 1)]
    assert [h.log_probability for h in found] == pytest.approx([uniform, 2 * uniform, 2 * uniform])


def test_a_tie_across_the_cut_of_the_candidates_goes_to_the_lower_token() -> None:
    model = TransitionModel(1, vocabulary=300)
    model.table.zero_()
    model.table[:, EOS] = -9.0
    (found,) = beam_search(model, *batch_of([[3]]), SearchConfig(beam=4, n_best=4, max_length=1))
    assert [hypothesis.tokens for hypothesis in found] == [(0,), (1,), (3,), (4,)]


def test_the_limit_ends_hypotheses_without_eos() -> None:
    model = TransitionModel(1, VOCABULARY, eos_bonus=-1e9)
    sources, search = [[3], [3] * 10], SearchConfig(beam=2, max_length=30, max_length_ratio=0.5)
    short, long = beam_search(model, *batch_of(sources), search)
    assert (len(short[0].tokens), len(long[0].tokens)) == (11, 15)


def test_a_finished_hypothesis_can_be_overtaken_and_can_stay() -> None:
    """Length normalisation lets a longer hypothesis beat one that ended earlier; without it the short one stays."""
    model = TransitionModel(1, vocabulary=4)
    model.table[:] = torch.log(torch.tensor([0.0001, 0.0001, 0.4, 0.5998]))
    sentence = batch_of([[3]])
    without = SearchConfig(beam=2, n_best=2, max_length=20)
    (plain,) = beam_search(model, *sentence, without)
    (normalised,) = beam_search(model, *sentence, replace(without, length_penalty=2.0))
    assert plain[0].tokens == ()
    assert normalised[0].tokens == (3,) * 20


def test_the_search_stops_when_every_hypothesis_ended() -> None:
    model = TransitionModel(5, VOCABULARY, eos_bonus=50.0)
    beam_search(model, *batch_of(SOURCES), SearchConfig(beam=1, max_length=100))
    assert model.steps == 1


def test_finished_sentences_leave_the_batch_down_to_the_stable_rows() -> None:
    model = TransitionModel(5, VOCABULARY, eos_bonus=0.5)
    sources = [[3 + (number >> bit) % 2 for bit in range(6)] for number in range(60)]
    search = SearchConfig(beam=2, n_best=2, max_length=60)
    together = beam_search(model, *batch_of(sources), search)
    assert model.rows[0] == 120
    assert min(model.rows) >= STABLE_ROWS
    assert model.rows[-1] < 60
    for sentence, found in zip(sources, together, strict=True):
        assert beam_search(model, *batch_of([sentence]), search) == [found]


def test_a_single_sentence_is_padded_to_stable_rows() -> None:
    for beam in (1, 3, 16, 20):
        model = TransitionModel(5, VOCABULARY)
        assert len(beam_search(model, *batch_of([[3]]), SearchConfig(beam=beam, max_length=9))) == 1
        assert min(model.rows) >= STABLE_ROWS
        assert max(model.rows) < max(2 * STABLE_ROWS, beam + 1)


def test_n_best_is_no_more_than_there_are() -> None:
    model = TransitionModel(5, vocabulary=4)
    (found,) = beam_search(model, *batch_of([[3]]), SearchConfig(beam=10, n_best=10, max_length=1))
    assert sorted(hypothesis.tokens for hypothesis in found) == [(), (0,), (SOS,), (3,)]
