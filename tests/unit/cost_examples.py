"""Small models whose costs are counted, with a width for each part, so that a product's shape says what it is."""

from __future__ import annotations

import functools

from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.models.seq2seq import Seq2Seq, build_model

SENTENCES = 16  # as few as stay in the rows of an encoder to its end, and are enough for a search without copies
VOCABULARY, LAYERS = 6000, 2
# Of the recurrent model: embedding, encoder (of each direction, and of its outputs), decoder, attention.
E, U, C, H, A = 20, 12, 24, 32, 28
# Of the Transformer: all layers, the inside of feed-forward networks, heads, and the width of one.
D, F, HEADS, W = 32, 128, 2, 16

COMMON = [
    *("scale=smoke", "device=cpu", "threads=1", "loss.label_smoothing=0.1", "search.beam=4", "search.n_best=1"),
    *(f"model.{side}.layers={LAYERS}" for side in ("encoder", "decoder")),
]
MODELS = {
    # The benchmark's: GRUs in both directions, multiplicative attention.
    "recurrent": [
        *(f"model.embedding.units={E}", f"model.encoder.units={U}", f"model.decoder.units={H}"),
        *("model/attention=multiplicative", f"model.attention.units={A}"),
        *("model.encoder.cell.dropout_input=0.2", "model.decoder.cell.dropout_input=0.2", "model.dropout_mix=0.2"),
    ],
    "transformer": [
        *("experiment=transformer", f"model.embedding.units={D}", f"model.attention.units={D}"),
        *(f"model.{side}.units={D}" for side in ("encoder", "decoder")),
        *(f"model.{side}.options.feed_forward={F}" for side in ("encoder", "decoder")),
        *(f"model.{side}.options.heads={HEADS}" for side in ("encoder", "decoder", "attention")),
    ],
}


@functools.cache
def config_of(name: str, *overrides: str) -> RunConfig:
    """The configuration of a model of `MODELS`."""
    return compose([*COMMON, *MODELS[name], *overrides])


@functools.cache
def model_of(name: str, vocabulary: int = VOCABULARY) -> Seq2Seq:
    """The model itself, for whoever leaves its parameters as they are."""
    return build_model(config_of(name).model, vocabulary, vocabulary, config_of(name).loss, seed=1)
