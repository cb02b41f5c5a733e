"""Multi-head attention (Vaswani et al. 2017, section 3.2): of a sequence over itself, and of a decoder over its memory.

Everything here has the batch first. Scores, weights and contexts are plain tensor code rather than
`F.scaled_dot_product_attention`, which takes no addressed dropout mask, returns no weights, and on a CPU cannot be
differentiated twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmt.config.schema import AttentionConfig
from nmt.models.dropout import NO_DROPOUT, Dropout
from nmt.models.initialisation import Constant, Draw, Glorot
from nmt.models.layers import Affine

# Keys and values of one attention, both [batch, …, heads, time, A / heads].
KeysAndValues = tuple[Tensor, Tensor]


class PackedAffine(Affine):
    """Several affine maps of the same input as one matrix product; each is drawn with fans of its own.

    Parameters
    ----------
    in_features: width of the input. out_features: width of each map's output. maps: their number.
    """

    def __init__(self, in_features: int, out_features: int, maps: int):
        super().__init__(in_features, maps * out_features)
        self.maps = maps

    def first_values(self) -> dict[str, Draw]:
        """How each parameter starts; see `nmt.models.initialisation`."""
        return {"weight": Glorot.of(self.in_features, self.out_features // self.maps), "bias": Constant(0.0)}


class SelfAttention(nn.Module):
    """Attention of each position of a sequence over the positions of the same sequence.

    Parameters
    ----------
    units: width of input and output, of all heads together. heads: number of heads, which divides `units`.
    dropout: probability of dropping a weight.
    """

    def __init__(self, units: int, heads: int, dropout: float):
        super().__init__()
        self.query_key_value = PackedAffine(units, units, 3)
        self.output = Affine(units, units)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, blocked: Tensor, name: str, dropout: Dropout) -> Tensor:
        """All positions at once: [batch, time, units] -> [batch, time, units].

        `blocked` is true where a position (last but one dimension) must not see another one (last dimension) and
        broadcasts to [batch, heads, time, time].
        """
        packed = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        query, keys, values = packed.permute(2, 0, 3, 1, 4)
        context, _ = attend(query, keys, values, blocked, f"{name}.weights", self.dropout, dropout)
        return self.output(context)

    def step(self, x: Tensor, past: KeysAndValues) -> tuple[Tensor, KeysAndValues]:
        """One more position of k hypotheses a sentence [batch, k, units], and their keys and values with it.

        `past` holds those of the positions before, [batch, k, heads, positions, units / heads] each.
        """
        batch, k, _ = x.shape
        packed = self.query_key_value(x).unflatten(-1, (3, self.heads, 1, -1))
        query, *new = packed.unbind(2)
        keys, values = (torch.cat((old.to(one.dtype), one), dim=3) for old, one in zip(past, new, strict=True))
        query, all_keys, all_values = (part.flatten(0, 1) for part in (query, keys, values))
        context, _ = attend(query, all_keys, all_values, None, "", 0.0, NO_DROPOUT)
        return self.output(context.view(batch, k, -1)), (keys, values)


class MultiHeadAttention(nn.Module):
    """Attention of a Transformer decoder's layer over what the encoder made.

    Parameters
    ----------
    config: `units` is the width A of keys, queries and values, of all heads together.
    query_units: width h of the decoder.
    output_units: width of the encoder's outputs, which keys are made of.
    value_units: width of the encoder's values, which values are made of.
    heads: number of heads, which divides A.
    dropout: probability of dropping a weight.
    """

    def __init__(
        self,
        config: AttentionConfig,
        query_units: int,
        output_units: int,
        value_units: int,
        heads: int = 8,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.query = Affine(query_units, config.units)
        self.key = Affine(output_units, config.units)
        self.value = Affine(value_units, config.units)
        self.output = Affine(config.units, query_units)
        self.heads, self.dropout = heads, dropout

    def keys_and_values(self, outputs: Tensor, values: Tensor) -> KeysAndValues:
        """From the encoder's outputs and values [time, batch, …]: two of [batch, heads, time, A / heads]."""
        projected = (self.key(outputs), self.value(values))
        keys, values = (part.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3) for part in projected)
        return keys, values

    def forward(
        self, x: Tensor, memory: KeysAndValues, blocked: Tensor, name: str, dropout: Dropout
    ) -> tuple[Tensor, Tensor]:
        """Queries [batch, rows, h] to outputs [batch, rows, h] and weights [batch, heads, rows, time].

        `blocked` [batch, time] is true on padding, whose weight is exactly zero.
        """
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        context, weights = attend(query, *memory, blocked[:, None, None], f"{name}.weights", self.dropout, dropout)
        return self.output(context), weights


def attend(
    query: Tensor, keys: Tensor, values: Tensor, blocked: Tensor | None, name: str, p: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(q · k / sqrt(d)) · v, of every head.

    Queries [batch, heads, rows, d], keys and values [batch, heads, time, d] to contexts [batch, rows, heads · d] and
    weights [batch, heads, rows, time] before the dropout mask called `name`. `blocked` broadcasts to the weights.
    """
    batch, heads, _, width = query.shape
    scores = torch.bmm((query * width**-0.5).flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).unflatten(0, (batch, heads))
    if blocked is not None:
        scores = scores.masked_fill(blocked, torch.finfo(scores.dtype).min)
    # The gradient of `softmax` has other bits for other numbers of threads; that of `log_softmax` does not.
    weights = scores.log_softmax(dim=-1).exp()
    context = torch.bmm(dropout(name, weights, p).flatten(0, 1), values.flatten(0, 1))
    return context.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2), weights
