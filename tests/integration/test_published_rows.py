"""Every row of the published study trains at the smallest scale: steps, an evaluation, a checkpoint, a decoding."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nmt.config import compose
from nmt.config.compose import groups
from nmt.models.parameters import planned_parameters
from nmt.runs import LocalRunStore
from nmt.train import train

TINY = [
    "scale=smoke",
    "data.options.train_size=48",
    "data.options.validation_size=4",
    "data.options.test_size=4",
    "training.max_steps=3",
    "training.log_every_steps=1",
    "validation.every_steps=3",
    "validation.search.max_length=8",
    "search.max_length=8",
    "search.beam=2",
    "device=cpu",
    "threads=1",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_a_row_trains_and_decodes(experiment: str, runs: Path) -> None:
    config = compose([f"experiment={experiment}", *TINY, f"paths.runs={runs}"])
    outcome = train(config)
    assert (outcome.state, outcome.error) == ("finished", "budget")
    assert outcome.record is not None and outcome.record["sentences"] == 4
    store = LocalRunStore(runs)
    result = store.read_json(outcome.run_id, "result.json")
    assert result is not None
    assert (result["steps"], result["parameters"]) == (3, planned_parameters(config))
    perplexity = result["best"]["metrics"]["val/teacher_forced/log_perplexity"]
    assert 0.5 * math.log(config.tokenizer.vocab_size) < perplexity < math.log(config.tokenizer.vocab_size) + 1
