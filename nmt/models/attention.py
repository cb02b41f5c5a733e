"""Attention over the encoder's outputs: keys once a sentence, then a context for each query."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import AttentionConfig
from nmt.models.encoder import EncoderOutput
from nmt.models.initialisation import Draw, Glorot
from nmt.models.layers import Affine, empty


class Memory(NamedTuple):
    """What a decoder may attend to; all queries of a sentence share it.

    keys: [batch, time, A]; values: [batch, time, C]; mask: [batch, time], true on real tokens.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


class Attention(nn.Module, ABC):
    """Projected keys, a score, and the weighted mean of the values: the frame that the two scores share.

    Parameters
    ----------
    config: `units` is the width A of keys and query.
    query_units: width h of the decoder's output.
    output_units: width C of the encoder's outputs, which the keys are made of.
    value_units: width of what contexts are made of: C, but for encoders with values of their own.
    """

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__()
        self.key = Affine(output_units, config.units)
        self.query = Affine(query_units, config.units)
        self.context_units = value_units

    def memory(self, encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """Prepare what the encoder made of sentences of `lengths` [batch] tokens, once a sentence."""
        outputs = encoded.outputs.transpose(0, 1).contiguous()
        values = outputs if encoded.values is None else encoded.values.transpose(0, 1).contiguous()
        return Memory(self.key(outputs), values, real(lengths, outputs.shape[1]))

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Contexts [batch, k, C] and weights [batch, k, time] of k queries a sentence, [batch, k, h].

        Padded positions score the type's most negative number, so their weight is exactly zero.
        """
        scores = self.score(self.query(query), memory.keys)
        lowest = torch.finfo(scores.dtype).min
        # The gradient of `softmax` has other bits for other numbers of threads; that of `log_softmax` does not.
        weights = torch.where(memory.mask.unsqueeze(1), scores, lowest).log_softmax(dim=-1).exp()
        return torch.bmm(weights, memory.values), weights

    @abstractmethod
    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [batch, k, time] of projected queries [batch, k, A] against keys [batch, time, A]."""


class MultiplicativeAttention(Attention):
    """score = key · query, unscaled (Luong et al. 2015, "dot" on projected vectors)."""

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [batch, k, time] of projected queries [batch, k, A] against keys [batch, time, A]."""
        return torch.bmm(query, keys.transpose(1, 2))


class AdditiveAttention(Attention):
    """score = v · tanh(key + query) (Bahdanau et al. 2015, appendix A.1.2); v has no bias."""

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__(config, query_units, output_units, value_units)
        self.v = empty(config.units)

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [batch, k, time] of projected queries [batch, k, A] against keys [batch, time, A]."""
        # As a matrix product: the gradient of a matrix-vector product has other bits for other numbers of threads.
        return F.linear((keys.unsqueeze(1) + query.unsqueeze(2)).tanh_(), self.v.unsqueeze(0)).squeeze(-1)

    def first_values(self) -> dict[str, Draw]:
        """TensorFlow's default for a vector takes its length for both fans."""
        units = self.v.shape[0]
        return {"v": Glorot.of(units, units)}


class NoAttention(nn.Module):
    """No attention: contexts have no units, and the source reaches the decoder through its first state only.

    Takes the same arguments as the attentions and uses none of them.
    """

    context_units = 0

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__()

    def memory(self, encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """A memory of zero width with the usual mask."""
        time, batch, _ = encoded.outputs.shape
        nothing = encoded.outputs.new_zeros(batch, time, 0)
        return Memory(nothing, nothing, real(lengths, time))

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """A context of zero width, and weights that are all zero."""
        batch, k, _ = query.shape
        return query.new_zeros(batch, k, 0), query.new_zeros(batch, k, memory.mask.shape[1])


def real(lengths: Tensor, time: int) -> Tensor:
    """True on a sentence's own tokens: [batch, time]."""
    return torch.arange(time, device=lengths.device) < lengths.unsqueeze(1)
