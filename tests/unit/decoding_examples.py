"""A small real model and sentences for it: what tests of decoding share."""

from __future__ import annotations

import numpy as np
import torch

from nmt.config.schema import (
    AttentionConfig,
    BridgeConfig,
    CellConfig,
    DecoderConfig,
    EmbeddingConfig,
    EncoderConfig,
    ModelConfig,
)
from nmt.data.vocabulary import EOS
from nmt.models.seq2seq import Seq2Seq, build_model

VOCABULARY = 40


def random_model(seed: int = 4, attention: str = "multiplicative", cell: str = "gru", bridge: str = "zero") -> Seq2Seq:
    """A model with weights large enough for outputs that depend on the source, and end now and then."""
    config = ModelConfig(
        embedding=EmbeddingConfig(units=24),
        encoder=EncoderConfig(units=24, cell=CellConfig(kind=cell)),
        decoder=DecoderConfig(units=24, cell=CellConfig(kind=cell)),
        attention=AttentionConfig(name=attention, units=24),
        bridge=BridgeConfig(name=bridge),
    )
    model = build_model(config, VOCABULARY, VOCABULARY, seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
        model.output.bias[EOS] += 2.0
    return model


def random_sentences(count: int, seed: int = 0, longest: int = 20) -> list[np.ndarray]:
    """Sentences of 1 to `longest` words."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, size=count)
    return [generator.integers(3, VOCABULARY, size=length).astype(np.int32) for length in lengths]
