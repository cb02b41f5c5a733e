"""The way back through a search: gather_tree, attention of the outputs, traces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transition_model import TransitionModel, batch_of

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS
from nmt.evaluation.decode import decode
from nmt.search.beam import beam_search
from nmt.search.sampling import sample
from nmt.search.trace import SearchTrace, Trace, gather_tree

SOURCES = [[3, 4, 3], [4], [3, 3, 3, 3, 4, 4], [4, 3], [3]] * 5
SEARCHES = {
    "google": SearchConfig(beam=4, n_best=4, max_length=30),
    "google, bound": SearchConfig(beam=4, n_best=2, stop="bound", length_penalty=1.0, max_length=30),
    "standard": SearchConfig(beam=4, n_best=3, finishing="standard", stop="patience", max_length=30),
    "coverage": SearchConfig(beam=3, coverage="summary", coverage_weight=0.3, max_length=30),
    "diverse": SearchConfig(beam=4, n_best=4, diverse_groups=2, diverse_strength=0.5, max_length=30),
    "sample": SearchConfig(method="sample", n_best=3, max_length=30),
}


def search_function(search: SearchConfig):  # type: ignore[no-untyped-def]
    return sample if search.method == "sample" else beam_search


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 4), slots=st.integers(1, 5), time=st.integers(1, 6))
def test_gather_tree_is_the_naive_walk(seed: int, batch: int, slots: int, time: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parents = torch.randint(slots, (time, batch, slots), generator=generator)
    ends = torch.randint(-1, time, (batch, 3), generator=generator)
    starts = torch.randint(slots, (batch, 3), generator=generator)
    path = gather_tree(parents, ends, starts)
    for row in range(batch):
        for column in range(3):
            expected, slot = [0] * time, int(starts[row, column])
            for step in range(int(ends[row, column]), -1, -1):
                expected[step] = slot
                slot = int(parents[step, row, slot])
            assert path[:, row, column].tolist() == expected


@pytest.mark.parametrize("name", SEARCHES)
def test_attention_is_what_each_token_was_chosen_with(name: str) -> None:
    """Many sentences, so that some leave the batch early."""
    model, search = TransitionModel(5, eos_bonus=0.5), SEARCHES[name]
    source, lengths = batch_of(SOURCES, width=11)
    found = search_function(search)(model, source, lengths, search, attention=True)
    plain = search_function(search)(model, source, lengths, search)
    assert found == plain
    assert all(hypothesis.attention is None for hypotheses in plain for hypothesis in hypotheses)
    first = model.encode(source, lengths).first.tolist()
    for sentence, state, hypotheses in zip(SOURCES, first, found, strict=True):
        for hypothesis in hypotheses:
            weights = hypothesis.attention
            assert weights is not None and weights.dtype == torch.float32
            assert weights.shape == (len(hypothesis.tokens), len(sentence) + 1)
            for position in range(len(hypothesis.tokens)):
                expected = model.attention(state, hypothesis.tokens[:position], len(sentence) + 1)
                assert torch.allclose(weights[position], expected, atol=1e-6)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_trace_leads_to_the_outputs(name: str) -> None:
    model, search = TransitionModel(5, eos_bonus=0.5), SEARCHES[name]
    trace = Trace()
    found = search_function(search)(model, *batch_of(SOURCES), search, trace=trace)
    width = {"standard": 8, "coverage": 3, "sample": 3}.get(name, 4)
    for hypotheses, own in zip(found, trace.sentences, strict=True):
        assert own.tokens.shape == own.parents.shape == own.scores.shape == own.log_probabilities.shape
        assert own.tokens.shape[1] == width
        assert (own.parents >= 0).all() and (own.parents < search.beam).all()
        assert len(own.outputs) == len(hypotheses)
        for (step, slot), hypothesis in zip(own.outputs, hypotheses, strict=True):
            path = own.path(step, slot)
            assert path[-1] == slot and len(path) == step + 1
            tokens = [int(row[place]) for row, place in zip(own.tokens, path, strict=False)]
            assert tuple(token for token in tokens if token != EOS) == hypothesis.tokens
            assert own.scores[step, slot] == hypothesis.score
            assert own.log_probabilities[step, slot] == hypothesis.log_probability
            totals = [row[place] for row, place in zip(own.log_probabilities, path, strict=False)]
            assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_trace_is_the_same_in_every_batch(name: str) -> None:
    model, search = TransitionModel(5, eos_bonus=0.5), SEARCHES[name]
    together, alone = Trace(), Trace()
    search_function(search)(model, *batch_of(SOURCES, width=11), search, trace=together)
    for sentence in SOURCES[:5]:
        search_function(search)(model, *batch_of([sentence], width=11), search, trace=alone)
    for one, other in zip(together.sentences[:5], alone.sentences, strict=True):
        assert one.outputs == other.outputs
        for array in ("tokens", "parents", "scores", "log_probabilities"):
            assert np.array_equal(getattr(one, array), getattr(other, array)), array


def test_decode_hands_on_attention_prefixes_and_traces() -> None:
    model, search = TransitionModel(5), SearchConfig(beam=3, max_length=9, batch_size=2)
    sentences = [np.array(tokens, dtype=np.int32) for tokens in ([3, 4], [], [4], [3] * 12)]
    prefixes = [np.array(tokens, dtype=np.int32) for tokens in ([4, 4], [3], [], [1])]
    traces: dict[int, SearchTrace] = {}
    found = decode(model, sentences, search, prefixes=prefixes, attention=True, traces=traces)
    assert [hypotheses[0].tokens[: len(p)] for hypotheses, p in zip(found, prefixes, strict=True)] == [
        (4, 4),
        (),  # an empty sentence stays empty
        (),
        (1,),
    ]
    assert sorted(traces) == [0, 2, 3]
    for sentence, (best, *_) in zip(sentences, found, strict=True):
        assert best.attention is not None and best.attention.shape == (len(best.tokens), len(sentence) + 1)
