"""The models once more, slow and obvious: one sentence, one layer and one time step after the other, in float64.

Joint matrices on [x; h] as TensorFlow has them; no batching, no padding, no hoisting. Used by tests of `nmt.models`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
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
    ResidualConfig,
)
from nmt.models.dropout import NO_DROPOUT, AddressedDropout, Dropout
from nmt.models.encoder import EncoderOutput
from nmt.models.scheduled_sampling import ScheduledSampling
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.models.watch import GradientWatch

Array = np.ndarray
SOURCES = [[3, 4, 5], [10], [6, 3, 9, 8, 7]]
TARGETS = [[4, 12, 3, 5], [7, 7], []]

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


@dataclass(frozen=True)
class ExampleSlot:
    """What a model's stages see of a slot of a training step."""

    batch: PaddedBatch
    dropout: Dropout = NO_DROPOUT
    sampling: ScheduledSampling | None = None
    watch: GradientWatch | None = None
    is_scored: bool = False

    @property
    def target_tokens(self) -> int:
        return int(self.batch.target_lengths.sum())


def run_stages(model: Seq2Seq, slot: ExampleSlot) -> Tensor:
    """The sum of a slot's token losses."""
    carried: dict[str, Tensor] = {}
    for stage in model.stages():
        carried = stage(slot, carried)
    assert set(carried) == {"loss"}
    return carried["loss"]


def gradients(model: Seq2Seq, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_dropout_is_addressed(model: Seq2Seq) -> None:
    """Equal losses for equal addresses; others for another seed, step or slot, and without dropout."""
    batch = padded_batch(SOURCES, TARGETS)

    def loss(*address: int) -> float:
        return run_stages(model, ExampleSlot(batch, AddressedDropout(*address))).item()

    assert loss(1, 5, 0) == loss(1, 5, 0)
    assert len({loss(1, 5, 0), loss(2, 5, 0), loss(1, 6, 0), loss(1, 5, 1)}) == 4
    without = run_stages(model, ExampleSlot(batch)).item()
    assert without == model(batch).sum().item() != loss(1, 5, 0)


def check_bf16_is_near_float32(model: Seq2Seq) -> None:
    """A float32 model under autocast: its loss, finite gradients, and two steps of decoding."""
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS), AddressedDropout(1, 1, 0))
    exact = run_stages(model, slot)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = run_stages(model, slot)
        encoded = model.encode(slot.batch.source, slot.batch.source_lengths)
        logits, state, _ = model.step(torch.full((3, 2), 1), model.start(encoded, 2), encoded)
        logits, _, _ = model.step(logits.argmax(-1), state, encoded)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert loss.item() != exact.item()
    found = gradients(model, loss)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert logits.isfinite().all()


