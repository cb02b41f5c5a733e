"""Seq2Seq in the form that a search drives: hypotheses in rows, and whatever is the same at every step made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nmt.models.attention import Memory
from nmt.models.decoder import RecurrentDecoder
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.recurrent.search_step import SearchStep
from nmt.models.search_layers import SearchDecoder, SearchMixing, SearchOutput
from nmt.models.seq2seq import Encoded, Seq2Seq, beside

TABLE_BYTES = 128 * 2**20  # the largest table of the tokens' shares of gates that is made
TABLE_PAYS = 2  # steps a row of that table, from which on making it costs less than it saves


class RowsOfSeq2Seq:
    """A `nmt.search.interface.RowModel` of a `Seq2Seq` in evaluation mode, whose parameters must not change meanwhile.

    Made once for a whole text, in the context (autocast or not) in which the text is decoded: weights are cast once;
    recurrent decoders take `SearchStep`, where they can with a table of all tokens' shares of the first gates; and on a
    CPU in float32 the output layer's weight is transposed, with the bias as its last row, so that the product itself
    adds the bias and writes into the same memory at each step.

    Parameters
    ----------
    steps: hypotheses that will be extended by a token, roughly; for a few only the table does not pay.
    """

    def __init__(self, model: Seq2Seq, steps: int = 0):
        self.model, self.decoder = model, model.decoder
        with torch.inference_mode():
            self._output = SearchOutput(model.output.weight, model.output.bias)
            self._decoder = SearchDecoder(model.decoder, model.target_embedding.weight if self._pays(steps) else None)
            self._mixing = SearchMixing(model.decoder)

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

    def step(self, tokens: Tensor, state: Any, encoded: Encoded, rows: HypothesisRows) -> tuple[Tensor, Any, Tensor]:
        """One token further, from `tokens` [rows]: outputs [rows, h], the next state, weights [batch, k, time]."""
        memory = Memory(encoded.keys, encoded.values, encoded.mask)
        embedded = None
        if self._decoder.needs_embeddings:
            embedded = self.model.target_embedding(tokens)
            if encoded.appended.shape[-1]:
                embedded = beside(embedded, rows.shared(encoded.appended))
        made, state, weights = self._decoder(tokens, embedded, state, memory, rows)
        return self._mixing(*made), state, weights

    def logits(self, outputs: Tensor) -> Tensor:
        """The output layer: [rows, h] -> [rows, V]. On a CPU in float32 the next call writes into the same memory."""
        return self._output(outputs)

    def _pays(self, steps: int) -> bool:
        """Whether a table of all tokens' shares of the gates pays and fits."""
        decoder, table = self.decoder, self.model.target_embedding.weight
        if not (isinstance(decoder, RecurrentDecoder) and SearchStep.usable(decoder)):
            return False
        gates = decoder.cells.first.bias
        small = len(table) * len(gates) * gates.element_size() <= TABLE_BYTES
        return small and steps >= TABLE_PAYS * len(table) and not self.model.config.bridge.units
