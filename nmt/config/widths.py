"""Widths that follow from a configuration: needed to check it before anything is built, and to build it."""

from __future__ import annotations

from nmt.config.schema import ModelConfig, ResidualConfig

NO_ATTENTION = ("none_state", "none_input")
RECURRENT_ENCODERS = ("unidirectional", "bidirectional", "stacked_bidirectional")


def stack_widths(residual: ResidualConfig, input_units: int, units: int, layers: int) -> list[int]:
    """Widths of what enters a stack of `layers` layers of `units`, and of what each layer passes on.

    `add` and `mean` bring the input to `units` first; `concat` grows with every layer.
    """
    if residual.combiner in ("add", "mean"):
        return [units] * (layers + 1)
    widths = [input_units]
    for _ in range(layers):
        beside = 0
        if residual.combiner == "concat":
            beside = sum(widths) if residual.dense else widths[-1]
        widths.append(units + beside)
    return widths


def encoder_output_units(model: ModelConfig) -> int | None:
    """Width of the outputs of a recurrent encoder; None for the others."""
    encoder, e = model.encoder, model.embedding.units
    if encoder.name not in RECURRENT_ENCODERS:
        return None
    if encoder.name == "stacked_bidirectional":
        return stack_widths(encoder.residual, e, 2 * encoder.units, encoder.layers)[-1]
    directions = 2 if encoder.name == "bidirectional" else 1
    return directions * stack_widths(encoder.residual, e, encoder.units, encoder.layers)[-1]


def decoder_stack_units(model: ModelConfig, context_units: int) -> int:
    """Width of what the layers of a recurrent decoder pass on at the top: the query of its attention.

    `context_units` is the width of the context that is fed back beside the embedding.
    """
    decoder = model.decoder
    input_units = model.embedding.units + model.bridge.units + context_units
    return stack_widths(decoder.residual, input_units, decoder.units, decoder.layers)[-1]


def decoder_output_units(model: ModelConfig) -> int:
    """Width of what the softmax layer reads: the mixing layer, or without attention the top of the stack."""
    return decoder_stack_units(model, 0) if model.attention.name in NO_ATTENTION else model.decoder.units
