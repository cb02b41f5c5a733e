"""Attention over the encoder's outputs: keys once a sentence, then a context for each query."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import AttentionConfig
from nmt.errors import UserError
from nmt.models.encoder import EncoderOutput
from nmt.models.initialisation import Constant, Draw, Glorot
from nmt.models.layers import Affine, empty
from nmt.models.recurrent.attention_kernels import AdditiveKernel, AttentionKernel, MultiplicativeKernel


class Memory(NamedTuple):
    """What a decoder may attend to; all queries of a sentence share it.

    keys: [batch, time, A]; values: [batch, time, C]; mask: [batch, time], true where attention may look: on real
    tokens, or with `model.attention.masked=false` everywhere. A Transformer decoder's keys and values have a form of
    their own, with the batch first too.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


class Attention(nn.Module, ABC):
    """Keys, a score, and the weighted mean of the values: the frame that all scores share.

    Keys and query are affine maps of the encoder's and the decoder's outputs, unless a subclass has `projected` false.

    Parameters
    ----------
    config: `units` is the width A of keys and query; `scaling` and `masked` go for every score.
    query_units: width h of the decoder's output.
    output_units: width C of the encoder's outputs, which the keys are made of.
    value_units: width of what contexts are made of: C, but for encoders with values of their own.
    """

    projected: ClassVar[bool] = True
    kernel: ClassVar[type[AttentionKernel] | None] = None  # `attend` for the decoder's loop, its gradient by hand

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__()
        self.units = config.units if self.projected else query_units
        self.key = Affine(output_units, self.units) if self.projected else nn.Identity()
        self.query = Affine(query_units, self.units) if self.projected else nn.Identity()
        self.context_units = value_units
        self.masked = config.masked

    def memory(self, encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """Prepare what the encoder made of sentences of `lengths` [batch] tokens, once a sentence."""
        outputs = encoded.outputs.transpose(0, 1).contiguous()
        values = outputs if encoded.values is None else encoded.values.transpose(0, 1).contiguous()
        return Memory(self.key(outputs), values, self.visible(lengths, outputs.shape[1]))

    def visible(self, lengths: Tensor, time: int) -> Tensor:
        """The memory's mask [batch, time]."""
        mask = real(lengths, time)
        return mask if self.masked else torch.ones_like(mask)

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Contexts [batch, k, C] and weights [batch, k, time] of k queries a sentence, [batch, k, h].

        Positions outside the mask score the type's most negative number, so their weight is exactly zero.
        """
        scores = self.score(self.query(query), memory.keys)
        lowest = torch.finfo(scores.dtype).min
        # The gradient of `softmax` has other bits for other numbers of threads; that of `log_softmax` does not.
        weights = torch.where(memory.mask.unsqueeze(1), scores, lowest).log_softmax(dim=-1).exp()
        return torch.bmm(weights, memory.values), weights

    def usable_kernel(self) -> type[AttentionKernel] | None:
        """The kernel of this very attention: a subclass with a score of its own, or another `attend`, inherits none."""
        defining = next(base for base in type(self).__mro__ if "score" in vars(base) or "attend" in vars(base))
        found: type[AttentionKernel] | None = vars(defining).get("kernel")
        return found

    def kernel_inputs(self, memory: Memory) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Keys with every factor in them, and what else the kernel's score needs."""
        return memory.keys, ()

    @abstractmethod
    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [batch, k, time] of queries [batch, k, A] against keys [batch, time, A]."""


class MultiplicativeAttention(Attention):
    """score = g · key · query (Luong et al. 2015, "dot" on projected vectors).

    The factor g is 1 without scaling (the published system), 1/√A with `sqrt` (Vaswani et al. 2017), and with `learned`
    a parameter that starts at 1 (as in TensorFlow's LuongAttention).
    """

    kernel = MultiplicativeKernel

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__(config, query_units, output_units, value_units)
        self.factor = 1 / math.sqrt(self.units) if config.scaling == "sqrt" else 1.0
        self.scale = empty(1) if config.scaling == "learned" else None

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [batch, k, time] of queries [batch, k, A] against keys [batch, time, A]."""
        if self.scale is not None:
            # One factor a unit, so that its gradient is summed in an order that does not depend on threads.
            query = query * self.scale.expand(query.shape[-1])
        elif self.factor != 1.0:
            query = query * self.factor
        return torch.bmm(query, keys.transpose(1, 2))

    def kernel_inputs(self, memory: Memory) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Keys times the factor."""
        if self.scale is not None:
            return memory.keys * self.scale.expand(memory.keys.shape[-1]), ()
        return (memory.keys if self.factor == 1.0 else memory.keys * self.factor), ()

    def first_values(self) -> dict[str, Draw]:
        """The learned factor starts at 1."""
        return {"scale": Constant(1.0)}


class DotAttention(MultiplicativeAttention):
    """score = g · output · query on the encoder's outputs and the decoder's as they are, with g as above.

    There are no projections, so both must have the same width, and `config.units` means nothing. Raises UserError for
    different widths.
    """

    projected = False

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__(config, query_units, output_units, value_units)
        if query_units != output_units:
            raise UserError(
                f"attention 'dot' has no projections, and the decoder's output has {query_units} units while the "
                f"encoder's outputs have {output_units}",
                where="model.attention.name",
                hint="make the widths equal, or model/attention=multiplicative",
            )


class AdditiveAttention(Attention):
    """score = v · tanh(key + query) (Bahdanau et al. 2015, appendix A.1.2); v has no bias.

    With `scaling: learned` v is g v/‖v‖ with a learned g that starts at 1/√A (weight normalisation, Salimans and Kingma
    2016, as TensorFlow's BahdanauAttention has it). A constant factor would be part of v, so `sqrt` is refused.
    """

    kernel = AdditiveKernel

    def __init__(self, config: AttentionConfig, query_units: int, output_units: int, value_units: int):
        super().__init__(config, query_units, output_units, value_units)
        self.v = empty(config.units)
        self.scale = empty(1) if config.scaling == "learned" else None

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [batch, k, time] of queries [batch, k, A] against keys [batch, time, A]."""
        # As a matrix product: the gradient of a matrix-vector product has other bits for other numbers of threads.
        return F.linear((keys.unsqueeze(1) + query.unsqueeze(2)).tanh_(), self._direction().unsqueeze(0)).squeeze(-1)

    def kernel_inputs(self, memory: Memory) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Keys and v."""
        return memory.keys, (self._direction(),)

    def first_values(self) -> dict[str, Draw]:
        """TensorFlow's default for a vector takes its length for both fans."""
        units = self.v.shape[0]
        return {"v": Glorot.of(units, units), "scale": Constant(1 / math.sqrt(units))}

    def _direction(self) -> Tensor:
        return self.v if self.scale is None else self.v * (self.scale / torch.linalg.vector_norm(self.v))


class NoAttention(nn.Module):
    """No attention: contexts have no units, and the source reaches the decoder through the bridge alone.

    Both `none_state` (through the first state) and `none_input` (beside every input). Takes the same arguments as the
    attentions and uses none of them.
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
