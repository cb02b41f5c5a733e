"""Encoders: stacks of recurrent cells over the source sentence.

Nothing depends on padding: sentences are packed (`nmt.models.recurrent.packing`), outputs beyond a sentence's end are
zero, and the final state is the state at the sentence's own last step, which is what holding the state beyond the end
would give.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import CellConfig, EncoderConfig
from nmt.models.cells import Cell, CellStack
from nmt.models.dropout import Dropout
from nmt.models.plain import is_plain
from nmt.models.recurrent.packing import SentencePacking
from nmt.models.recurrent.sequence import read_sequence
from nmt.models.residual import Residual
from nmt.models.stages import Part


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch.

    outputs: [time, batch, C], zero beyond each sentence's end.
    final_state: [batch, S], the last states of all directions, layers and state parts (in this order) side by side.
    values: [time, batch, value_units], what contexts are means of; None where these are the outputs themselves.

    An encoder has the widths as `output_units`, `state_units` and `value_units`. One that can be cut has a method
    `parts(fields, directions)`: what it is cut into, reading `nmt.models.stages.SOURCE` and making those of the fields
    here that are asked for, by these names. Without `directions` those of a layer are not cut from each other.
    """

    outputs: Tensor
    final_state: Tensor
    values: Tensor | None = None


class RecurrentStack(nn.Module):
    """Layers of cells that read in one direction, each with dropout on its input and output (TF's DropoutWrapper).

    Residual connections go past both masks.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.residual = Residual(config.residual, input_units, config.units, config.layers)
        self.cells = _cells(config, self.residual.widths[:-1])
        self.config = config.cell


def read_stacks(
    stacks: Sequence[RecurrentStack], x: Tensor, lengths: Tensor, dropout: Dropout
) -> tuple[Tensor, list[Tensor]]:
    """One stack forwards, or one each way side by side, over x [time, batch, in].

    Returns what the top layers pass on [time, batch, directions · units], zero beyond each end, and the final state
    parts [batch, units] of every layer, all of one direction before those of the next.
    """
    packing = SentencePacking(lengths, len(x), len(stacks))
    residual = stacks[0].residual  # all have the same connections; only an input transform has parameters
    entered = packing.pack(x)
    if residual.input_transform is not None:
        entered = torch.stack([stack.residual.enter(own) for stack, own in zip(stacks, entered, strict=True)])
    passed = [entered]
    finals: list[list[Tensor]] = [[] for _ in stacks]
    for layer, cells in enumerate(zip(*(stack.cells for stack in stacks), strict=True)):
        y, final = read(cells, passed[-1], packing, f"encoder.{layer}", stacks[0].config, dropout)
        passed.append(residual.combine(y, passed))
        for own, parts in zip(finals, zip(*final, strict=True), strict=True):
            own += parts
    return packing.unpack(passed[-1]), [part for own in finals for part in own]


class UnidirectionalEncoder(nn.Module):
    """One stack of cells, left to right.

    Parameters
    ----------
    config: units, layers, cell and residual connections.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.forwards = RecurrentStack(config, input_units)
        self.output_units = self.value_units = self.forwards.residual.output_units
        self.state_units = self.forwards.cells.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        outputs, final = read_stacks([self.forwards], embedded, lengths, dropout)
        return EncoderOutput(outputs, torch.cat(final, dim=-1))

    def parts(self, fields: Collection[str], directions: bool = True) -> list[Part]:
        """A part a layer."""
        from nmt.models.encoder_stages import stack_parts

        return stack_parts([self.forwards], fields, directions)


