"""Which attentions, bridges, stacks and encoders fit each other; each refusal names the reason and what would fit."""

from __future__ import annotations

from nmt.config.schema import ModelConfig, RunConfig
from nmt.config.widths import NO_ATTENTION, RECURRENT_ENCODERS, decoder_stack_units, encoder_output_units
from nmt.errors import UserError

# Ours that none of the recurrent stack's keys mean anything to.
WITHOUT_RECURRENCE = ("convolutional", "pooling", "transformer")


def attention(config: RunConfig) -> None:
    """Width, scaling and mask of the attention."""
    attention = config.model.attention
    name, units = attention.name, attention.units
    if name in ("additive", "multiplicative") and units < 1:
        raise UserError("must be at least 1 with attention", where="model.attention.units")
    if name in ("dot", *NO_ATTENTION) and units:
        raise UserError(
            f"attention '{name}' projects nothing, so it has no units of its own",
            where="model.attention.units",
            allowed=["0"],
            hint=f"model/attention={name}",
        )
    if name == "additive" and attention.scaling == "sqrt":
        raise UserError(
            "a constant factor would only be part of additive attention's vector v",
            where="model.attention.scaling",
            allowed=["none", "learned"],
        )
    for key, is_set in (("scaling", attention.scaling != "none"), ("masked", not attention.masked)):
        if is_set and name in ("multi_head", *NO_ATTENTION):
            raise UserError(
                f"attention '{name}' has no such choice",
                where=f"model.attention.{key}",
                allowed=["none" if key == "scaling" else "true"],
                hint="it goes with additive, multiplicative and dot attention",
            )


def dot_attention(config: RunConfig) -> None:
    """Without projections both sides need the same width."""
    model = config.model
    keys = encoder_output_units(model)
    if model.attention.name != "dot" or keys is None or model.decoder.name != "recurrent":
        return
    query = decoder_stack_units(model, keys)
    if query != keys:
        raise UserError(
            f"attention 'dot' has no projections, and the decoder's output has {query} units while the encoder's "
            f"outputs have {keys}",
            where="model.attention.name",
            hint="make the widths equal, or model/attention=multiplicative",
        )


def bridge(config: RunConfig) -> None:
    """Without attention the bridge alone must pass the source on; each bridge has keys of its own."""
    name, attention, units = config.model.bridge.name, config.model.attention.name, config.model.bridge.units
    if attention == "none_state" and name in ("zero", "concat_input"):
        raise UserError(
            f"attention 'none_state' leaves the decoder nothing of the source but its first state, and bridge '{name}' "
            f"fills that with zeros",
            where="model.bridge.name",
            allowed=["pass_through", "projection"],
            hint="model/bridge=projection"
            if name == "zero"
            else "model/attention=none_input, or model/bridge=projection",
        )
    if attention == "none_input" and name in ("zero", "pass_through", "projection"):
        raise UserError(
            f"attention 'none_input' leaves the decoder nothing of the source but what a bridge appends to its inputs, "
            f"and bridge '{name}' appends nothing",
            where="model.bridge.name",
            allowed=["concat_input"],
            hint="model/bridge=concat_input",
        )
    if name == "concat_input" and units < 1:
        raise UserError("must be at least 1 with bridge 'concat_input'", where="model.bridge.units")
    if name in ("zero", "pass_through", "projection") and units:
        raise UserError(
            f"bridge '{name}' appends nothing to the decoder's inputs",
            where="model.bridge.units",
            allowed=["0"],
            hint="model/bridge=concat_input",
        )
    if name in ("zero", "pass_through") and config.model.bridge.activation != "linear":
        raise UserError(
            f"bridge '{name}' has no map to put an activation on",
            where="model.bridge.activation",
            allowed=["linear"],
            hint="model/bridge=projection",
        )


def passed_state(config: RunConfig) -> None:
    """A state that is passed through needs the same structure on both sides."""
    model = config.model
    encoder, decoder = model.encoder, model.decoder
    if model.bridge.name != "pass_through" or decoder.name != "recurrent":
        return
    reason = None
    if encoder.name in RECURRENT_ENCODERS and encoder.name != "unidirectional":
        reason = f"encoder '{encoder.name}' ends in two states a layer, one of each direction"
    elif encoder.name in WITHOUT_RECURRENCE:
        reason = f"encoder '{encoder.name}' ends in a mean, and not in states of cells"
    elif encoder.name == "unidirectional":
        reason = _difference(model)
    if reason:
        others = [] if model.attention.name == "none_state" else ["zero", "concat_input"]
        raise UserError(
            f"bridge 'pass_through' hands the encoder's states to the decoder as they are, and {reason}",
            where="model.bridge.name",
            allowed=["projection", *others],
            hint="model/bridge=projection fits any two",
        )


def _difference(model: ModelConfig) -> str | None:
    encoder, decoder = model.encoder, model.decoder
    if encoder.layers != decoder.layers:
        return f"the encoder has {encoder.layers} layers while the decoder has {decoder.layers}"
    if encoder.units != decoder.units:
        return f"the encoder has {encoder.units} units while the decoder has {decoder.units}"
    if (encoder.cell.kind == "lstm") != (decoder.cell.kind == "lstm"):
        return f"a {encoder.cell.kind} cell's state has not the parts of a {decoder.cell.kind} cell's"
    return None


def residual(config: RunConfig) -> None:
    """Residual connections belong to recurrent stacks, and `dense` to a combiner."""
    for side, component in (("encoder", config.model.encoder), ("decoder", config.model.decoder)):
        residual = component.residual
        if residual.combiner != "none" and component.name in WITHOUT_RECURRENCE:
            raise UserError(
                f"{side} '{component.name}' has its own residual connections, or none",
                where=f"model.{side}.residual.combiner",
                allowed=["none"],
            )
        if residual.dense and residual.combiner == "none":
            raise UserError(
                "there is nothing to combine densely without a combiner",
                where=f"model.{side}.residual.dense",
                hint=f"model.{side}.residual.combiner=add, mean or concat",
            )


MODEL_RULES = (attention, dot_attention, bridge, passed_state, residual)
