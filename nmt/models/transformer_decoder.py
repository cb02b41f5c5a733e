"""The Transformer decoder: its training form over a whole target, and one step of it for decoding."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from nmt.config.schema import DecoderConfig
from nmt.models.attention import Memory, real
from nmt.models.dropout import NO_DROPOUT, Dropout
from nmt.models.encoder import EncoderOutput
from nmt.models.multi_head import KeysAndValues, MultiHeadAttention, SelfAttention
from nmt.models.stages import MIX, TARGET, Part, Slot
from nmt.models.transformer import FeedForward, LayerConfig, LayerNorm, TransformerInput
from nmt.models.watch import GradientWatch

# Each layer's keys and values of the tokens so far, [batch, k, heads, tokens, h / heads] each.
TransformerState = tuple[Tensor, ...]


class TransformerDecoder(nn.Module):
    """Layers of causal self-attention, attention over the memory, and feed-forward sublayers, all pre-norm.

    The source reaches it through the memory alone, so its first state has no width. The memory's keys and values are
    [batch, heads, layers, time, A / heads]: a layer's share is a slice whose first two dimensions merge without a copy.

    Parameters
    ----------
    config: units h and layers; there are no cells.
    attention: the attention over the memory; each layer has a copy of its own.
    embedding_units: width e of the target embeddings, which are projected where it is not h.
    The others: see `nmt.models.transformer.LayerConfig`; the defaults are those of Vaswani et al.'s base model.
    """

    def __init__(
        self,
        config: DecoderConfig,
        attention: MultiHeadAttention,
        embedding_units: int,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        dropout_attention: float = 0.0,
        dropout_relu: float = 0.0,
    ):
        super().__init__()
        layer = LayerConfig(config.units, heads, feed_forward, dropout, dropout_attention, dropout_relu)
        self.input = TransformerInput(embedding_units, config.units)
        self.layers = DecoderLayers(DecoderLayer(layer, copy.deepcopy(attention)) for _ in range(config.layers))
        self.norm = LayerNorm(config.units)
        self.dropout = dropout
        self.head_shape = (heads, config.units // heads)
        self.output_units = config.units
        self.state_units = 0

    def memory(self, encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """Keys and values of every layer, made once a sentence of `lengths` [batch] tokens."""
        return self._memory(self.layers, encoded, lengths)

    def forward(
        self,
        embedded: Tensor,
        memory: Memory,
        first: Tensor,
        dropout: Dropout,
        watch: GradientWatch | None = None,
    ) -> Tensor:
        """Training form: outputs [time, batch, h] before the softmax layer, all positions at once.

        `embedded` [time, batch, e] holds the embeddings of the given previous target tokens. `first` [batch, 0] is what
        a bridge makes of nothing. `watch` is told of each layer's output [batch, time, h] as "decoder.<layer>".
        """
        x, later = self._enter(embedded, dropout), _later(len(embedded), embedded)
        for number in range(len(self.layers)):
            x = self._layer(number, x, later, _share(memory, number), memory.mask, dropout, watch)
        return self.norm(x).transpose(0, 1)

    def parts(self) -> list[Part]:
        """A part a layer, with its attention over what the encoder made; the last normalisation with the top one."""
        return [self._part(number) for number in range(len(self.layers))]

    def _part(self, number: int) -> Part:
        layer, last = list(self.layers)[number], number == len(self.layers) - 1
        below, above = f"decoder.{number}", f"decoder.{number + 1}"

        def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            outputs = carried["outputs"]
            encoded = EncoderOutput(outputs, outputs.new_empty(0), carried.get("values"))
            memory = self._memory([layer], encoded, slot.batch.source_lengths)
            x = self._enter(carried[TARGET], slot.dropout) if number == 0 else carried[below]
            later = _later(x.shape[1], x)
            x = self._layer(number, x, later, _share(memory, 0), memory.mask, slot.dropout, slot.watch)
            return {MIX: self.norm(x).transpose(0, 1)} if last else {above: x}

        reads = ["outputs", "values", TARGET if number == 0 else below]
        modules = [layer, *([self.input] if number == 0 else []), *([self.norm] if last else [])]
        return Part(f"decoder.{number}", run, reads, [MIX if last else above], tuple(modules))

    def layer_memory(self, number: int, encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """`memory` for one layer alone."""
        return self._memory([list(self.layers)[number]], encoded, lengths)

    def layer_step(
        self, number: int, x: Tensor, past: KeysAndValues, memory: Memory
    ) -> tuple[Tensor, KeysAndValues, Tensor]:
        """A layer's share of `step`: output [batch, k, h], its keys and values, weights [batch, k, time].

        x: [batch, k, h], what the layer below put out, or `input`. memory: that of `layer_memory`.
        """
        x, past, weights = list(self.layers)[number].step(x, past, _share(memory, 0), ~memory.mask)
        return x, past, weights.mean(dim=1)

    def _memory(self, layers: Iterable[DecoderLayer], encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """Keys and values of some layers."""
        outputs = encoded.outputs
        values = outputs if encoded.values is None else encoded.values
        pairs = [layer.cross_attention.keys_and_values(outputs, values) for layer in layers]
        all_keys, all_values = (torch.stack(parts, dim=2) for parts in zip(*pairs, strict=True))
        return Memory(all_keys, all_values, real(lengths, outputs.shape[0]))

    def _enter(self, embedded: Tensor, dropout: Dropout) -> Tensor:
        """What the lowest layer reads: [batch, time, h]."""
        x = self.input(embedded.transpose(0, 1), 0, len(embedded))
        return dropout("decoder.embedded", x, self.dropout)

    def _layer(
        self,
        number: int,
        x: Tensor,
        later: Tensor,
        memory: KeysAndValues,
        mask: Tensor,
        dropout: Dropout,
        watch: GradientWatch | None,
    ) -> Tensor:
        """One layer over all positions: [batch, time, h] -> [batch, time, h]."""
        x = self.layers[number](x, later, memory, ~mask, f"decoder.{number}", dropout)
        if watch is not None:
            watch(f"decoder.{number}", x)
        return x

    def start(self, first: Tensor, k: int) -> TransformerState:
        """The state before the first step of k hypotheses a sentence, which have no tokens yet."""
        heads, width = self.head_shape
        nothing = first.new_zeros(first.shape[0], k, heads, 0, width)
        return (nothing,) * (2 * len(self.layers))

    def step(
        self, embedded: Tensor, state: TransformerState, memory: Memory
    ) -> tuple[Tensor, TransformerState, Tensor]:
        """One step of k hypotheses a sentence: output [batch, k, h], next state, weights [batch, k, time].

        `embedded` [batch, k, e] holds the embeddings of the previous tokens. The weights are the mean over the heads of
        the top layer's attention over the memory.
        """
        x = self.input(embedded, first=state[0].shape[3], count=1)
        blocked = ~memory.mask
        new: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            past = (state[2 * number], state[2 * number + 1])
            x, past, weights = layer.step(x, past, _share(memory, number), blocked)
            new += past
        return self.norm(x), tuple(new), weights.mean(dim=1)


class DecoderLayer(nn.Module):
    """Self-attention, attention over the memory and a feed-forward network, each with a residual connection."""

    def __init__(self, config: LayerConfig, attention: MultiHeadAttention):
        super().__init__()
        self.attention_norm = LayerNorm(config.units)
        self.attention = SelfAttention(config.units, config.heads, config.dropout_attention)
        self.cross_attention_norm = LayerNorm(config.units)
        self.cross_attention = attention
        self.feed_forward = FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, later: Tensor, memory: KeysAndValues, padding: Tensor, name: str, dropout: Dropout
    ) -> Tensor:
        """All positions at once: [batch, time, h] -> [batch, time, h].

        `later` [time, time] is true where a position must not see another one, `padding` [batch, source time] beyond
        a source sentence's end.
        """
        y = self.attention(self.attention_norm(x), later, f"{name}.self_attention", dropout)
        x = x + dropout(f"{name}.self_attention", y.to(x.dtype), self.dropout)
        return self._read_memory(x, memory, padding, name, dropout)[0]

    def step(
        self, x: Tensor, past: KeysAndValues, memory: KeysAndValues, padding: Tensor
    ) -> tuple[Tensor, KeysAndValues, Tensor]:
        """One position of k hypotheses: output [batch, k, h], keys and values, weights [batch, heads, k, time]."""
        y, past = self.attention.step(self.attention_norm(x), past)
        x, weights = self._read_memory(x + y.to(x.dtype), memory, padding, "", NO_DROPOUT)
        return x, past, weights

    def _read_memory(
        self, x: Tensor, memory: KeysAndValues, padding: Tensor, name: str, dropout: Dropout
    ) -> tuple[Tensor, Tensor]:
        """The second and third sublayer, for which it does not matter whether rows are positions or hypotheses."""
        name_here = f"{name}.cross_attention"
        y, weights = self.cross_attention(self.cross_attention_norm(x), memory, padding, name_here, dropout)
        x = x + dropout(name_here, y.to(x.dtype), self.dropout)
        return self.feed_forward(x, name, dropout), weights


class DecoderLayers(nn.ModuleList):
    """A list of `DecoderLayer` that says so to type checkers."""

    def __iter__(self) -> Iterator[DecoderLayer]:
        return cast(Iterator[DecoderLayer], super().__iter__())


def _later(time: int, like: Tensor) -> Tensor:
    """Which positions (last dimension) come after a position: [time, time]."""
    return torch.ones(time, time, dtype=torch.bool, device=like.device).triu(1)


def _share(memory: Memory, layer: int) -> KeysAndValues:
    return memory.keys.select(2, layer), memory.values.select(2, layer)
