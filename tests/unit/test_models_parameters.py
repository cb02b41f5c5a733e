"""Parameter counts of the published study, as integers.

The published system also counted one scalar that was trainable by accident; a model without it has one parameter less
than the totals recomputed from the paper's layout at 37,007 vocabulary entries.
"""

from __future__ import annotations

import pytest
import torch

from nmt.config import compose
from nmt.models.parameters import count_parameters, parameters_by_module, planned_parameters
from nmt.models.seq2seq import build_model

PUBLISHED = ["scale.dim_divisor=1", "tokenizer.vocab_size=37007"]
UNIDIRECTIONAL = "model/encoder=unidirectional"
ADDITIVE = "model/attention=additive"
ENCODER_ADDS = "model.encoder.residual.combiner=add"
DECODER_ADDS = "model.decoder.residual.combiner=add"
REVERSED = "model.encoder.reverse_source=true"
NONE_INPUT = ["model/attention=none_input", "model/bridge=concat_input"]
ROWS = [
    ("table 1, embedding 128", ["model.embedding.units=128"], 36_133_775),
    ("table 1, embedding 256", ["model.embedding.units=256"], 46_197_391),
    ("table 1, embedding 512", [], 66_324_623),
    ("table 1, embedding 1024", ["model.embedding.units=1024"], 106_579_087),
    ("table 1, embedding 2048", ["model.embedding.units=2048"], 187_088_015),
    ("table 2, LSTM", ["experiment=t2_lstm"], 68_948_111),
    ("table 2, GRU", ["experiment=baseline"], 66_324_623),
    ("table 2, Vanilla-Dec", ["model.decoder.cell.kind=vanilla"], 63_176_847),
    ("table 3, Enc-2", ["model.encoder.layers=1"], 66_324_623),
    ("table 3, Enc-4", ["model.encoder.layers=2"], 69_473_423),
    ("table 3, Enc-8", ["model.encoder.layers=4"], 75_771_023),
    ("table 3, Enc-8-Res", ["model.encoder.layers=4", ENCODER_ADDS], 75_771_023),
    ("table 3, Enc-8-ResD", ["model.encoder.layers=4", ENCODER_ADDS, "model.encoder.residual.dense=true"], 75_771_023),
    ("table 3, Dec-1", ["model.decoder.layers=1"], 64_750_223),
    ("table 3, Dec-2", ["model.decoder.layers=2"], 66_324_623),
    ("table 3, Dec-4", ["model.decoder.layers=4"], 69_473_423),
    ("table 3, Dec-4-Res", ["model.decoder.layers=4", DECODER_ADDS], 68_687_503),
    ("table 3, Dec-4-ResD", ["model.decoder.layers=4", DECODER_ADDS, "model.decoder.residual.dense=true"], 68_687_503),
    ("table 3, Dec-8", ["model.decoder.layers=8"], 75_771_023),
    ("table 3, Dec-8-Res", ["model.decoder.layers=8", DECODER_ADDS], 74_985_103),
    ("table 3, Dec-8-ResD", ["model.decoder.layers=8", DECODER_ADDS, "model.decoder.residual.dense=true"], 74_985_103),
    ("table 4, Bidi-2", ["model/encoder=bidirectional"], 66_324_623),
    ("table 4, Uni-1", [UNIDIRECTIONAL], 63_439_503),
    ("table 4, Uni-1R", [UNIDIRECTIONAL, REVERSED], 63_439_503),
    ("table 4, Uni-2", [UNIDIRECTIONAL, "model.encoder.layers=2"], 65_013_903),
    ("table 4, Uni-2R", [UNIDIRECTIONAL, "model.encoder.layers=2", REVERSED], 65_013_903),
    ("table 4, Uni-4", [UNIDIRECTIONAL, "model.encoder.layers=4"], 68_162_703),
    ("table 4, Uni-4R", [UNIDIRECTIONAL, "model.encoder.layers=4", REVERSED], 68_162_703),
    ("table 5, Mul-128", ["model.attention.units=128"], 65_734_031),
    ("table 5, Mul-256", ["model.attention.units=256"], 65_930_895),
    ("table 5, Mul-512", ["model.attention.units=512"], 66_324_623),
    ("table 5, Mul-1024", ["model.attention.units=1024"], 67_112_079),
    ("table 5, Add-128", [ADDITIVE, "model.attention.units=128"], 65_734_159),
    ("table 5, Add-256", [ADDITIVE, "model.attention.units=256"], 65_931_151),
    ("table 5, Add-512", ["experiment=t5_add_512"], 66_325_135),
    ("table 5, Add-1024", [ADDITIVE, "model.attention.units=1024"], 67_113_103),
    ("table 5, None-State", ["experiment=t5_none_state"], 64_226_959),
    ("table 5, None-Input", NONE_INPUT, 64_488_591),
]
# Cells of the torch family have a second bias vector: gates · 512 more for each cell of a direction.
TORCH = ["model.encoder.cell.family=torch", "model.decoder.cell.family=torch"]
TORCH_ROWS = [
    ("baseline", [], 66_330_767),
    ("LSTM", ["experiment=t2_lstm"], 68_956_303),
    ("Vanilla-Dec", ["model.decoder.cell.kind=vanilla"], 63_180_943),
    ("Enc-8", ["model.encoder.layers=4"], 75_786_383),
    ("Dec-8-Res", ["model.decoder.layers=8", DECODER_ADDS], 75_000_463),
    ("None-Input", NONE_INPUT, 64_494_735),
]


