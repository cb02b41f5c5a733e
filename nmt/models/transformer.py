"""The Transformer encoder, and the layers that it shares with the decoder (Vaswani et al. 2017).

Layers normalise their input instead of their output ("pre-norm"; Wang et al. 2019, Xiong et al. 2020), which trains
without trouble at any depth, and a last normalisation stands behind the top layer:

    x <- x + dropout(sublayer(norm(x)))

Inside, tensors have the batch first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import EncoderConfig
from nmt.models.attention import real
from nmt.models.dropout import Dropout
from nmt.models.encoder import EncoderOutput, mean_over_time, zero_beyond_end
from nmt.models.initialisation import Constant, Draw
from nmt.models.layers import Affine, empty
from nmt.models.multi_head import SelfAttention
from nmt.models.positions import sinusoids
from nmt.models.stages import SOURCE, Part, Slot


@dataclass(frozen=True)
class LayerConfig:
    """What the layers of a Transformer are made of; dropout values are probabilities of dropping.

    units: width of the residual path. heads: of the self-attention; they divide `units`.
    feed_forward: width of the feed-forward sublayer's inside.
    dropout: of a unit of a sublayer's output, and of the embeddings with their positions.
    dropout_attention: of a weight of the self-attention. dropout_relu: of a unit inside the feed-forward sublayer.
    """

    units: int
    heads: int
    feed_forward: int
    dropout: float
    dropout_attention: float
    dropout_relu: float


class TransformerEncoder(nn.Module):
    """Layers of self-attention and feed-forward sublayers over the whole sentence; the final state is its mean.

    Parameters
    ----------
    config: units and layers; there are no cells.
    input_units: width e of the embeddings, which are projected where it is not `config.units`.
    The others: see `LayerConfig`; the defaults are those of Vaswani et al.'s base model.
    """

    def __init__(
        self,
        config: EncoderConfig,
        input_units: int,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        dropout_attention: float = 0.0,
        dropout_relu: float = 0.0,
    ):
        super().__init__()
        layer = LayerConfig(config.units, heads, feed_forward, dropout, dropout_attention, dropout_relu)
        self.input = TransformerInput(input_units, config.units)
        self.layers = nn.ModuleList(EncoderLayer(layer) for _ in range(config.layers))
        self.norm = LayerNorm(config.units)
        self.dropout = dropout
        self.output_units = self.value_units = self.state_units = config.units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        blocked = _padding(lengths, embedded.shape[0])
        x = self._enter(embedded, dropout)
        for number, layer in enumerate(self.layers):
            x = layer(x, blocked, f"encoder.{number}", dropout)
        outputs = zero_beyond_end(self.norm(x).transpose(0, 1), lengths)
        return EncoderOutput(outputs, mean_over_time(outputs, lengths))

    def parts(self, fields: Collection[str], directions: bool = True) -> list[Part]:
        """A part a layer; the last normalisation goes with the top one."""
        return [self._part(number, fields) for number in range(len(self.layers))]

    def _part(self, number: int, fields: Collection[str]) -> Part:
        last, below, above = number == len(self.layers) - 1, f"encoder.{number}", f"encoder.{number + 1}"

        def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            lengths, time = slot.batch.source_lengths, slot.batch.source.shape[1]
            x = self._enter(carried[SOURCE], slot.dropout) if number == 0 else carried[below]
            x = self.layers[number](x, _padding(lengths, time), f"encoder.{number}", slot.dropout)
            if not last:
                return {above: x}
            outputs = zero_beyond_end(self.norm(x).transpose(0, 1), lengths)
            made = {"outputs": outputs}
            if "final_state" in fields:
                made["final_state"] = mean_over_time(outputs, lengths)
            return made

        modules = [self.layers[number], *([self.input] if number == 0 else []), *([self.norm] if last else [])]
        reads = [SOURCE if number == 0 else below]
        return Part(f"encoder.{number}", run, reads, fields if last else [above], tuple(modules))

    def _enter(self, embedded: Tensor, dropout: Dropout) -> Tensor:
        return dropout("encoder.embedded", self.input(embedded.transpose(0, 1), 0, len(embedded)), self.dropout)


def _padding(lengths: Tensor, time: int) -> Tensor:
    """Where no position may look: [batch, 1, 1, time]."""
    return ~real(lengths, time)[:, None, None]


class TransformerInput(nn.Module):
    """Embeddings times the square root of their width, projected where the widths differ, plus sinusoidal positions.

    Parameters
    ----------
    embedding_units: width e of the embeddings. units: width of the layers.
    """

    def __init__(self, embedding_units: int, units: int):
        super().__init__()
        self.projection = Affine(embedding_units, units) if embedding_units != units else None
        self.scale, self.units = embedding_units**0.5, units

    def forward(self, embedded: Tensor, first: int, count: int) -> Tensor:
        """[batch, …, count or 1, e] -> the same with `units`: positions `first`, `first` + 1, …, counted from 0."""
        x = embedded * self.scale
        if self.projection is not None:
            x = self.projection(x).to(x.dtype)
        return x + sinusoids(first, count, self.units, x)


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network, each normalised, dropped out and added to its input."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.attention_norm = LayerNorm(config.units)
        self.attention = SelfAttention(config.units, config.heads, config.dropout_attention)
        self.feed_forward = FeedForward(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, blocked: Tensor, name: str, dropout: Dropout) -> Tensor:
        """[batch, time, units] -> [batch, time, units]; `blocked` as in `SelfAttention`."""
        name_here = f"{name}.self_attention"
        y = self.attention(self.attention_norm(x), blocked, name_here, dropout)
        return self.feed_forward(x + dropout(name_here, y.to(x.dtype), self.dropout), name, dropout)


class FeedForward(nn.Module):
    """The feed-forward sublayer, residual connection included: x + W_2 relu(W_1 norm(x) + b_1) + b_2."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.norm = LayerNorm(config.units)
        self.inner = Affine(config.units, config.feed_forward)
        self.outer = Affine(config.feed_forward, config.units)
        self.dropout, self.dropout_relu = config.dropout, config.dropout_relu

    def forward(self, x: Tensor, name: str, dropout: Dropout) -> Tensor:
        """[batch, time, units] -> [batch, time, units]."""
        inside = dropout(f"{name}.feed_forward.relu", self.inner(self.norm(x)).relu(), self.dropout_relu)
        return x + dropout(f"{name}.feed_forward", self.outer(inside).to(x.dtype), self.dropout)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) whose gradients have the same bits for any number of threads.

    torch adds up the gradients of gain and bias in one piece a thread; here they are sums of elementwise products.
    """

    def __init__(self, units: int):
        super().__init__()
        self.gain = empty(units)
        self.bias = empty(units)

    def forward(self, x: Tensor) -> Tensor:
        """[..., units] -> [..., units]."""
        return torch.addcmul(self.bias, F.layer_norm(x, self.gain.shape), self.gain)

    def first_values(self) -> dict[str, Draw]:
        """A gain of one, a bias of zero."""
        return {"gain": Constant(1.0), "bias": Constant(0.0)}
