"""Seq2Seq in the form that a search drives: hypotheses in rows, and whatever is the same at every step made once."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.models.attention import Memory
from nmt.models.decoder import Inputs
from nmt.models.packing import Packing
from nmt.models.seq2seq import Encoded, Seq2Seq, beside

Layers = TypeVar("Layers", bound=nn.Module)

TABLE_BYTES = 128 * 2**20  # the largest table of contributions that is made
TABLE_PAYS = 2  # steps a row of that table, from which on making it costs less than it saves


class RowsOfSeq2Seq:
    """A `nmt.search.interface.RowModel` of a `Seq2Seq` in evaluation mode, whose parameters must not change meanwhile.

    Made once for a whole text, in the context (autocast or not) in which the text is decoded:

    - the target embeddings' share of the first cell's gates, for every token: a step then looks it up instead of
      multiplying. A row of a product has the same bits whatever the other rows, so this changes none;
    - on a CPU in float32 the output layer's weight, transposed, with the bias as its last row, so that the product
      itself adds the bias and writes into the same memory at each step;
    - under autocast the decoder's weights in the low precision.

    Parameters
    ----------
    steps: hypotheses that will be extended by a token, roughly; for a few only the table does not pay.
    """

    def __init__(self, model: Seq2Seq, steps: int = 0):
        self.model = model
        self.decoder, self.output = model.decoder, model.output
        weight = model.output.weight
        kind = weight.device.type
        self._columns: Tensor | None = None
        self._buffer = weight.new_empty(0)
        with torch.inference_mode():
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                self.decoder, self.output = _in_precision(model.decoder, dtype), _in_precision(model.output, dtype)
            elif kind == "cpu":
                self._columns = torch.cat((weight.t(), model.output.bias.unsqueeze(0)))
            self._table = self._contributions(steps)

    @property
    def packs(self) -> bool:
        """Whether `step` takes any rows; else it needs all places of the grid."""
        return hasattr(self.decoder, "step_rows")

    def in_rows(self, steps: int = 0) -> RowsOfSeq2Seq:
        """Itself."""
        return self

    def encode(self, source: Tensor, lengths: Tensor) -> Encoded:
        """See `Seq2Seq.encode`."""
        return self.model.encode(source, lengths)

    def start(self, encoded: Encoded) -> Any:
        """The decoder's state before the first token: tensors [batch, ...], a row a sentence."""
        return tuple(part.squeeze(1) for part in self.model.start(encoded, 1))

    def step(self, tokens: Tensor, state: Any, encoded: Encoded, packing: Packing) -> tuple[Tensor, Any, Tensor]:
        """One token further, from `tokens` [rows]: outputs [rows, h], the next state, weights [batch, k, time]."""
        memory = Memory(encoded.keys, encoded.values, encoded.mask)
        if self.packs:
            return self.decoder.step_rows(self._inputs(tokens, encoded, packing), state, memory, packing)
        embedded = beside(self.model.target_embedding(packing.spread(tokens)), encoded.appended.unsqueeze(1))
        mix, state, weights = self.decoder.step(embedded, tuple(map(packing.spread, state)), memory)
        return packing.pick(mix), tuple(map(packing.pick, state)), weights

    def logits(self, outputs: Tensor) -> Tensor:
        """The output layer: [rows, h] -> [rows, V]. On a CPU the next call writes into the same memory."""
        if self._columns is None:
            return self.output(outputs)
        vocabulary = self._columns.shape[1]
        if self._buffer.numel() < len(outputs) * vocabulary:
            self._buffer = outputs.new_empty(len(outputs) * vocabulary)
        logits = self._buffer[: len(outputs) * vocabulary].view(len(outputs), vocabulary)
        return torch.mm(torch.cat((outputs, outputs.new_ones(len(outputs), 1)), dim=1), self._columns, out=logits)

    def _inputs(self, tokens: Tensor, encoded: Encoded, packing: Packing) -> Inputs:
        embedded = self.model.target_embedding(tokens)
        if self._table is not None:
            entry, projected = self._table
            return Inputs(
                embedded if projected is not None else F.embedding(tokens, entry),
                None if projected is None else F.embedding(tokens, projected),
            )
        if encoded.appended.shape[-1]:
            embedded = beside(embedded, packing.shared(encoded.appended))
        return self.decoder.contribute(embedded)

    def _contributions(self, steps: int) -> Inputs | None:
        """What each token contributes to the decoder's input, [V, ...]; None where the table does not pay or fit."""
        table = self.model.target_embedding.weight
        if not self.packs or self.model.config.bridge.units or steps < TABLE_PAYS * len(table):
            return None
        one = self.decoder.contribute(table[:1])
        width = one.entry if one.projected is None else one.projected
        if width.shape[1] * width.element_size() * len(table) > TABLE_BYTES:
            return None
        return self.decoder.contribute(table)


def _in_precision(module: Layers, dtype: torch.dtype) -> Layers:
    """A copy of `module` whose matrices have another type; autocast would cast them anew at every step."""
    cast = {
        id(parameter): nn.Parameter(parameter.to(dtype), requires_grad=False) if parameter.dim() > 1 else parameter
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, dict(cast))
