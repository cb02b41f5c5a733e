"""One step of a recurrent decoder for a search: the kernels of the training loop, with nothing kept for gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.recurrent.arithmetic import Weight, compute_type, without_autocast

if TYPE_CHECKING:
    from nmt.models.attention import Memory
    from nmt.models.cells import State
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
    layers: those that are to be computed here, where nothing is attended to; None: all.
    """

    def __init__(self, decoder: RecurrentDecoder, table: Tensor | None, layers: Iterable[int] | None = None):
        cells, first, width = list(decoder.cells), decoder.cells.first, decoder.embedding_units
        self.decoder, dtype = decoder, compute_type(first.input_weight)
        self._layers = {number: cells[number] for number in (range(len(cells)) if layers is None else layers)}
        self._kernels = {
            number: kernel([parameter.detach() for parameter in cell.kernel_parameters()], dtype)
            for number, cell in self._layers.items()
            if (kernel := cell.usable_kernel()) is not None
        }
        self._biases = {number: cell.input_bias().detach() for number, cell in self._layers.items()}
        self._inputs = {number: Weight(cell.input_weight, dtype) for number, cell in self._layers.items() if number}
        if 0 in self._layers:
            self._embedding = Weight(first.input_weight[:, :width], dtype)
            self._context = Weight(first.input_weight[:, width:], dtype)
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
        """`RecurrentDecoder.step_rows` without the mixing layer: the stack's output and what else the layer reads.

        The context that the mixing layer reads is the next state's last part. Without a table, `embedded` [rows, e] are
        the tokens' embeddings.
        """
        *parts, context = state
        with without_autocast(tokens.device.type):
            top, new = self._stack(tokens, embedded, parts, context)
        contexts, weights = self.decoder.attention.attend(rows.spread(top), memory)
        return top, (*new, rows.pick(contexts).to(top.dtype)), weights

    def layer(self, number: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of one layer without attention: its output and next state, from what is below it [rows, …]."""
        with without_autocast(x.device.type):
            after = self._through(number, self._project(x) if number == 0 else self._gates(number, x), state)
        return after[0], after

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
            self._context.add_product(gates, context)
        new: list[Tensor] = []
        top = context  # replaced by the first cell's output
        for number, cell in self._layers.items():
            if number:
                gates = self._gates(number, top)
            after = self._through(number, gates, tuple(parts[len(new) : len(new) + cell.state_parts]))
            top = after[0]
            new += after
        return top, new

    def _through(self, number: int, gates: Tensor, before: State) -> State:
        """The next state of a layer; its gates are computed in place."""
        kernel, units = self._kernels[number], self._layers[number].units
        after = [torch.empty_like(part) for part in before]
        kernel.forward(gates, gates.new_empty(len(gates), kernel.extra_blocks * units), list(before), after)
        return tuple(after)

    def _gates(self, number: int, below: Tensor) -> Tensor:
        """What the output of the layer below contributes to a layer's gates."""
        gates = below.new_empty(len(below), len(self._biases[number]))
        self._inputs[number].affine(below, self._biases[number], gates)
        return gates

    def _project(self, embedded: Tensor) -> Tensor:
        gates = embedded.new_empty(len(embedded), len(self._biases[0]))
        self._embedding.affine(embedded, self._biases[0], gates)
        return gates


class SearchMix:
    """The mixing layer of a decoder that has a `SearchStep`: from [rows, units] and [rows, C] to [rows, h]."""

    def __init__(self, decoder: RecurrentDecoder):
        assert decoder.mix is not None
        self._weight = Weight(decoder.mix.weight, compute_type(decoder.mix.weight))
        self._bias = decoder.mix.bias.detach()

    def __call__(self, top: Tensor, context: Tensor) -> Tensor:
        """See `RecurrentDecoder.mixed`."""
        with without_autocast(top.device.type):
            mix = torch.empty_like(top)
            self._weight.affine(torch.cat((top, context), dim=1), self._bias, mix)
            return mix.tanh_()
