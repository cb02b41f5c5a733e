"""Models without recurrence learn: half a minute each on sequences that they must turn round."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.config import compose
from nmt.train import train

SMALL = [
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 4000, validation_size: 99, test_size: 200}",
    "tokenizer.vocab_size=16",
    "scale.dim_divisor=8",
    "training.max_steps=300",
    "validation.every_steps=150",
    "search=greedy",
    "threads=1",
    "device=cpu",
    "tracking=none",
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("experiment", "overrides", "bleu"),  # measured over seeds: 99 to 100, 100, 61 to 64
    [
        (
            "transformer",
            ["training.max_steps=700", "schedule=inverse_sqrt", "model.encoder.layers=2", "model.decoder.layers=2"],
            95,
        ),
        ("convolutional", ["model.encoder.layers=4", "model.decoder.layers=1"], 95),
        ("pooling", [], 45),
    ],
)
def test_a_few_hundred_steps_are_enough_to_turn_short_sequences_round(
    tmp_path: Path, experiment: str, overrides: list[str], bleu: float
) -> None:
    outcome = train(compose([*SMALL, f"experiment={experiment}", *overrides, f"paths.runs={tmp_path}"]))
    assert outcome.state == "finished"
    assert outcome.record is not None
    assert outcome.record["metrics"]["test/decode/bleu"] > bleu
