"""Encoders and decoders without recurrence once more: one sentence, one position and one head after the other."""

from __future__ import annotations

import math

import models_reference as reference
import numpy as np
from models_reference import Array, affine, numbers
from torch import nn

from nmt.config.schema import (
    AttentionConfig,
    CellConfig,
    DecoderConfig,
    EmbeddingConfig,
    EncoderConfig,
    ModelConfig,
)

ENCODERS = ["transformer", "convolutional", "pooling"]


def model_config(
    encoder: str = "transformer", decoder: str = "transformer", dropout: float = 0.0, tie: bool = False
) -> ModelConfig:
    """Different widths wherever a model allows them."""
    e = 12 if tie else 6
    own = {"heads": 2, "feed_forward": 10, "dropout": dropout, "dropout_attention": dropout, "dropout_relu": dropout}
    options = {
        "transformer": own,
        "convolutional": {"value_units": 7, "value_layers": 2, "dropout": dropout},
        "pooling": {"pool_size": 3, "dropout": dropout},
        "bidirectional": {},
    }
    cell = CellConfig(dropout_input=dropout, dropout_output=dropout)
    attention = (
        AttentionConfig(name="multi_head", units=8, options={"heads": 4, "dropout": dropout})
        if decoder == "transformer"
        else AttentionConfig(name="additive", units=4)
    )
    layers, units = {"pooling": (1, e), "convolutional": (3, 8)}.get(encoder, (2, 8))
    return ModelConfig(
        embedding=EmbeddingConfig(units=e, tie_output=tie, share=tie),
        encoder=EncoderConfig(name=encoder, units=units, layers=layers, cell=cell, options=options[encoder]),
        decoder=DecoderConfig(
            name=decoder, units=12, layers=2, cell=cell, options=own | {"heads": 3} if decoder == "transformer" else {}
        ),
        attention=attention,
        dropout_embedding=dropout,
        dropout_mix=dropout,
    )


def memn2n(j: int, k: int, positions: int, units: int) -> float:
    """Entry of position j and unit k, both counted from 1."""
    return (1 - j / (positions + 1)) - (k / (units + 1)) * (1 - 2 * j / (positions + 1))


