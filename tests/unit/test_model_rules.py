"""Which models are refused before anything is built, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from nmt.config.model_rules import MODEL_RULES
from nmt.config.schema import (
    AttentionConfig,
    BridgeConfig,
    CellConfig,
    DecoderConfig,
    EmbeddingConfig,
    EncoderConfig,
    ModelConfig,
    ResidualConfig,
    RunConfig,
)
from nmt.config.widths import decoder_output_units, encoder_output_units, stack_widths
from nmt.errors import UserError

DOT, NONE_STATE, NONE_INPUT = ({"name": name, "units": 0} for name in ("dot", "none_state", "none_input"))
UNIDIRECTIONAL = {"name": "unidirectional", "layers": 2}
RESIDUAL = ResidualConfig(combiner="add")
LSTM = CellConfig(kind="lstm")


def check(**sections: dict[str, Any]) -> None:
    made = {
        "attention": AttentionConfig,
        "bridge": BridgeConfig,
        "encoder": EncoderConfig,
        "decoder": DecoderConfig,
        "embedding": EmbeddingConfig,
    }
    model = ModelConfig(**{name: made[name](**keys) for name, keys in sections.items()})
    for rule in MODEL_RULES:
        rule(RunConfig(model=model))


REFUSED: list[tuple[dict[str, dict[str, Any]], str, list[str]]] = [
    ({"attention": {"units": 0}}, "model.attention.units", ["at least 1"]),
    ({"attention": {"name": "dot", "units": 8}}, "model.attention.units", ["projects nothing", "model/attention=dot"]),
    ({"attention": {"name": "additive", "scaling": "sqrt"}}, "model.attention.scaling", ["vector v", "none, learned"]),
    ({"attention": {"name": "multi_head", "scaling": "sqrt"}}, "model.attention.scaling", ["multi_head"]),
    ({"attention": {**NONE_STATE, "masked": False}}, "model.attention.masked", ["none_state"]),
    ({"attention": DOT}, "model.attention.name", ["512 units", "1024", "multiplicative"]),
    (
        {"attention": DOT, "encoder": {**UNIDIRECTIONAL, "residual": ResidualConfig(combiner="concat")}},
        "model.attention.name",
        ["512 units", "1536"],
    ),
    ({"attention": NONE_STATE}, "model.bridge.name", ["zero", "pass_through, projection", "model/bridge=projection"]),
    (
        {"attention": NONE_STATE, "bridge": {"name": "concat_input", "units": 8}},
        "model.bridge.name",
        ["concat_input", "model/attention=none_input"],
    ),
    ({"attention": NONE_INPUT}, "model.bridge.name", ["appends nothing", "model/bridge=concat_input"]),
    ({"attention": NONE_INPUT, "bridge": {"name": "projection"}}, "model.bridge.name", ["projection", "concat_input"]),
    ({"bridge": {"name": "concat_input"}}, "model.bridge.units", ["at least 1"]),
    ({"bridge": {"name": "projection", "units": 8}}, "model.bridge.units", ["appends nothing"]),
    ({"bridge": {"activation": "tanh"}}, "model.bridge.activation", ["'zero'", "linear"]),
    ({"bridge": {"name": "pass_through"}}, "model.bridge.name", ["two states a layer", "model/bridge=projection"]),
    (
        {"bridge": {"name": "pass_through"}, "encoder": {"name": "stacked_bidirectional"}},
        "model.bridge.name",
        ["stacked_bidirectional"],
    ),
    ({"bridge": {"name": "pass_through"}, "encoder": {"name": "pooling"}}, "model.bridge.name", ["ends in a mean"]),
    (
        {"bridge": {"name": "pass_through"}, "encoder": {**UNIDIRECTIONAL, "layers": 3}},
        "model.bridge.name",
        ["3 layers while the decoder has 2"],
    ),
    (
        {"bridge": {"name": "pass_through"}, "encoder": {**UNIDIRECTIONAL, "units": 256}},
        "model.bridge.name",
        ["256 units while the decoder has 512"],
    ),
    (
        {"bridge": {"name": "pass_through"}, "encoder": UNIDIRECTIONAL, "decoder": {"cell": LSTM}},
        "model.bridge.name",
        ["gru cell's state has not the parts of a lstm cell's"],
    ),
    ({"encoder": {"name": "transformer", "residual": RESIDUAL}}, "model.encoder.residual.combiner", ["none"]),
    ({"decoder": {"name": "transformer", "residual": RESIDUAL}}, "model.decoder.residual.combiner", ["none"]),
    ({"decoder": {"residual": ResidualConfig(dense=True)}}, "model.decoder.residual.dense", ["combiner"]),
]


@pytest.mark.parametrize(("sections", "where", "words"), REFUSED, ids=[str(case[0])[:60] for case in REFUSED])
def test_what_does_not_fit_is_refused(sections: dict[str, dict[str, Any]], where: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check(**sections)
    text = str(error.value)
    assert text.startswith(f"{where}: ")
    assert "\n" not in text
    for word in words:
        assert word in text


ACCEPTED: list[dict[str, dict[str, Any]]] = [
    {},
    {"attention": DOT, "encoder": UNIDIRECTIONAL},
    {"attention": DOT, "decoder": {"units": 1024}},
    {"attention": NONE_STATE, "bridge": {"name": "pass_through"}, "encoder": UNIDIRECTIONAL},
    {"attention": NONE_STATE, "bridge": {"name": "projection", "activation": "tanh"}},
    {"attention": NONE_INPUT, "bridge": {"name": "concat_input", "units": 512}},
    {"bridge": {"name": "concat_input", "units": 8, "activation": "tanh"}},
    {"bridge": {"name": "projection"}, "encoder": {"layers": 4}, "decoder": {"layers": 1, "cell": LSTM}},
    {
        "bridge": {"name": "pass_through"},
        "encoder": {**UNIDIRECTIONAL, "cell": CellConfig(kind="vanilla", family="torch")},
    },
    {"bridge": {"name": "from_elsewhere", "units": 3}},
    {"encoder": {"reverse_source": True, "residual": ResidualConfig(combiner="concat", dense=True)}},
]


@pytest.mark.parametrize("sections", ACCEPTED, ids=lambda sections: str(sections)[:60])
def test_what_fits_passes(sections: dict[str, dict[str, Any]]) -> None:
    check(**sections)


@pytest.mark.parametrize(
    ("combiner", "dense", "widths"),
    [
        ("none", False, [3, 5, 5, 5]),
        ("add", True, [5, 5, 5, 5]),
        ("mean", False, [5, 5, 5, 5]),
        ("concat", False, [3, 8, 13, 18]),
        ("concat", True, [3, 8, 16, 32]),
    ],
)
def test_widths_of_a_stack(combiner: str, dense: bool, widths: list[int]) -> None:
    assert stack_widths(ResidualConfig(combiner=combiner, dense=dense), 3, 5, 3) == widths


def test_widths_of_a_model() -> None:
    concat = ResidualConfig(combiner="concat")
    encoder = EncoderConfig(name="stacked_bidirectional", units=5, layers=2, residual=concat)
    decoder = DecoderConfig(units=7, layers=2, residual=concat)
    model = ModelConfig(embedding=EmbeddingConfig(units=3), encoder=encoder, decoder=decoder)
    assert encoder_output_units(model) == 10 + 10 + 3
    assert decoder_output_units(model) == 7  # the mixing layer's
    without = ModelConfig(embedding=EmbeddingConfig(units=3), decoder=decoder, attention=AttentionConfig(**NONE_STATE))
    assert decoder_output_units(without) == 7 + 7 + 3
    assert encoder_output_units(ModelConfig(encoder=EncoderConfig(name="pooling"))) is None