class BidirectionalEncoder(nn.Module):
    """One stack of cells each way; their top outputs are joined (Schuster and Paliwal 1997).

    Parameters
    ----------
    config: units and layers *of each direction*, cell and residual connections.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.forwards = RecurrentStack(config, input_units)
        self.backwards = RecurrentStack(config, input_units)
        self.output_units = self.value_units = 2 * self.forwards.residual.output_units
        self.state_units = 2 * self.forwards.cells.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        outputs, final = read_stacks([self.forwards, self.backwards], embedded, lengths, dropout)
        return EncoderOutput(outputs, torch.cat(final, dim=-1))

    def parts(self, fields: Collection[str], directions: bool = True) -> list[Part]:
        """A part a layer of a direction: neither direction needs the other."""
        from nmt.models.encoder_stages import stack_parts

        return stack_parts([self.forwards, self.backwards], fields, directions)


class StackedBidirectionalEncoder(nn.Module):
    """Layers of two cells, one each way, whose outputs are joined at *every* layer and read by both cells of the next.

    Residual connections go from joined output to joined output, 2h wide. (google/seq2seq has this encoder but drops the
    residual connections of its cells without a word.)

    Parameters
    ----------
    config: units h *of each direction*, layers, cell and residual connections.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.residual = Residual(config.residual, input_units, 2 * config.units, config.layers)
        self.forwards = _cells(config, self.residual.widths[:-1])
        self.backwards = _cells(config, self.residual.widths[:-1])
        self.config = config.cell
        self.output_units = self.value_units = self.residual.output_units
        self.state_units = 2 * self.forwards.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        packing = SentencePacking(lengths, len(embedded), directions=2)
        ahead: list[Tensor] = []
        back: list[Tensor] = []
        passed = [self.residual.enter(embedded)]
        for layer, cells in enumerate(zip(self.forwards, self.backwards, strict=True)):
            x = packing.pack(passed[-1])
            y, final = read(cells, x, packing, f"encoder.{layer}", self.config, dropout)
            ahead += [part[0] for part in final]
            back += [part[1] for part in final]
            passed.append(self.residual.combine(packing.unpack(y), passed))
        return EncoderOutput(zero_beyond_end(passed[-1], lengths), torch.cat(ahead + back, dim=-1))

    def parts(self, fields: Collection[str], directions: bool = True) -> list[Part]:
        """Two parts a layer, one for each direction: both read what the layer below has joined."""
        from nmt.models.encoder_stages import joined_parts

        return joined_parts(self, fields, directions)


def _cells(config: EncoderConfig, input_units: Sequence[int]) -> CellStack:
    return CellStack(config.cell, "model.encoder.cell", input_units, config.units)


def read(
    cells: Sequence[Cell], x: Tensor, packing: SentencePacking, name: str, config: CellConfig, dropout: Dropout
) -> tuple[Tensor, list[Tensor]]:
    """A cell for each direction over packed x [directions, total, in]; of two directions either may be read alone.

    Returns outputs [directions, total, units], dropped out, and final state parts [directions, batch, units].
    """
    x = dropout(f"{name}.input", x, config.dropout_input)
    kernel = None if is_plain() else cells[0].usable_kernel()
    if kernel is None:
        directions = [
            cell.sequence(cell.project_inputs(own), packing.sizes) for cell, own in zip(cells, x, strict=True)
        ]
        states = [torch.stack(parts) for parts in zip(*directions, strict=True)]
        outputs, final = states[0], [part.index_select(1, packing.last) for part in states]
    else:
        given = [[cell.input_weight, cell.input_bias(), *cell.kernel_parameters()] for cell in cells]
        if packing.directions == 1:
            outputs, final = read_sequence(kernel, cells[0].state_parts, x[0], packing, *given[0])
            outputs, final = outputs.unsqueeze(0), [part.unsqueeze(0) for part in final]
        else:
            stacked = [  # a direction alone needs no copy
                torch.stack(parameters) if len(parameters) > 1 else parameters[0].unsqueeze(0)
                for parameters in zip(*given, strict=True)
            ]
            outputs, final = read_sequence(kernel, cells[0].state_parts, x, packing, *stacked)
    return dropout(f"{name}.output", outputs, config.dropout_output), final


def reversal(lengths: Tensor, time: int) -> Tensor:
    """Time index that reverses each sentence within its own length and leaves padding in place: [time, batch]."""
    steps = torch.arange(time, device=lengths.device).unsqueeze(1)
    return torch.where(steps < lengths, lengths - 1 - steps, steps)


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """`x[order[t, b], b]` for all t and b: [time, batch, units]."""
    batch = x.shape[1]
    rows = order * batch + torch.arange(batch, device=x.device)
    return F.embedding(rows, x.flatten(0, 1))  # a row look-up whose gradient is far faster than index_select's


def zero_beyond_end(outputs: Tensor, lengths: Tensor) -> Tensor:
    """Zero where the time is not below the sentence's length: [time, batch, units]."""
    steps = torch.arange(outputs.shape[0], device=lengths.device)
    return outputs.masked_fill((steps.unsqueeze(1) >= lengths).unsqueeze(-1), 0.0)


def mean_over_time(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each sentence of `x` [time, batch, units], which is zero beyond its end: [batch, units]."""
    return x.sum(dim=0) / lengths.unsqueeze(-1)
