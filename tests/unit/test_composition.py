"""Experiments are laid over what Hydra composes without them: the same configurations, sooner."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nmt.config import compose
from nmt.config.compose import CONF, _compose_by_hydra, _lay_experiment_over, _state_of, groups
from nmt.errors import UserError

LEFT_TO_HYDRA = {
    "t7_combined",
    "t8_combined",
    "transformer",
}  # they exchange a search, a whole model, or rest on others


def same_as_hydras(*choices: str) -> bool:
    conf = CONF.resolve()
    ours, hydras = _lay_experiment_over(choices, conf, _state_of(conf)), _compose_by_hydra(choices, conf)
    assert ours is not None
    assert (list(ours), OmegaConf.is_struct(ours)) == (list(hydras), OmegaConf.is_struct(hydras))
    return bool(OmegaConf.to_container(ours) == OmegaConf.to_container(hydras))


@pytest.mark.parametrize("experiment", ["t3_dec_8_resd", "t5_none_input"])
def test_an_experiment_composes_as_by_hydra(experiment: str) -> None:
    assert same_as_hydras(f"experiment={experiment}", "scale=cpu_table", "data=multi30k_en_fr")


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", groups()["scale"])
def test_every_experiment_composes_as_by_hydra(scale: str) -> None:
    """Each at one of the scales, dealt out in turn: neither depends on what the other says."""
    scales, experiments = groups()["scale"], sorted(set(groups()["experiment"]) - LEFT_TO_HYDRA)
    for experiment in experiments[scales.index(scale) :: len(scales)]:
        assert same_as_hydras(f"experiment={experiment}", f"scale={scale}"), experiment
        assert same_as_hydras(f"scale={scale}", f"experiment={experiment}", "preset=master_2017_04"), experiment


def test_what_exchanges_more_than_parts_of_the_model_is_left_to_hydra() -> None:
    conf = CONF.resolve()
    for choices in (
        *((f"experiment={name}",) for name in LEFT_TO_HYDRA),
        ("scale=smoke",),
        ("experiment=t2_lstm", "model/attention=additive"),
        ("experiment=t2_lstm", "experiment=t2_gru"),
        ("experiment=nothing",),
    ):
        assert _lay_experiment_over(choices, conf, _state_of(conf)) is None, choices


def test_a_mistake_in_an_experiment_is_told_as_ever(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    path = conf / "experiment" / "mine.yaml"
    path.write_text("# @package _global_\nmodel: {decoder: {layer: 3}}\n", encoding="utf-8")
    with pytest.raises(UserError, match="Key 'layer' not in 'DecoderConfig'"):
        compose(["experiment=mine"], conf)
    path.write_text("# @package _global_\nmodel: {decoder: {layers: three}}\n", encoding="utf-8")
    with pytest.raises(UserError, match="'three' of type 'str' could not be converted to Integer"):
        compose(["experiment=mine"], conf)
    path.write_text("# @package _global_\nmodel: {decoder: {layers: 3}}\n", encoding="utf-8")
    assert compose(["experiment=mine", "scale=smoke"], conf).model.decoder.layers == 3