def sinusoid(position: int, unit: int, units: int) -> float:
    """Entry of a position and a unit, both counted from 0."""
    angle = position / 10000 ** (2 * (unit // 2) / units)
    return math.cos(angle) if unit % 2 else math.sin(angle)


def with_positions(layer: nn.Module, xs: list[Array]) -> list[Array]:
    combined = []
    for t, x in enumerate(xs):
        units = range(len(x))
        if layer.kind == "none":
            combined.append(x)
            continue
        if layer.kind == "learned":
            enc = numbers(layer.table.weight)[min(t, layer.positions - 1)]
        elif layer.kind == "memn2n":
            enc = np.array([memn2n(t + 1, k + 1, layer.positions, len(x)) for k in units])
        else:
            enc = np.array([sinusoid(t, k, len(x)) for k in units])
        combined.append(x * enc if layer.multiplies else x + enc)
    return combined


def convolve(stack: nn.Module, xs: list[Array]) -> list[Array]:
    for layer, convolution in enumerate(stack):
        size, weight = convolution.kernel_size, numbers(convolution.weight)
        ys = []
        for t in range(len(xs)):
            y = numbers(convolution.bias).copy()
            for i in range(size):
                at = t - (size - 1) // 2 + i
                if 0 <= at < len(xs):
                    y += weight[:, i * len(xs[at]) : (i + 1) * len(xs[at])] @ xs[at]
            ys.append(np.tanh(y + xs[t] if layer else y))
        xs = ys
    return xs


def layer_norm(layer: nn.Module, x: Array) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * numbers(layer.gain) + numbers(layer.bias)


def heads_read(query: Array, keys: list[Array], values: list[Array], heads: int) -> tuple[Array, Array]:
    """Context and each head's weights of one query over what it may see."""
    parts, weights = [], []
    for q, k, v in zip(*(np.split(np.array(m), heads, axis=-1) for m in (query, keys, values)), strict=True):
        scores = k @ q / math.sqrt(len(q))
        weight = np.exp(scores - scores.max())
        weight /= weight.sum()
        parts.append(weight @ v)
        weights.append(weight)
    return np.concatenate(parts), np.array(weights)


def self_attend(layer: nn.Module, xs: list[Array], causal: bool) -> list[Array]:
    packed = [np.split(affine(layer.query_key_value, x), 3) for x in xs]
    seen = [packed[: t + 1] if causal else packed for t in range(len(xs))]
    return [
        affine(layer.output, heads_read(q, [k for _, k, _ in ps], [v for _, _, v in ps], layer.heads)[0])
        for (q, _, _), ps in zip(packed, seen, strict=True)
    ]


def feed_forward(layer: nn.Module, x: Array) -> Array:
    return x + affine(layer.outer, np.maximum(affine(layer.inner, layer_norm(layer.norm, x)), 0))


def transformer_input(layer: nn.Module, xs: list[Array]) -> list[Array]:
    ys = [x * math.sqrt(len(x)) for x in xs]
    if layer.projection is not None:
        ys = [affine(layer.projection, y) for y in ys]
    return [y + np.array([sinusoid(t, k, len(y)) for k in range(len(y))]) for t, y in enumerate(ys)]


def encode(encoder: nn.Module, xs: list[Array]) -> tuple[list[Array], list[Array], Array]:
    """Keys' and values' outputs of each position, and the final state."""
    if hasattr(encoder, "attention_cnn"):
        xs = with_positions(encoder.positions, xs)
        values = convolve(encoder.output_cnn, xs)
        return convolve(encoder.attention_cnn, xs), values, np.mean(values, axis=0)
    if hasattr(encoder, "pool_size"):
        xs, size = with_positions(encoder.positions, xs), encoder.pool_size
        starts = [t - (size - 1) // 2 for t in range(len(xs))]
        outputs = [np.mean(xs[max(0, start) : start + size], axis=0) for start in starts]
        return outputs, xs, np.mean(outputs, axis=0)
    if not hasattr(encoder, "layers"):
        outputs, final = reference.encode(encoder, xs)
        return outputs, outputs, final
    xs = transformer_input(encoder.input, xs)
    for layer in encoder.layers:
        ys = self_attend(layer.attention, [layer_norm(layer.attention_norm, x) for x in xs], causal=False)
        xs = [feed_forward(layer.feed_forward, x + y) for x, y in zip(xs, ys, strict=True)]
    outputs = [layer_norm(encoder.norm, x) for x in xs]
    return outputs, outputs, np.mean(outputs, axis=0)


def decode(
    decoder: nn.Module, xs: list[Array], outputs: list[Array], values: list[Array]
) -> tuple[list[Array], list[Array]]:
    """Outputs of a Transformer decoder, and the mean over the heads of its top layer's attention."""
    xs = transformer_input(decoder.input, xs)
    weights: list[Array] = []
    for layer in decoder.layers:
        ys = self_attend(layer.attention, [layer_norm(layer.attention_norm, x) for x in xs], causal=True)
        xs = [x + y for x, y in zip(xs, ys, strict=True)]
        cross = layer.cross_attention
        keys, vals = [affine(cross.key, x) for x in outputs], [affine(cross.value, x) for x in values]
        read = [
            heads_read(affine(cross.query, layer_norm(layer.cross_attention_norm, x)), keys, vals, cross.heads)
            for x in xs
        ]
        xs = [feed_forward(layer.feed_forward, x + affine(cross.output, c)) for x, (c, _) in zip(xs, read, strict=True)]
        weights = [w.mean(axis=0) for _, w in read]
    return [layer_norm(decoder.norm, x) for x in xs], weights