def check_threads_change_no_bit(config: ModelConfig, threads: int, units: int = 96) -> None:
    """Loss and gradients of the model, made `units` wide, with one thread and with `threads`."""
    config = replace(
        config,
        embedding=replace(config.embedding, units=units),
        encoder=replace(config.encoder, units=units),
        decoder=replace(config.decoder, units=units),
        attention=replace(config.attention, units=units),
    )
    model = build_model(config, 700, 900, LossConfig(label_smoothing=0.1), seed=1)
    g = torch.Generator().manual_seed(0)
    source, target = (
        [torch.randint(3, 700, (int(n),), generator=g).tolist() for n in torch.randint(4, 12, (64,), generator=g)]
        for _ in range(2)
    )
    slot = ExampleSlot(padded_batch(source, target), AddressedDropout(1, 1, 0))
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            loss = run_stages(model, slot)
            results.append((loss.detach(), gradients(model, loss)))
    finally:
        torch.set_num_threads(before)
    (one, of_one), (other, of_other) = results
    assert torch.equal(one, other)
    assert [name for name in of_one if not torch.equal(of_one[name], of_other[name])] == []


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
    bridge: str = "",
    family: str = "tf",
    combiner: str = "none",
    dense: bool = False,
    reverse: bool = False,
    scaling: str = "none",
    masked: bool = True,
    activation: str = "linear",
    units: tuple[int, int] = (5, 6),
) -> ModelConfig:
    """Embeddings of 6, cells of `units` in encoder and decoder, and the bridge that the attention needs."""
    residual = ResidualConfig(combiner=combiner, dense=dense)
    cell = CellConfig(kind=kind, family=family, dropout_input=dropout, dropout_output=dropout / 2, forget_bias=1.0)
    needed = {"none_state": "projection", "none_input": "concat_input"}.get(attention, "zero")
    name = bridge or needed
    return ModelConfig(
        embedding=EmbeddingConfig(units=6, share=share, tie_output=tie),
        encoder=EncoderConfig(
            name=encoder, units=units[0], layers=encoder_layers, cell=cell, residual=residual, reverse_source=reverse
        ),
        decoder=DecoderConfig(units=units[1], layers=decoder_layers, cell=cell, residual=residual),
        attention=AttentionConfig(
            name=attention,
            units=4 if attention in ("additive", "multiplicative") else 0,
            scaling=scaling,
            masked=masked,
        ),
        bridge=BridgeConfig(name=name, units=3 if name == "concat_input" else 0, activation=activation),
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
    """One row, one step: TensorFlow's formulas on the joint vector [x; h], or torch's with two biases."""
    if hasattr(cell, "recurrent_bias"):
        return torch_cell_step(cell, x, state)
    units, h = len(state[0]), state[0]
    w_in, bias = numbers(cell.input_weight), numbers(cell.bias)
    joint = np.concatenate([x, h])
    if len(bias) == units:
        return (np.tanh(np.concatenate([w_in, numbers(cell.recurrent_weight)], axis=1) @ joint + bias),)
    if len(state) == 1:
        gates = np.concatenate([w_in[: 2 * units], numbers(cell.gate_weight)], axis=1)
        r, u = np.split(sigma(gates @ joint + bias[: 2 * units]), 2)
        candidate = np.concatenate([w_in[2 * units :], numbers(cell.candidate_weight)], axis=1)
        c = np.tanh(candidate @ np.concatenate([x, r * h]) + bias[2 * units :])
        return (u * h + (1 - u) * c,)
    i, j, f, o = np.split(np.concatenate([w_in, numbers(cell.recurrent_weight)], axis=1) @ joint + bias, 4)
    c = state[1] * sigma(f + forget_bias) + sigma(i) * np.tanh(j)
    return (np.tanh(c) * sigma(o), c)


def torch_cell_step(cell: nn.Module, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """One row, one step, as the documentation of torch.nn.GRU, LSTM and RNN has it."""
    h = state[0]
    of_x = numbers(cell.input_weight) @ x + numbers(cell.bias)
    of_h = numbers(cell.recurrent_weight) @ h + numbers(cell.recurrent_bias)
    blocks = len(of_x) // len(h)
    if blocks == 1:
        return (np.tanh(of_x + of_h),)
    if blocks == 3:
        (rx, zx, nx), (rh, zh, nh) = np.split(of_x, 3), np.split(of_h, 3)
        r, z = sigma(rx + rh), sigma(zx + zh)
        return ((1 - z) * np.tanh(nx + r * nh) + z * h,)
    i, f, g, o = np.split(of_x + of_h, 4)
    c = sigma(f) * state[1] + sigma(i) * np.tanh(g)
    return (sigma(o) * np.tanh(c), c)


def combine(config: ResidualConfig, y: Array, passed: list[Array]) -> Array:
    """What a layer passes on: its output and, past it, its input or all that was passed on before."""
    ins = passed if config.dense else passed[-1:]
    if config.combiner == "add":
        return y + sum(ins)
    if config.combiner == "mean":
        return y + np.mean(ins, axis=0)
    return np.concatenate([y, *ins]) if config.combiner == "concat" else y


def enter(residual: nn.Module, x: Array) -> Array:
    return x if residual.input_transform is None else affine(residual.input_transform, x)


def run_cell(cell: nn.Module, xs: list[Array]) -> tuple[list[Array], list[Array]]:
    """A cell's outputs over `xs` in order, and its final state parts."""
    state = tuple(np.zeros(cell.units) for _ in range(cell.state_parts))
    outputs = []
    for x in xs:
        state = cell_step(cell, x, state)
        outputs.append(state[0])
    return outputs, list(state)


def read(stack: nn.Module, xs: list[Array]) -> tuple[list[Array], list[Array]]:
    """What the top layer passes on and all final state parts of a stack that reads `xs` in order."""
    final: list[Array] = []
    passed = [[enter(stack.residual, x)] for x in xs]
    for cell in stack.cells:
        outputs, state = run_cell(cell, [before[-1] for before in passed])
        final += state
        for y, before in zip(outputs, passed, strict=True):
            before.append(combine(stack.residual.config, y, before))
    return [before[-1] for before in passed], final


def read_both_ways(encoder: nn.Module, xs: list[Array]) -> tuple[list[Array], list[Array]]:
    """The same of a stacked bidirectional encoder, whose layers are joined one by one."""
    final: list[Array] = []
    final_back: list[Array] = []
    passed = [[enter(encoder.residual, x)] for x in xs]
    for forward, backward in zip(encoder.forwards, encoder.backwards, strict=True):
        inputs = [before[-1] for before in passed]
        ahead, state = run_cell(forward, inputs)
        final += state
        back, state = run_cell(backward, inputs[::-1])
        final_back += state
        for one, other, before in zip(ahead, back[::-1], passed, strict=True):
            before.append(combine(encoder.residual.config, np.concatenate([one, other]), before))
    return [before[-1] for before in passed], final + final_back


def encode(encoder: nn.Module, xs: list[Array]) -> tuple[list[Array], Array]:
    if hasattr(encoder, "residual"):
        outputs, final = read_both_ways(encoder, xs)
        return outputs, np.concatenate(final)
    outputs, final = read(encoder.forwards, xs)
    if hasattr(encoder, "backwards"):
        back, final_back = read(encoder.backwards, xs[::-1])
        outputs = [np.concatenate(pair) for pair in zip(outputs, back[::-1], strict=True)]
        final = final + final_back
    return outputs, np.concatenate(final)


def affine(layer: nn.Module, x: Array) -> Array:
    if isinstance(layer, nn.Identity):
        return x
    return numbers(layer.weight) @ x + numbers(layer.bias)


def attend(attention: nn.Module, query: Array, values: list[Array], scaling: str = "none") -> tuple[Array, Array]:
    if attention.context_units == 0:
        return np.zeros(0), np.zeros(len(values))
    q = affine(attention.query, query)
    keys = [affine(attention.key, value) for value in values]
    if hasattr(attention, "v"):
        v = numbers(attention.v)
        if scaling == "learned":
            v = v / np.sqrt(v @ v) * numbers(attention.scale)
        scores = np.array([v @ np.tanh(key + q) for key in keys])
    else:
        scores = np.array([key @ q for key in keys])
        if scaling == "sqrt":
            scores = scores / np.sqrt(len(q))
        if scaling == "learned":
            scores = scores * numbers(attention.scale)
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return sum(weight * value for weight, value in zip(weights, values, strict=True)), weights


def bridged(model: Seq2Seq, final: Array) -> tuple[Array, Array]:
    """The decoder's first states side by side, and what stands beside its embeddings."""
    config, nothing = model.config.bridge, np.zeros(0)
    if config.name == "pass_through":
        return final, nothing
    if config.name in ("projection", "concat_input"):
        projected = affine(model.bridge.projection, final)
        projected = np.tanh(projected) if config.activation == "tanh" else projected
        if config.name == "projection":
            return projected, nothing
        return np.zeros(model.decoder.state_units), projected
    return np.zeros(model.decoder.state_units), nothing


def token_log_probabilities(
    model: Seq2Seq, source: list[int], target: list[int], sos: int = 1, eos: int = 2, padded_to: int = 0
) -> Array:
    """Log-probabilities over the vocabulary at each step of a teacher-forced target: [len(target) + 1, V].

    `padded_to` is the source's length with padding, for attention without a mask.
    """
    config, decoder = model.config, model.decoder
    xs = [numbers(model.source_embedding.weight)[token] for token in [*source, eos]]
    values, final = encode(model.encoder, xs[::-1] if config.encoder.reverse_source else xs)
    values = values[::-1] if config.encoder.reverse_source else values
    if not config.attention.masked:
        values = values + [np.zeros_like(values[0])] * (padded_to - len(values))
    first, appended = bridged(model, final)
    parts = np.split(first, len(first) // config.decoder.units)
    states = []
    for cell in decoder.cells:
        states.append(tuple(parts[: cell.state_parts]))
        parts = parts[cell.state_parts :]
    context = np.zeros(decoder.attention.context_units)
    rows = []
    for token in [sos, *target]:
        embedding = numbers(model.target_embedding.weight)[token]
        passed = [enter(decoder.residual, np.concatenate([embedding, appended, context]))]
        for layer, cell in enumerate(decoder.cells):
            states[layer] = cell_step(cell, passed[-1], states[layer])
            passed.append(combine(decoder.residual.config, states[layer][0], passed))
        context, _ = attend(decoder.attention, passed[-1], values, config.attention.scaling)
        mix = passed[-1]
        if decoder.mix is not None:
            mix = np.tanh(affine(decoder.mix, np.concatenate([mix, context])))
        logits = affine(model.output, mix)
        rows.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return np.array(rows)