def test_there_are_all_38_rows() -> None:
    assert len({row for row, _, _ in ROWS}) == 38


@pytest.mark.exhaustive  # the same integers stand in test_published_study, from the experiment files
@pytest.mark.parametrize(("row", "overrides", "expected"), ROWS, ids=[row for row, _, _ in ROWS])
def test_published_row(row: str, overrides: list[str], expected: int) -> None:
    assert planned_parameters(compose([*PUBLISHED, *overrides])) == expected


@pytest.mark.parametrize(("row", "overrides", "expected"), TORCH_ROWS, ids=[row for row, _, _ in TORCH_ROWS])
def test_a_row_in_the_torch_family(row: str, overrides: list[str], expected: int) -> None:
    assert planned_parameters(compose([*PUBLISHED, *TORCH, *overrides])) == expected


def test_the_baseline_part_by_part() -> None:
    with torch.device("meta"):
        model = build_model(compose(PUBLISHED).model, 37_007, 37_007)
    assert parameters_by_module(model) == {
        "source_embedding": 18_947_584,
        "target_embedding": 18_947_584,
        "encoder.forwards": 1_574_400,
        "encoder.backwards": 1_574_400,
        "decoder.cells": 4_721_664,
        "decoder.attention": 524_800 + 262_656,
        "decoder.mix": 786_944,
        "output": 18_984_591,
    }


@pytest.mark.parametrize(
    ("overrides", "saved"),
    [
        (["model.embedding.share=true"], 18_947_584),
        (["model.embedding.tie_output=true"], 18_947_584),
        (["model.embedding.share=true", "model.embedding.tie_output=true"], 2 * 18_947_584),
    ],
)
def test_shared_parameters_count_once(overrides: list[str], saved: int) -> None:
    assert planned_parameters(compose([*PUBLISHED, "tokenizer.joint=true", *overrides])) == 66_324_623 - saved


def test_the_plan_is_the_count_of_the_built_model() -> None:
    config = compose(["scale.dim_divisor=16", "tokenizer.vocab_size=50", "experiment=t2_lstm"])
    model = build_model(config.model, 50, 50, seed=1)
    assert count_parameters(model) == planned_parameters(config) == sum(p.numel() for p in model.parameters())
