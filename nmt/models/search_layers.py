"""What a search computes of a decoder and of the output layer at each step, with what all steps share made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.models.attention import Memory
from nmt.models.decoder import RecurrentDecoder
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.recurrent.arithmetic import compute_type
from nmt.models.recurrent.search_step import SearchMix, SearchStep


class SearchDecoder:
    """One token further of any decoder, up to its mixing layer, where it has one that can be told apart.

    Recurrent decoders take `SearchStep`, where they can. Their parameters must not change meanwhile.

    Parameters
    ----------
    table: [V, e], where a table of all tokens' shares of the first gates pays; see `SearchStep`.
    """

    def __init__(self, decoder: Any, table: Tensor | None = None):
        self.decoder, self.step = decoder, None
        if isinstance(decoder, RecurrentDecoder) and SearchStep.usable(decoder):
            self.step = SearchStep(decoder, table)

    @property
    def needs_embeddings(self) -> bool:
        """Whether the tokens' embeddings have to be given."""
        return self.step is None or self.step.table is None

    def __call__(
        self, tokens: Tensor, embedded: Tensor | None, state: Any, memory: Memory, rows: HypothesisRows
    ) -> tuple[tuple[Tensor, ...], Any, Tensor]:
        """What `SearchMixing` reads, [rows, …] each, the next state, and the weights [batch, k, time]."""
        if self.step is not None:
            top, state, weights = self.step(tokens, embedded, state, memory, rows)
            return (top, state[-1]), state, weights
        assert embedded is not None
        if _mixes_apart(self.decoder):
            return self.decoder.tops_of_rows(self.decoder.contribute(embedded), state, memory, rows)
        if hasattr(self.decoder, "step_rows"):
            mix, state, weights = self.decoder.step_rows(self.decoder.contribute(embedded), state, memory, rows)
            return (mix,), state, weights
        mix, state, weights = self.decoder.step(rows.spread(embedded), tuple(map(rows.spread, state)), memory)
        return (rows.pick(mix),), tuple(map(rows.pick, state)), weights


class SearchMixing:
    """What the output layer reads [rows, h], from what `SearchDecoder` made of the same decoder."""

    def __init__(self, decoder: Any):
        self._decoder = decoder if _mixes_apart(decoder) and decoder.mix is not None else None
        self._mix = SearchMix(decoder) if self._decoder is not None and SearchStep.usable(decoder) else None

    def __call__(self, top: Tensor, context: Tensor | None = None) -> Tensor:
        """[rows, units] and [rows, C] to [rows, h]; without a mixing layer `top` as it is."""
        if self._decoder is None or context is None:
            return top
        return self._decoder.mixed(top, context) if self._mix is None else self._mix(top, context)


def _mixes_apart(decoder: Any) -> bool:
    """Whether the steps of a decoder are those of `RecurrentDecoder`, whose mixing layer comes last."""
    if not isinstance(decoder, RecurrentDecoder):
        return False
    return SearchStep.usable(decoder) or type(decoder).step_rows is RecurrentDecoder.step_rows


class SearchOutput:
    """The output layer, or some words of it: [rows, h] -> [rows, words].

    On a CPU in float32 the weight is transposed, with the bias as its last row, so that the product itself adds the
    bias; and each call writes into the same memory. A word's logit has the same bits whatever words are beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        dtype = compute_type(weight)
        self._weight, self._bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self._columns: Tensor | None = None
        self._buffer = weight.new_empty(0)
        if dtype == weight.dtype and weight.device.type == "cpu":
            self._columns = torch.cat((self._weight.t(), self._bias.unsqueeze(0)))

    def __call__(self, outputs: Tensor) -> Tensor:
        """Logits; on a CPU in float32 the next call overwrites them."""
        if self._columns is None:
            return F.linear(outputs.to(self._weight.dtype), self._weight, self._bias)
        words = self._columns.shape[1]
        if self._buffer.numel() < len(outputs) * words:
            self._buffer = outputs.new_empty(len(outputs) * words)
        logits = self._buffer[: len(outputs) * words].view(len(outputs), words)
        return torch.mm(torch.cat((outputs, outputs.new_ones(len(outputs), 1)), dim=1), self._columns, out=logits)
