"""Sampling: the distribution that outputs come from, and where random numbers come from."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transition_model import TransitionModel, batch_of

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS
from nmt.evaluation.decode import decode
from nmt.search.sampling import draw, sample, uniform_numbers

INF = math.inf


def exact(model: TransitionModel, sentence: list[int], search: SearchConfig) -> dict[tuple[int, ...], float]:
    """The probability of each output, from the definitions."""
    first = int(model.encode(*batch_of([sentence])).first)
    found: dict[tuple[int, ...], float] = {}

    def next_tokens(tokens: tuple[int, ...]) -> dict[int, float]:
        logits = model.log_probabilities(first, tokens).double() / search.temperature
        ranked = sorted(enumerate(logits.exp().tolist()), key=lambda pair: -pair[1])[: search.top_k or None]
        total, kept, mass = sum(value for _, value in ranked), {}, 0.0
        for token, value in ranked:
            if mass < search.top_p:
                kept[token] = value / total
            mass += value / total
        return {token: value / sum(kept.values()) for token, value in kept.items()}

    def grow(tokens: tuple[int, ...], probability: float) -> None:
        for token, value in next_tokens(tokens).items():
            longer = tokens if token == EOS else (*tokens, token)
            if token == EOS or len(longer) == search.max_length:
                found[longer] = found.get(longer, 0.0) + probability * value
            else:
                grow(longer, probability * value)

    grow((), 1.0)
    return found


@pytest.mark.parametrize(
    "keys",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 2.0, "top_k": 4, "top_p": 0.9}],
    ids=str,
)
def test_outputs_come_as_often_as_their_probability_says(keys: dict) -> None:  # type: ignore[type-arg]
    model, draws = TransitionModel(3, 5), 3000
    search = SearchConfig(method="sample", n_best=draws, max_length=2, seed=5, **keys)
    expected = exact(model, [3, 4], search)
    assert math.isclose(sum(expected.values()), 1.0)
    (found,) = sample(model, *batch_of([[3, 4]]), search)
    counts = Counter(hypothesis.tokens for hypothesis in found)
    assert counts.keys() <= expected.keys()
    common = [tokens for tokens, probability in expected.items() if probability * draws >= 5]
    observed = [counts[tokens] for tokens in common]
    rest = draws - sum(observed)
    probabilities = [expected[tokens] for tokens in common]
    if rest or not math.isclose(sum(probabilities), 1.0):
        observed, probabilities = [*observed, rest], [*probabilities, 1.0 - sum(probabilities)]
    assert chisquare(observed, [probability * draws for probability in probabilities]).pvalue > 0.001


def test_log_probabilities_are_the_models_own() -> None:
    model = TransitionModel(3, 5)
    search = SearchConfig(method="sample", n_best=20, max_length=6, temperature=3.0, top_k=4, length_penalty=1.0)
    first = int(model.encode(*batch_of([[3, 4]])).first)
    (found,) = sample(model, *batch_of([[3, 4]]), search)
    for hypothesis in found:
        tokens = hypothesis.tokens if len(hypothesis.tokens) == 6 else (*hypothesis.tokens, EOS)
        total = sum(float(model.log_probabilities(first, tokens[:i])[tokens[i]]) for i in range(len(tokens)))
        assert hypothesis.log_probability == pytest.approx(total, abs=1e-5)
        assert hypothesis.score == pytest.approx(total * 6 / (5 + len(hypothesis.tokens)), abs=1e-5)


def test_a_draw_by_hand() -> None:
    distribution = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2]).log().expand(1, 7, -1)
    uniform = torch.tensor([[0.0, 0.0999, 0.1001, 0.499, 0.501, 0.799, 1.0 - 2**-53]], dtype=torch.float64)
    assert draw(distribution, uniform, SearchConfig()).tolist() == [[0, 0, 1, 1, 3, 3, 4]]
    # by probability: 1 (.4), 3 (.3), 4 (.2), 0 (.1)
    assert draw(distribution, uniform, SearchConfig(top_p=0.69)).tolist() == [[1, 1, 1, 1, 1, 3, 3]]
    assert draw(distribution, uniform, SearchConfig(top_p=0.71)).tolist() == [[1, 1, 1, 3, 3, 4, 4]]
    # in the order of the tokens: 1 (4/9), 3 (3/9), 4 (2/9)
    assert draw(distribution, uniform, SearchConfig(top_k=3)).tolist() == [[1, 1, 1, 3, 3, 4, 4]]
    assert draw(distribution, uniform, SearchConfig(top_k=1)).tolist() == [[1] * 7]
    assert draw(distribution, uniform, SearchConfig(temperature=0.01))[:, 1:6].tolist() == [[1] * 5]


def test_random_numbers_are_addressed_by_seed_sentence_sample_and_step() -> None:
    numbers = uniform_numbers([[3, 4], [4, 3], [3, 4]], seed=1, samples=3, steps=50)
    assert torch.equal(numbers[0], numbers[2])
    assert torch.equal(uniform_numbers([[4, 3]], seed=1, samples=1, steps=7)[0, 0], numbers[1, 0, :7])
    assert len(np.unique(numbers[:2].numpy())) == 300
    assert not torch.equal(uniform_numbers([[3, 4]], seed=2, samples=3, steps=50)[0], numbers[0])
    assert not torch.equal(uniform_numbers([[3, 4, 3]], seed=1, samples=3, steps=50)[0], numbers[0])


def test_a_sample_depends_on_its_sentence_number_and_seed_only() -> None:
    model = TransitionModel(3, 9)
    sentences = [np.array([3 + (number >> bit) % 2 for bit in range(5)], dtype=np.int32) for number in range(32)]
    search = SearchConfig(method="sample", n_best=4, max_length=12)
    found = [decode(model, sentences, replace(search, batch_size=size)) for size in (1, 7, 64)]
    assert found[0] == found[1] == found[2]
    assert decode(model, sentences[3:5], replace(search, n_best=2)) == [own[:2] for own in found[0][3:5]]
    assert decode(model, sentences, replace(search, seed=2)) != found[0]
    assert len({hypotheses[0].tokens for hypotheses in found[0]}) > 25


def test_constraints_hold_for_samples() -> None:
    search = SearchConfig(
        method="sample", n_best=50, block_ngrams=2, block_unknown=True, min_length=3, max_length=9, temperature=2.0
    )
    (found,) = sample(TransitionModel(3, 9), *batch_of([[3, 4]]), search, prefixes=[(5, 6)])
    for hypothesis in found:
        tokens = hypothesis.tokens
        assert tokens[:2] == (5, 6) and 3 <= len(tokens) <= 9 and 0 not in tokens
        pairs = list(pairwise(tokens))
        assert len(set(pairs)) == len(pairs)
        assert hypothesis.log_probability > -INF
