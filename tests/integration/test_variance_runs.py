"""A run that draws hyperparameters trains and translates with what it drew, and records it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.config import compose
from nmt.config.identity import run_id
from nmt.config.seeds import draws
from nmt.runs import LocalRunStore
from nmt.train import train
from nmt.training.checkpoint import load_model


@pytest.mark.exhaustive
def test_a_run_is_what_it_drew_from_training_to_translation(tmp_path: Path) -> None:
    """TensorFlow's LSTM adds its forget bias at every step, in translation too: the configured one would be wrong."""
    jittered = "model.decoder.cell.forget_bias,optimizer.learning_rate"
    words = ["scale=smoke", "experiment=t2_lstm", "model.embedding.share=false", "tracking=none", "threads=1"]
    config = compose([*words, f"paths.runs={tmp_path}", "seeds.jitter=0.5", f"seeds.jittered=[{jittered}]"])
    own = draws(config)
    assert train(config).state == "finished"
    store = LocalRunStore(config.paths.runs)
    result = store.read_json(run_id(config), "result.json") or {}
    assert result["drawn"] == own
    loaded = load_model(store.directory(run_id(config)) / result["best"]["checkpoint"])
    cells = [one for name, one in loaded.model.named_modules() if "decoder" in name and hasattr(one, "forget_bias")]
    assert {cell.forget_bias for cell in cells} == {own["model.decoder.cell.forget_bias"]} != {1.0}
    assert loaded.config == config  # what was asked for; the draws follow from it
    assert train(config).trained is False
