"""First values: distributions, and one stream a parameter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from models_reference import model_config
from torch import nn

from nmt.config.schema import CellConfig, InitialisationConfig, ModelConfig
from nmt.models.attention import AdditiveAttention
from nmt.models.initialisation import SKIPPED, first_values, initialise, stream
from nmt.models.layers import Affine, Table
from nmt.models.seq2seq import build_model
from nmt.models.tf_cells import TfGru, TfLstm

MASTER = InitialisationConfig(recurrent_scale=0.04, embedding_scale=0.04)
GLOROT, UNIFORM = InitialisationConfig(), InitialisationConfig(name="uniform", scale=0.04)


def drawn(module: nn.Module, config: InitialisationConfig = GLOROT, seed: int = 1) -> dict[str, torch.Tensor]:
    initialise(module, config, seed)
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def assert_uniform(values: torch.Tensor, limit: float) -> None:
    """All of U(-limit, limit): within it, nearly reaching it, and with its mean and variance (6 standard errors)."""
    n = values.numel()
    assert values.abs().max().item() <= limit
    assert values.abs().max().item() > limit * (1 - 20 / n)
    assert abs(values.mean().item()) < 6 * limit / math.sqrt(3 * n)
    assert abs(values.var().item() / (limit**2 / 3) - 1) < 6 * math.sqrt(0.8 / n)


def test_matrices_and_embeddings_are_glorot_uniform() -> None:
    affine, table = drawn(Affine(80, 50)), drawn(Table(300, 20))
    assert_uniform(affine["weight"], math.sqrt(6 / 130))
    assert not affine["bias"].any()
    assert_uniform(table["weight"], math.sqrt(6 / 320))


def test_gru_matrices_have_the_limits_of_the_joint_matrices() -> None:
    values = drawn(TfGru(30, 50, CellConfig(forget_bias=1.0)))
    gates, candidate = math.sqrt(6 / (80 + 100)), math.sqrt(6 / (80 + 50))
    assert_uniform(values["input_weight"][:100], gates)
    assert_uniform(values["input_weight"][100:], candidate)
    assert_uniform(values["gate_weight"], gates)
    assert_uniform(values["candidate_weight"], candidate)
    assert values["bias"].tolist() == [1.0] * 100 + [0.0] * 50


def test_lstm_matrices_have_the_limit_of_the_joint_matrix_and_a_zero_bias() -> None:
    values = drawn(TfLstm(30, 50, CellConfig(kind="lstm", forget_bias=1.0)))
    assert_uniform(values["input_weight"], math.sqrt(6 / (80 + 200)))
    assert_uniform(values["recurrent_weight"], math.sqrt(6 / (80 + 200)))
    assert not values["bias"].any()


def test_the_vector_of_additive_attention_takes_its_length_for_both_fans() -> None:
    attention = AdditiveAttention(replace(model_config().attention, units=2000), 3, 3, 3)
    assert_uniform(drawn(attention)["v"], math.sqrt(3 / 2000))
    assert_uniform(drawn(attention, UNIFORM)["v"], math.sqrt(3 / 2000))


def test_uniform_draws_matrices_and_embeddings_within_the_scale() -> None:
    assert_uniform(drawn(Affine(80, 50), UNIFORM)["weight"], 0.04)
    assert_uniform(drawn(Table(300, 20), UNIFORM)["weight"], 0.04)
    gru = drawn(TfGru(30, 50, CellConfig(forget_bias=0.5)), UNIFORM)
    assert_uniform(gru["input_weight"], 0.04)
    assert gru["bias"].tolist() == [0.5] * 100 + [0.0] * 50


def values(config: ModelConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    model = build_model(config, 11, 13, seed=seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("attention", ["additive", "multiplicative", "none_state"])
def test_no_parameter_is_forgotten(kind: str, attention: str) -> None:
    model = build_model(model_config(kind=kind, attention=attention), 11, 13)
    assert all(parameter.isnan().all() for parameter in model.parameters())
    assert all(value.isfinite().all() for value in values(model_config(kind=kind, attention=attention)).values())


def test_adding_a_parameter_shifts_no_other() -> None:
    small, large = values(model_config(decoder_layers=1)), values(model_config(decoder_layers=3, attention="additive"))
    assert len(large) > len(small)
    assert all(torch.equal(large[name], value) for name, value in small.items())


def test_values_depend_on_seed_and_name_only() -> None:
    torch.manual_seed(0)
    first = values(model_config())
    torch.manual_seed(1)
    again, other = values(model_config()), values(model_config(), seed=2)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    matrices = [name for name, value in first.items() if value.dim() > 1]
    assert not any(torch.equal(other[name], first[name]) for name in matrices)
    twins = first["encoder.forwards.cells.0.gate_weight"], first["encoder.backwards.cells.0.gate_weight"]
    assert not torch.equal(*twins)


def test_a_tied_parameter_is_drawn_once_under_its_first_name() -> None:
    tied, free = values(model_config(tie=True)), values(model_config())
    assert "output.weight" not in tied
    assert torch.equal(tied["target_embedding.weight"], free["target_embedding.weight"])


def test_a_float64_model_starts_from_the_float32_values() -> None:
    single, double = Affine(5, 4), Affine(5, 4).double()
    initialise(single, GLOROT, 3)
    initialise(double, GLOROT, 3)
    assert torch.equal(single.weight.double(), double.weight)


def test_modules_of_other_packages_get_matrices_and_zero_vectors() -> None:
    foreign = drawn(nn.Linear(80, 50))
    assert_uniform(foreign["weight"], math.sqrt(6 / 130))
    assert not foreign["bias"].any()


def test_recurrent_scale_is_for_the_matrices_of_cells_alone() -> None:
    """The last state of google/seq2seq: kernels and tables U(-0.04, 0.04), all else as before."""
    model = build_model(model_config(attention="additive", bridge="projection"), 50, 60)
    plain = drawn(model)
    master = drawn(
        build_model(model_config(attention="additive", bridge="projection"), 50, 60),
        MASTER,
    )
    assert_uniform(drawn(TfLstm(30, 50, CellConfig(kind="lstm")), MASTER)["input_weight"], 0.04)
    assert_uniform(drawn(TfLstm(30, 50, CellConfig(kind="lstm")), MASTER)["recurrent_weight"], 0.04)
    kernels = [name for name in plain if ".cells." in name and name.endswith("weight")]
    tables = [name for name in plain if "embedding" in name]
    assert len(kernels) == 3 * 4
    assert len(tables) == 2
    for name, before in plain.items():
        if name in kernels or name in tables:
            assert 0.03 < master[name].abs().max().item() <= 0.04, name
        else:
            assert torch.equal(before, master[name]), name


def test_embedding_scale_is_for_the_tables_alone() -> None:
    plain = drawn(build_model(model_config(), 50, 60))
    scaled = drawn(build_model(model_config(), 50, 60), InitialisationConfig(embedding_scale=0.3))
    for name, before in plain.items():
        if "embedding" in name:
            limit = math.sqrt(6 / sum(before.shape))
            assert torch.allclose(before / limit, scaled[name] / 0.3, atol=1e-6)
        else:
            assert torch.equal(before, scaled[name]), name


@pytest.mark.parametrize("config", [GLOROT, MASTER, UNIFORM])
def test_rows_of_a_parameter_are_drawn_alone_with_the_bits_that_they_have_in_the_whole(
    config: InitialisationConfig,
) -> None:
    """A stream is that of the elements in order, so that nobody needs memory for those of others."""
    whole = drawn(build_model(replace(model_config(), initialisation=config), 30, 30), config, seed=3)
    with torch.device("meta"):
        outline = build_model(replace(model_config(), initialisation=config), 30, 30)
    values = first_values(outline, config, seed=3)
    assert values.keys() == whole.keys()
    for name, value in whole.items():
        columns, rows = value[0].numel(), len(value)
        for first, last in ((0, rows), (rows // 3, rows), (rows // 3, rows // 3 + 1)):
            found = values[name].elements(first * columns, last * columns)
            assert torch.equal(found, value.reshape(-1)[first * columns : last * columns]), name


def test_what_is_skipped_is_what_the_stream_gives_others() -> None:
    with torch.device("meta"):
        table = nn.Sequential(Table(3000, 50))
    random = stream("1/init/0.weight")
    wanted = torch.empty(3000, 50).uniform_(-1.0, 1.0, generator=random) * math.sqrt(6 / 3050)
    found = first_values(table, GLOROT, seed=1)["0.weight"]
    assert torch.equal(found.whole(), wanted)
    assert SKIPPED < 2000 * 50
    assert torch.equal(found.elements(2000 * 50, 2003 * 50), wanted[2000:2003].reshape(-1))
