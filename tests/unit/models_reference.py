"""The models once more, slow and obvious: one sentence, one layer and one time step after the other, in float64.

Joint matrices on [x; h] as TensorFlow has them; no batching, no padding, no hoisting. Used by tests of `nmt.models`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nmt.config.schema import (
    AttentionConfig,
    BridgeConfig,
    CellConfig,
    DecoderConfig,
    EmbeddingConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
)
from nmt.models.encoder import EncoderOutput
from nmt.models.seq2seq import Seq2Seq, build_model

Array = np.ndarray

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@dataclass(frozen=True)
class PaddedBatch:
    source: Tensor
    source_lengths: Tensor
    target_input: Tensor
    target_output: Tensor
    target_lengths: Tensor


def padded_batch(
    sources: list[list[int]], targets: list[list[int]], extra: int = 0, sos: int = 1, eos: int = 2, filler: int = 2
) -> PaddedBatch:
    """Sentences without specials as the model reads them, with `extra` more padded positions than needed."""

    def pad(rows: list[list[int]]) -> Tensor:
        width = max(len(row) for row in rows) + extra
        return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

    with_eos = [[*row, eos] for row in sources]
    return PaddedBatch(
        source=pad(with_eos),
        source_lengths=torch.tensor([len(row) for row in with_eos]),
        target_input=pad([[sos, *row] for row in targets]),
        target_output=pad([[*row, eos] for row in targets]),
        target_lengths=torch.tensor([len(row) + 1 for row in targets]),
    )


def encoded(outputs: Tensor) -> EncoderOutput:
    """Encoder outputs [time, batch, C] without a final state."""
    return EncoderOutput(outputs, outputs.new_zeros(outputs.shape[1], 0))


def model_config(
    encoder: str = "bidirectional",
    kind: str = "gru",
    attention: str = "multiplicative",
    encoder_layers: int = 1,
    decoder_layers: int = 2,
    dropout: float = 0.0,
    share: bool = False,
    tie: bool = False,
    bridge: str = "zero",
) -> ModelConfig:
    cell = CellConfig(kind=kind, dropout_input=dropout, dropout_output=dropout / 2, forget_bias=1.0)
    return ModelConfig(
        embedding=EmbeddingConfig(units=6, share=share, tie_output=tie),
        encoder=EncoderConfig(name=encoder, units=5, layers=encoder_layers, cell=cell),
        decoder=DecoderConfig(units=6, layers=decoder_layers, cell=cell),
        attention=AttentionConfig(name=attention, units=4),
        bridge=BridgeConfig(name="projection" if attention == "none_state" else bridge),
        dropout_embedding=dropout,
        dropout_mix=dropout,
    )


def random_model(config: ModelConfig, vocab: tuple[int, int] = (11, 13), loss: LossConfig | None = None) -> Seq2Seq:
    """A float64 model all of whose parameters, biases too, are away from zero."""
    model = build_model(config, *vocab, loss).double()
    return randomised(model)


def randomised(module: nn.Module, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 1.6 - 0.8)
    return module


def sigma(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def numbers(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def cell_step(cell: nn.Module, x: Array, state: tuple[Array, ...], forget_bias: float = 1.0) -> tuple[Array, ...]:
    """One row, one step, with TensorFlow's formulas on the joint vector [x; h]."""
    units, h = len(state[0]), state[0]
    w_in, bias = numbers(cell.input_weight), numbers(cell.bias)
    joint = np.concatenate([x, h])
    if len(state) == 1:
        gates = np.concatenate([w_in[: 2 * units], numbers(cell.gate_weight)], axis=1)
        r, u = np.split(sigma(gates @ joint + bias[: 2 * units]), 2)
        candidate = np.concatenate([w_in[2 * units :], numbers(cell.candidate_weight)], axis=1)
        c = np.tanh(candidate @ np.concatenate([x, r * h]) + bias[2 * units :])
        return (u * h + (1 - u) * c,)
    i, j, f, o = np.split(np.concatenate([w_in, numbers(cell.recurrent_weight)], axis=1) @ joint + bias, 4)
    c = state[1] * sigma(f + forget_bias) + sigma(i) * np.tanh(j)
    return (np.tanh(c) * sigma(o), c)


def read(stack: nn.Module, xs: list[Array]) -> tuple[list[Array], list[Array]]:
    """Outputs of the top layer and all final state parts of a stack that reads `xs` in order."""
    final: list[Array] = []
    for cell in stack.cells:
        state = tuple(np.zeros(cell.units) for _ in range(cell.state_parts))
        outputs = []
        for x in xs:
            state = cell_step(cell, x, state)
            outputs.append(state[0])
        final += list(state)
        xs = outputs
    return xs, final


def encode(encoder: nn.Module, xs: list[Array]) -> tuple[list[Array], Array]:
    outputs, final = read(encoder.forwards, xs)
    if hasattr(encoder, "backwards"):
        back, final_back = read(encoder.backwards, xs[::-1])
        outputs = [np.concatenate(pair) for pair in zip(outputs, back[::-1], strict=True)]
        final = final + final_back
    return outputs, np.concatenate(final)


def affine(layer: nn.Module, x: Array) -> Array:
    return numbers(layer.weight) @ x + numbers(layer.bias)


def attend(attention: nn.Module, query: Array, values: list[Array]) -> tuple[Array, Array]:
    if attention.context_units == 0:
        return np.zeros(0), np.zeros(len(values))
    q = affine(attention.query, query)
    keys = [affine(attention.key, value) for value in values]
    if hasattr(attention, "v"):
        scores = np.array([numbers(attention.v) @ np.tanh(key + q) for key in keys])
    else:
        scores = np.array([key @ q for key in keys])
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return sum(weight * value for weight, value in zip(weights, values, strict=True)), weights


def token_log_probabilities(model: Seq2Seq, source: list[int], target: list[int], sos: int = 1, eos: int = 2) -> Array:
    """Log-probabilities over the vocabulary at each step of a teacher-forced target: [len(target) + 1, V]."""
    values, final = encode(model.encoder, [numbers(model.source_embedding.weight)[token] for token in [*source, eos]])
    decoder = model.decoder
    if hasattr(model.bridge, "projection"):
        first = affine(model.bridge.projection, final)
    else:
        first = np.zeros(decoder.state_units)
    parts = np.split(first, len(first) // decoder.output_units)
    states = []
    for cell in decoder.cells:
        states.append(tuple(parts[: cell.state_parts]))
        parts = parts[cell.state_parts :]
    context = np.zeros(decoder.attention.context_units)
    rows = []
    for token in [sos, *target]:
        x = np.concatenate([numbers(model.target_embedding.weight)[token], context])
        for layer, cell in enumerate(decoder.cells):
            states[layer] = cell_step(cell, x, states[layer])
            x = states[layer][0]
        context, _ = attend(decoder.attention, x, values)
        mix = x if decoder.mix is None else np.tanh(affine(decoder.mix, np.concatenate([x, context])))
        logits = affine(model.output, mix)
        rows.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return np.array(rows)
