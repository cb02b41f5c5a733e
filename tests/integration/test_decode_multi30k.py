"""The same output for every batch size, on real sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nmt.config import compose
from nmt.config.schema import SearchConfig, TokenizerConfig
from nmt.data.corpus import read_lines
from nmt.data.tokenizer import train_tokenizer
from nmt.evaluation.decode import decode
from nmt.models.seq2seq import Seq2Seq, build_model

VOCABULARY = 1500


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sentences(multi30k: Path) -> list[np.ndarray]:
    lines = read_lines(multi30k / "test_2016_flickr.en.gz")
    tokenizer, _ = train_tokenizer(TokenizerConfig(name="whitespace", vocab_size=VOCABULARY), lambda: iter(lines))
    return [np.array(tokenizer.encode(line), dtype=np.int32) for line in lines]


def model(experiment: str, units: int) -> Seq2Seq:
    """Random weights, drawn large enough for outputs that depend on the source."""
    config = compose([f"experiment={experiment}", f"tokenizer.vocab_size={VOCABULARY}", "scale=local"]).model
    config = replace(
        config,
        embedding=replace(config.embedding, units=units),
        encoder=replace(config.encoder, units=units),
        decoder=replace(config.decoder, units=units),
        attention=replace(config.attention, units=min(units, config.attention.units)),
    )
    built = build_model(config, VOCABULARY, VOCABULARY, seed=7).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(5.0)
    return built


@pytest.mark.parametrize(
    ("experiment", "units", "beam"),
    [("t5_add_512", 64, 4), pytest.param("t2_lstm", 60, 1, marks=pytest.mark.exhaustive)],
)
def test_200_sentences_have_the_same_bits_for_every_batch_size(
    sentences: list[np.ndarray], experiment: str, units: int, beam: int
) -> None:
    search = SearchConfig(beam=beam, n_best=beam, max_length=20, max_length_ratio=0.3, length_penalty=1.0)
    random_model = model(experiment, units)
    outputs = [decode(random_model, sentences[:200], replace(search, batch_size=size)) for size in (1, 7, 100)]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({hypotheses[0].tokens for hypotheses in outputs[0]}) > 100
    assert len({len(hypotheses[0].tokens) for hypotheses in outputs[0]}) > 4


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("experiment", "beam", "units", "count"),
    [("baseline", 5, 96, 1000), ("t2_lstm", 10, 56, 250), ("t5_add_512", 1, 256, 250), ("t5_none_state", 5, 40, 250)],
)
def test_the_test_set_has_the_same_bits_for_every_batch_size_and_two_threads(
    sentences: list[np.ndarray], experiment: str, beam: int, units: int, count: int
) -> None:
    search = SearchConfig(beam=beam, n_best=beam, max_length=24, max_length_ratio=0.5, length_penalty=0.6)
    random_model, sentences = model(experiment, units), sentences[:count]
    alone = decode(random_model, sentences, replace(search, batch_size=1))
    assert len(alone) == count  # the whole set where it is 1000
    torch.set_num_threads(2)
    for size in (7, 100):
        assert decode(random_model, sentences, replace(search, batch_size=size)) == alone


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(beam=6, n_best=3, finishing="standard", stop="bound", length_penalty=1.0),
        SearchConfig(beam=5, stop="bound", coverage="wu", coverage_weight=0.2),
        SearchConfig(beam=4, finishing="standard", stop="patience", coverage="summary", coverage_weight=0.2),
        SearchConfig(beam=6, n_best=6, diverse_groups=3, diverse_strength=0.5, block_ngrams=3, min_length_ratio=0.2),
        SearchConfig(method="sample", n_best=2, top_p=0.9),
    ],
    ids=["standard", "wu", "summary", "diverse", "sample"],
)
def test_every_way_of_searching_has_the_same_bits_for_every_batch_size(
    sentences: list[np.ndarray], search: SearchConfig
) -> None:
    random_model = model("baseline", 64)
    search = replace(search, max_length=20, max_length_ratio=0.5)
    outputs = [decode(random_model, sentences[:300], replace(search, batch_size=size)) for size in (1, 7, 100)]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({hypotheses[0].tokens for hypotheses in outputs[0]}) > 100
