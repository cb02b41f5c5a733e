"""One step of a recurrent decoder for a search: the kernels of the training loop, with nothing kept for gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.recurrent.arithmetic import Weight, compute_type, without_autocast

if TYPE_CHECKING:
    from nmt.models.attention import Memory
    from nmt.models.decoder import DecoderState, RecurrentDecoder


class SearchStep:
    """The step of a decoder whose cells have kernels, and whose layers pass on what they make and nothing else.

    Weights are cast to the type of matrix products once, and the gates of a step are computed in place.

    Parameters
    ----------
    decoder: one that is `usable`; its parameters must not change meanwhile.
    table: [V, e] embeddings of all tokens, whose share of the first cell's gates is computed here and looked up at each
        step. None: each step computes its own tokens' share. A row of a product has the same bits whatever the other
        rows, so this changes none.
    """

    def __init__(self, decoder: RecurrentDecoder, table: Tensor | None):
        first, width = decoder.cells.first, decoder.embedding_units
        self.decoder, dtype = decoder, compute_type(first.input_weight)
        self.kernels = [
            kernel([parameter.detach() for parameter in cell.kernel_parameters()], dtype)
            for cell in decoder.cells
            if (kernel := cell.usable_kernel()) is not None
        ]
        self.biases = [cell.input_bias().detach() for cell in decoder.cells]
        self.inputs = [Weight(cell.input_weight, dtype) for cell in list(decoder.cells)[1:]]
        self.embedding = Weight(first.input_weight[:, :width], dtype)
        self.context = Weight(first.input_weight[:, width:], dtype)
        self.mix = None if decoder.mix is None else Weight(decoder.mix.weight, dtype)
        self.table: Tensor | None = None
        if table is not None:
            with without_autocast(table.device.type):
                self.table = self._project(table)

    @staticmethod
    def usable(decoder: RecurrentDecoder) -> bool:
        """Whether this is the step of `decoder`."""
        plain = not decoder.residual.active and decoder.residual.input_transform is None
        return plain and all(cell.usable_kernel() for cell in decoder.cells)

    def __call__(
        self, tokens: Tensor, embedded: Tensor | None, state: DecoderState, memory: Memory, rows: HypothesisRows
    ) -> tuple[Tensor, DecoderState, Tensor]:
        """See `RecurrentDecoder.step_rows`. Without a table, `embedded` [rows, e] are the tokens' embeddings."""
        *parts, context = state
        with without_autocast(tokens.device.type):
            top, new = self._stack(tokens, embedded, parts, context)
        contexts, weights = self.decoder.attention.attend(rows.spread(top), memory)
        context = rows.pick(contexts).to(top.dtype)
        if self.mix is None or self.decoder.mix is None:
            return top, (*new, context), weights
        with without_autocast(tokens.device.type):
            mix = torch.empty_like(top)
            self.mix.affine(torch.cat((top, context), dim=1), self.decoder.mix.bias, mix)
            return mix.tanh_(), (*new, context), weights

    def _stack(
        self, tokens: Tensor, embedded: Tensor | None, parts: list[Tensor], context: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """What the cells put out, and their next states."""
        if self.table is not None:
            gates = F.embedding(tokens, self.table)
        else:
            assert embedded is not None
            gates = self._project(embedded)
        if context.shape[1]:
            self.context.add_product(gates, context)
        new: list[Tensor] = []
        top = context  # replaced by the first cell's output
        for number, (cell, kernel) in enumerate(zip(self.decoder.cells, self.kernels, strict=True)):
            if number:
                gates = gates.new_empty(len(tokens), len(self.biases[number]))
                self.inputs[number - 1].affine(top, self.biases[number], gates)
            before = parts[len(new) : len(new) + cell.state_parts]
            after = [torch.empty_like(part) for part in before]
            kernel.forward(gates, gates.new_empty(len(tokens), kernel.extra_blocks * cell.units), before, after)
            top = after[0]
            new += after
        return top, new

    def _project(self, embedded: Tensor) -> Tensor:
        gates = embedded.new_empty(len(embedded), len(self.biases[0]))
        self.embedding.affine(embedded, self.biases[0], gates)
        return gates
