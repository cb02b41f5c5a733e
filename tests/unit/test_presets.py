"""Presets of initialisation and clipping: what each sets, and what beats them."""

from __future__ import annotations

import pytest

from nmt.config import compose, train_id
from nmt.config.compose import CONF, groups
from nmt.training.workload import optimizer_spec
from sweeps.rows import layered


def test_the_default_is_the_study_itself_and_changes_no_identity() -> None:
    assert train_id(compose([])) == train_id(compose(["preset=paper_2017_02"]))
    config = compose(["preset=paper_2017_02"])
    initialisation, optimizer = config.model.initialisation, config.optimizer
    assert (initialisation.name, initialisation.recurrent_scale, initialisation.embedding_scale) == (
        "glorot_uniform",
        0.0,
        0.0,
    )
    assert (optimizer.clip_norm, optimizer.clip_embedding_norm, optimizer.epsilon) == (5.0, 0.0, 1e-8)


def test_the_last_state_of_the_system() -> None:
    config = compose(["preset=master_2017_04"])
    initialisation, optimizer = config.model.initialisation, config.optimizer
    assert (initialisation.name, initialisation.recurrent_scale, initialisation.embedding_scale) == (
        "glorot_uniform",
        0.04,
        0.04,
    )
    assert (optimizer.clip_norm, optimizer.clip_embedding_norm, optimizer.epsilon) == (5.0, 0.1, 8e-7)
    assert optimizer.epsilon_form == "tf"


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        (["preset=master_2017_04", "scale=multi30k"], 0.3),
        (["preset=master_2017_04", "model.initialisation.embedding_scale=0.2"], 0.2),
        (["preset=master_2017_04", "model=attentional", "optimizer=adam"], 0.04),
    ],
)
def test_a_preset_beats_model_and_optimizer_files_and_is_beaten_by_the_rest(words: list[str], scale: float) -> None:
    assert compose(words).model.initialisation.embedding_scale == scale
    assert compose(list(reversed(words))).model.initialisation.embedding_scale == scale


def test_a_preset_drops_no_value_of_a_lower_layer() -> None:
    words = layered([["optimizer.clip_norm=1.0"], ["preset=master_2017_04"]], set(groups(CONF)))
    config = compose(words)
    assert (config.optimizer.clip_norm, config.optimizer.clip_embedding_norm) == (1.0, 0.1)


@pytest.mark.parametrize(("share", "tables"), [(False, ["source", "target"]), (True, ["source"])])
def test_every_embedding_table_is_clipped_once(share: bool, tables: list[str]) -> None:
    words = [f"model.embedding.share={share}", "tokenizer.joint=true"]
    spec = optimizer_spec(compose(["preset=master_2017_04", *words]))
    assert spec.parameter_max_norms == {f"{side}_embedding.weight": 0.1 for side in tables}
    assert optimizer_spec(compose(words)).parameter_max_norms == {}
