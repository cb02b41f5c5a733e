"""The recurrent decoder: its training form over a whole target, and one step of it for decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import DecoderConfig
from nmt.models.attention import Attention, Memory, NoAttention
from nmt.models.cells import Cell, CellStack, State
from nmt.models.dropout import Dropout
from nmt.models.encoder import EncoderOutput
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.layers import Affine
from nmt.models.plain import is_plain
from nmt.models.recurrent.decoder_loop import Attended, Layer, decode_sequence
from nmt.models.recurrent.kernels import CellKernel
from nmt.models.recurrent.layer_loop import layer_sequence
from nmt.models.residual import Residual
from nmt.models.watch import GradientWatch

# Every cell's state parts [batch, k, h] in order, then the last context [batch, k, C].
DecoderState = tuple[Tensor, ...]
# The embeddings [batch, e] that step t > 0 is given, from t and the outputs [batch, h] of step t - 1.
Feed = Callable[[int, Tensor], Tensor]


class _Masks(NamedTuple):
    """Dropout masks of one step: of each layer's input (see `Inputs` for the first one's) and of each output."""

    inputs: list[Tensor | None]
    outputs: list[Tensor | None]


class Inputs(NamedTuple):
    """What the embeddings of a step, or of all steps, contribute to the stack's input; the context's share comes later.

    entry: their share of what enters the stack [..., widths]: of [embedding; context] itself, or of its transform.
    projected: their share of the first cell's projected input [..., gates]; None with an input transform, which lets
        nothing be projected before the context is known.
    """

    entry: Tensor
    projected: Tensor | None

    def by_step(self) -> list[Inputs]:
        """[time, batch, …] cut into steps."""
        time = len(self.entry)
        return [Inputs(*parts) for parts in zip(self.entry.unbind(0), _by_step(self.projected, time), strict=True)]


class RecurrentDecoder(nn.Module):
    """A stack of cells that is fed the last context, attention, and a tanh mixing layer (Britz et al. 2017, section 2).

        s_t = cells([embedding_t; context_{t-1}])    context_t = attend(s_t)    mix_t = tanh(W [s_t; context_t] + b)

    The context before the first step is zero. The query is the stack's output of the *same* step (Luong et al. 2015).
    Without attention the input is the embedding and the mix is the stack's output itself. Residual connections go from
    [embedding; context] up, past the dropout masks.

    Parameters
    ----------
    config: units h, layers L, cell and residual connections.
    attention: the attention to use, which the decoder owns from now on.
    embedding_units: width e of the target embeddings, with what a bridge appends to them.
    """

    def __init__(self, config: DecoderConfig, attention: Attention | NoAttention, embedding_units: int):
        super().__init__()
        input_units = embedding_units + attention.context_units
        self.residual = Residual(config.residual, input_units, config.units, config.layers)
        self.cells = CellStack(config.cell, "model.decoder.cell", self.residual.widths[:-1], config.units)
        self.attention = attention
        stack_units = self.residual.output_units
        self.mix = Affine(stack_units + attention.context_units, config.units) if attention.context_units else None
        self.config = config.cell
        self.units = config.units
        self.embedding_units = embedding_units
        self.output_units = config.units if attention.context_units else stack_units
        self.state_units = self.cells.state_units

    def memory(self, encoded: EncoderOutput, lengths: Tensor) -> Memory:
        """What the decoder attends to, made once a sentence of `lengths` [batch] tokens."""
        return self.attention.memory(encoded, lengths)

    def forward(
        self,
        embedded: Tensor,
        memory: Memory,
        first: Tensor,
        dropout: Dropout,
        feed: Feed | None = None,
        watch: GradientWatch | None = None,
    ) -> Tensor:
        """Training form: outputs of the mixing layer [time, batch, h], before the softmax layer.

        `embedded` [time, batch, e] holds the embeddings of the given previous target tokens, `first` [batch,
        state_units] the cells' first states side by side. `feed`, where it is given, makes the embeddings of every step
        but the first. `watch` is told of each layer's output at each step, before dropout, as "decoder.<layer>".
        """
        return self.mixed(*self.steps(embedded, memory, first, dropout, feed, watch))

    def steps(
        self,
        embedded: Tensor,
        memory: Memory,
        first: Tensor,
        dropout: Dropout,
        feed: Feed | None = None,
        watch: GradientWatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` without the mixing layer: outputs of the stack [time, batch, …] and contexts [time, batch, C]."""
        loop = None if feed is not None or is_plain() else self._loop(embedded, memory, dropout)
        if loop is None:
            return self._unrolled(embedded, memory, first, dropout, feed, watch)
        return decode_sequence(embedded, first, self.residual, *loop, watch)

    def _loop(self, embedded: Tensor, memory: Memory, dropout: Dropout) -> tuple[list[Layer], Attended | None] | None:
        """What the hand-written loop works on; None where a cell or the attention has no kernel."""
        cells, attended = list(self.cells), None
        kernels = [cell.usable_kernel() for cell in cells]
        if isinstance(self.attention, Attention):
            kernel = self.attention.usable_kernel()
            if kernel is None:
                return None
            keys, parameters = self.attention.kernel_inputs(memory)
            query = self.attention.query if isinstance(self.attention.query, nn.Linear) else None
            like = embedded.dtype
            attended = Attended(
                kernel,
                keys.to(like),
                memory.values.to(like),
                memory.mask,
                parameters,
                None if query is None else query.weight,
                None if query is None else query.bias,
            )
        layers = []
        for number, (cell, kernel_of_cell) in enumerate(zip(cells, kernels, strict=True)):
            if kernel_of_cell is None:
                return None
            layers.append(self._layer(number, cell, kernel_of_cell, embedded, dropout))
        return layers, attended

    def _layer(self, number: int, cell: Cell, kernel: type[CellKernel], embedded: Tensor, dropout: Dropout) -> Layer:
        inputs, outputs = self._cell_masks(number, cell, embedded, dropout)
        given = (cell.input_weight, cell.input_bias(), cell.kernel_parameters())
        return Layer(kernel, cell.state_parts, cell.units, *given, inputs, outputs)

    def layer(self, number: int, x: Tensor, first: Tensor, dropout: Dropout, watch: GradientWatch | None) -> Tensor:
        """What a layer passes on [time, batch, …], from `x` [time, batch, …] below it and its first state.

        Where nothing is attended to and no connection is dense, the layers one after the other are `forward`, bit for
        bit. Every cell needs a kernel.
        """
        cell = list(self.cells)[number]
        kernel = cell.usable_kernel()
        assert kernel is not None
        layer = self._layer(number, cell, kernel, x, dropout)
        if number:
            return layer_sequence(x, first, self.residual, number, layer, watch)
        return decode_sequence(x, first, self.residual, [layer], None, watch)[0]

    def _unrolled(
        self,
        embedded: Tensor,
        memory: Memory,
        first: Tensor,
        dropout: Dropout,
        feed: Feed | None,
        watch: GradientWatch | None,
    ) -> tuple[Tensor, Tensor]:
        """`steps` one by one, with autograd's own gradients."""
        time, batch, _ = embedded.shape
        embedding_mask, masks = self._draw_masks(embedded, dropout)
        given = time if feed is None else 1  # steps whose embeddings are known from the start
        known = self._contribute(embedded[:given], None if embedding_mask is None else embedding_mask[:given]).by_step()
        embedding_masks = _by_step(embedding_mask, time)
        states = self._by_cell(first.split(self.units, dim=-1))
        context = first.new_zeros(batch, self.attention.context_units)
        columns, whole = self._context_columns(), HypothesisRows(batch, 1)
        tops: list[Tensor] = []
        contexts: list[Tensor] = []
        for t in range(time):
            if feed is None or t == 0:
                inputs = known[t]
            else:
                inputs = self._contribute(feed(t, self.mixed(tops[-1], context)), embedding_masks[t])
            states, top, context, _ = self._advance(inputs, columns, states, context, memory, masks[t], whole)
            if watch is not None:
                for layer, state in enumerate(states):
                    watch(f"decoder.{layer}", state[0])
            tops.append(top)
            contexts.append(context)
        return torch.stack(tops), torch.stack(contexts)

    def start(self, first: Tensor, k: int) -> DecoderState:
        """The state before the first step of k hypotheses a sentence, from `first` [batch, state_units]."""
        context = first.new_zeros(first.shape[0], self.attention.context_units)
        parts = (*first.split(self.units, dim=-1), context)
        return tuple(part.unsqueeze(1).expand(-1, k, -1) for part in parts)

    def step(self, embedded: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, DecoderState, Tensor]:
        """One step of k hypotheses a sentence: mix [batch, k, h], next state, attention weights [batch, k, time].

        `embedded` [batch, k, e] holds the embeddings of the previous tokens.
        """
        grid = embedded.shape[:2]
        inputs, parts = self.contribute(embedded.flatten(0, 1)), tuple(part.flatten(0, 1) for part in state)
        mix, new, weights = self.step_rows(inputs, parts, memory, HypothesisRows(*grid))
        return mix.unflatten(0, grid), tuple(part.unflatten(0, grid) for part in new), weights

    def step_rows(
        self, inputs: Inputs, state: DecoderState, memory: Memory, rows: HypothesisRows
    ) -> tuple[Tensor, DecoderState, Tensor]:
        """One step of the hypotheses in `rows`: mix [rows, h], next state, weights [batch, k, time].

        `inputs` are what the previous tokens contribute, see `contribute`; the state's parts are [rows, ...].
        """
        made, new, weights = self.tops_of_rows(inputs, state, memory, rows)
        return self.mixed(*made), new, weights

    def tops_of_rows(
        self, inputs: Inputs, state: DecoderState, memory: Memory, rows: HypothesisRows
    ) -> tuple[tuple[Tensor, Tensor], DecoderState, Tensor]:
        """`step_rows` without the mixing layer: what it reads in the place of what it makes."""
        *parts, context = state
        states = self._by_cell(parts)
        nothing: list[Tensor | None] = [None] * len(states)
        masks = _Masks(nothing, nothing)
        states, top, context, weights = self._advance(
            inputs, self._context_columns(), states, context, memory, masks, rows
        )
        return (top, context), (*(part for state in states for part in state), context), weights

    def step_layer(self, number: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of one layer: what it passes on [rows, …], from what is below it [rows, …], and its next state.

        Where nothing is attended to and no connection is dense, the layers one after the other are `step_rows`, bit for
        bit.
        """
        cell, below = list(self.cells)[number], x
        if number:
            projected = cell.project_inputs(x)
        else:
            nothing = x.new_zeros(len(x), 0)
            below, projected = self._enter(self.contribute(x), self._context_columns(), nothing, None)
        new = cell.step(projected, state)
        return self.residual.combine(new[0], [below]), new

    def contribute(self, embedded: Tensor) -> Inputs:
        """What embeddings [..., e] contribute to the stack's input, before any context is known."""
        return self._contribute(embedded, None)

    def _advance(
        self,
        inputs: Inputs,
        columns: Tensor,
        states: list[State],
        context: Tensor,
        memory: Memory,
        masks: _Masks,
        rows: HypothesisRows,
    ) -> tuple[list[State], Tensor, Tensor, Tensor]:
        """One step of the rows at hand, from the embeddings' contribution and the last context [rows, C]."""
        entry, projected = self._enter(inputs, columns, context, masks.inputs[0])
        new: list[State] = []
        passed = [entry]
        for layer, cell in enumerate(self.cells):
            if layer > 0:
                projected = cell.project_inputs(_masked(passed[-1], masks.inputs[layer]))
            new.append(cell.step(projected, states[layer]))
            passed.append(self.residual.combine(_masked(new[-1][0], masks.outputs[layer]), passed))
        contexts, weights = self.attention.attend(rows.spread(passed[-1]), memory)
        return new, passed[-1], rows.pick(contexts), weights

    def _contribute(self, embedded: Tensor, mask: Tensor | None) -> Inputs:
        """What embeddings [..., e] contribute to the stack's input; `mask` is the first cell's on them."""
        transform = self.residual.input_transform
        if transform is not None:
            return Inputs(F.linear(embedded, transform.weight[:, : self.embedding_units], transform.bias), None)
        return Inputs(embedded, self.cells.first.project_inputs(_masked(embedded, mask)))

    def _context_columns(self) -> Tensor:
        """The weight that the context meets in the input transform or in the first cell, transposed for `addmm`."""
        transform = self.residual.input_transform
        if transform is not None:
            return transform.weight[:, self.embedding_units :].t()
        return self.cells.first.input_columns(self.embedding_units)

    def _enter(self, inputs: Inputs, columns: Tensor, context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What enters the stack (of use to residual connections), and the first cell's projected input [rows, gates].

        `mask` is that of the context, or with an input transform that of the whole transformed input.
        """
        entry, projected = inputs
        if self.attention.context_units:
            if projected is None:
                entry = torch.addmm(entry, context, columns)
            else:
                projected = torch.addmm(projected, _masked(context, mask), columns)
                entry = torch.cat((entry, context), dim=-1) if self.residual.active else entry
        if projected is None:
            projected = self.cells.first.project_inputs(_masked(entry, mask))
        return entry, projected

    def mixed(self, top: Tensor, context: Tensor) -> Tensor:
        """The mixing layer: [..., units] and [..., C] to [..., h]."""
        if self.mix is None:
            return top
        return self.mix(torch.cat((top, context.to(top.dtype)), dim=-1)).tanh()

    def _by_cell(self, parts: Iterable[Tensor]) -> list[State]:
        remaining = iter(parts)
        return [tuple(next(remaining) for _ in range(cell.state_parts)) for cell in self.cells]

    def _draw_masks(self, embedded: Tensor, dropout: Dropout) -> tuple[Tensor | None, list[_Masks]]:
        """The first cell's mask on the embeddings [time, batch, e], and the others of every step; drawn once a layer.

        With an input transform the first cell has a single mask, and it stands among the others.
        """
        time, _, width = embedded.shape
        embedding_mask: Tensor | None = None
        inputs: list[tuple[Tensor | None, ...]] = []
        outputs: list[tuple[Tensor | None, ...]] = []
        for layer, cell in enumerate(self.cells):
            mask, output_mask = self._cell_masks(layer, cell, embedded, dropout)
            if layer == 0 and mask is not None and self.residual.input_transform is None:
                embedding_mask, mask = mask[..., :width], mask[..., width:]
            inputs.append(_by_step(mask, time))
            outputs.append(_by_step(output_mask, time))
        steps = zip(zip(*inputs, strict=True), zip(*outputs, strict=True), strict=True)
        return embedding_mask, [_Masks(list(ins), list(outs)) for ins, outs in steps]

    def _cell_masks(
        self, layer: int, cell: Cell, embedded: Tensor, dropout: Dropout
    ) -> tuple[Tensor | None, Tensor | None]:
        """Masks of a cell's input [time, batch, in] and output [time, batch, units]."""
        steps = embedded.shape[:2]
        inputs = dropout.mask(f"decoder.{layer}.input", (*steps, cell.input_units), self.config.dropout_input, embedded)
        outputs = dropout.mask(f"decoder.{layer}.output", (*steps, cell.units), self.config.dropout_output, embedded)
        return inputs, outputs


def _by_step(x: Tensor | None, time: int) -> tuple[Tensor | None, ...]:
    return (None,) * time if x is None else x.unbind(0)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
