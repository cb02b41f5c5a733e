"""Attention without a mask (`model.attention.masked=false`): padding counts, so the cut of work must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models_reference import model_config

from nmt.config import compose
from nmt.config.schema import RunConfig, SearchConfig
from nmt.data.prepare import prepare
from nmt.evaluation.decode import decode
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.training.workload import TranslationWorkload

SETTINGS = ["data=toy_copy", "tokenizer=toy_words", "scale=smoke", "data.max_sentences=60", "batch.size=12"]
DRY = ["model.encoder.cell.dropout_input=0", "model.decoder.cell.dropout_input=0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    cache = tmp_path_factory.mktemp("cache")
    return compose([*SETTINGS, *DRY, "model.attention.masked=false", f"paths.cache={cache}"])


def losses(config: RunConfig, slots: int, model: Seq2Seq | None = None) -> tuple[float, list[int]]:
    """The sum of a step's losses in so many slots, and the source positions of each slot."""
    config = replace(config, batch=replace(config.batch, micro_batches=slots))
    workload = TranslationWorkload(config, "cpu", prepare(config))
    model = (model or workload.build_model()).double()
    cut = [workload.slot(3, number) for number in range(slots)]
    with torch.no_grad():
        return sum(model(slot.batch).sum().item() for slot in cut), [slot.batch.source.shape[1] for slot in cut]


def test_every_slot_is_padded_to_the_longest_sentence_of_the_step(config: RunConfig) -> None:
    whole, (width,) = losses(config, 1)
    for slots in (2, 4):
        total, widths = losses(config, slots)
        assert widths == [width] * slots
        assert total == pytest.approx(whole, abs=1e-9)
    masked = replace(config, model=replace(config.model, attention=replace(config.model.attention, masked=True)))
    total, widths = losses(masked, 4)
    assert min(widths) < max(widths) == width  # where padding does not count, a slot has no more than it needs
    assert total != pytest.approx(whole, abs=1e-6)


def test_what_is_decoded_does_not_depend_on_the_batch() -> None:
    """A sentence is padded to the end of its own length class, whatever stands beside it."""
    model = build_model(model_config("bidirectional", "gru", "additive", masked=False), 40, 40, seed=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    generator = np.random.default_rng(0)
    sentences = [generator.integers(3, 40, size=n).astype(np.int32) for n in generator.integers(1, 20, size=24)]
    one, other = (decode(model, sentences, SearchConfig(beam=3, max_length=12, batch_size=b)) for b in (1, 24))
    assert one == other
