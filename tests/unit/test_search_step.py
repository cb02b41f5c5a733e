"""The step of a search: the kernels' against the decoder's own definition, and in which precision it is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoding_examples import VOCABULARY, random_model, random_sentences

from nmt.config import compose
from nmt.config.schema import SearchConfig
from nmt.evaluation.decode import decode
from nmt.models.attention import Memory
from nmt.models.decoding import RowsOfSeq2Seq
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.seq2seq import beside
from nmt.training.workload import precision_context

SOURCE = torch.tensor([[5, 9, 30, 2], [7, 2, 2, 2], [11, 12, 2, 2]])
LENGTHS = torch.tensor([4, 2, 3])


@pytest.mark.parametrize("steps", [0, 10**6], ids=["projected at each step", "looked up"])
@pytest.mark.parametrize("bridge", ["zero", "concat_input"])
@pytest.mark.parametrize("attention", ["multiplicative", "additive", "none_state"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "vanilla"])
def test_rows_step_as_the_decoder_defines_it(cell: str, attention: str, bridge: str, steps: int) -> None:
    model, generator = random_model(4, attention, cell, bridge), torch.Generator().manual_seed(1)
    searched = RowsOfSeq2Seq(model, steps)
    with torch.no_grad():
        encoded = searched.encode(SOURCE, LENGTHS)
        memory = Memory(encoded.keys, encoded.values, encoded.mask)
        rows = HypothesisRows(3, 2, torch.tensor([0, 1, 2, 5]))  # not every place of the grid is taken
        state = tuple(torch.randn(4, part.shape[1], generator=generator) for part in searched.start(encoded))
        grid = tuple(map(rows.spread, state))
        for _ in range(3):
            tokens = torch.randint(3, VOCABULARY, (4,), generator=generator)
            outputs, state, weights = searched.step(tokens, state, encoded, rows)
            embedded = beside(model.target_embedding(rows.spread(tokens)), encoded.appended.unsqueeze(1))
            expected, grid, expected_weights = model.decoder.step(embedded, grid, memory)
            assert torch.allclose(outputs, rows.pick(expected), atol=1e-5)
            assert torch.allclose(rows.pick(weights), rows.pick(expected_weights), atol=1e-5)
            for part, own in zip(state, grid, strict=True):
                assert torch.allclose(part, rows.pick(own), atol=1e-5)
            assert torch.allclose(searched.logits(outputs), model.output(rows.pick(expected)), atol=1e-4)


def test_a_search_may_have_a_precision_of_its_own() -> None:
    model, sentences = random_model(4), random_sentences(12)
    scores = {}
    for trained, own in [("fp32", "training"), ("fp32", "bf16"), ("bf16", "training"), ("bf16", "fp32")]:
        config = compose(["scale=smoke", f"training.precision={trained}", f"search.precision={own}"])
        search = replace(SearchConfig(beam=3, max_length=8), precision=own)
        with precision_context(config, "cpu", search):
            scores[trained, own] = [best.score for best, *_ in decode(model, sentences, search)]
    assert scores["fp32", "training"] == scores["bf16", "fp32"]
    assert scores["fp32", "bf16"] == scores["bf16", "training"]
    assert scores["fp32", "training"] != scores["fp32", "bf16"]
    assert scores["fp32", "training"] == pytest.approx(scores["fp32", "bf16"], rel=0.1)


def test_training_never_takes_the_precision_of_a_search() -> None:
    config = compose(["scale=smoke", "search.precision=bf16"])
    with precision_context(config, "cpu"):
        assert not torch.is_autocast_enabled("cpu")
