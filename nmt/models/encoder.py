"""Encoders: stacks of recurrent cells over the source sentence.

Nothing depends on padding. Padding follows a sentence in reading order (each is reversed by its own length), so no step
inside a sentence sees it; outputs beyond a sentence's end are zero, and the final state is the state at the
sentence's own last step, which is what holding the state beyond the end would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import CellConfig, EncoderConfig
from nmt.models.cells import Cell, CellStack, State
from nmt.models.dropout import Dropout
from nmt.models.residual import Residual


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch.

    outputs: [time, batch, C], zero beyond each sentence's end.
    final_state: [batch, S], the last states of all directions, layers and state parts (in this order) side by side.
    values: [time, batch, value_units], what contexts are means of; None where these are the outputs themselves.

    An encoder has the widths as `output_units`, `state_units` and `value_units`.
    """

    outputs: Tensor
    final_state: Tensor
    values: Tensor | None = None


class RecurrentStack(nn.Module):
    """Layers of cells that read in one direction, each with dropout on its input and output (TF's DropoutWrapper).

    Residual connections go past both masks.
    """

    def __init__(self, config: EncoderConfig, input_units: int, name: str):
        super().__init__()
        self.residual = Residual(config.residual, input_units, config.units, config.layers)
        self.cells = _cells(config, self.residual.widths[:-1])
        self.config = config.cell
        self.name = name

    def forward(self, x: Tensor, lengths: Tensor, dropout: Dropout) -> tuple[Tensor, list[Tensor]]:
        """What the top layer passes on [time, batch, units], and each layer's final state parts [batch, units].

        Outputs beyond a sentence's end are meaningless.
        """
        final: list[Tensor] = []
        passed = [self.residual.enter(x)]
        for layer, cell in enumerate(self.cells):
            y, state = read(cell, passed[-1], lengths, f"{self.name}.{layer}", self.config, dropout)
            passed.append(self.residual.combine(y, passed))
            final += state
        return passed[-1], final


class UnidirectionalEncoder(nn.Module):
    """One stack of cells, left to right.

    Parameters
    ----------
    config: units, layers, cell and residual connections.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.forwards = RecurrentStack(config, input_units, "encoder.forwards")
        self.output_units = self.value_units = self.forwards.residual.output_units
        self.state_units = self.forwards.cells.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        outputs, final = self.forwards(embedded, lengths, dropout)
        return EncoderOutput(zero_beyond_end(outputs, lengths), torch.cat(final, dim=-1))


class BidirectionalEncoder(nn.Module):
    """One stack of cells each way; their top outputs are joined (Schuster and Paliwal 1997).

    Parameters
    ----------
    config: units and layers *of each direction*, cell and residual connections.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.forwards = RecurrentStack(config, input_units, "encoder.forwards")
        self.backwards = RecurrentStack(config, input_units, "encoder.backwards")
        self.output_units = self.value_units = 2 * self.forwards.residual.output_units
        self.state_units = 2 * self.forwards.cells.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        order = reversal(lengths, embedded.shape[0])
        ahead, final_ahead = self.forwards(embedded, lengths, dropout)
        back, final_back = self.backwards(reorder(embedded, order), lengths, dropout)
        outputs = zero_beyond_end(torch.cat((ahead, reorder(back, order)), dim=-1), lengths)
        return EncoderOutput(outputs, torch.cat(final_ahead + final_back, dim=-1))


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
        order = reversal(lengths, embedded.shape[0])
        final_ahead: list[Tensor] = []
        final_back: list[Tensor] = []
        passed = [self.residual.enter(embedded)]
        for layer, (forward, backward) in enumerate(zip(self.forwards, self.backwards, strict=True)):
            x, config = passed[-1], self.config
            ahead, state = read(forward, x, lengths, f"encoder.forwards.{layer}", config, dropout)
            final_ahead += state
            back, state = read(backward, reorder(x, order), lengths, f"encoder.backwards.{layer}", config, dropout)
            final_back += state
            passed.append(self.residual.combine(torch.cat((ahead, reorder(back, order)), dim=-1), passed))
        return EncoderOutput(zero_beyond_end(passed[-1], lengths), torch.cat(final_ahead + final_back, dim=-1))


def _cells(config: EncoderConfig, input_units: Sequence[int]) -> CellStack:
    return CellStack(config.cell, "model.encoder.cell", input_units, config.units)


def read(
    cell: Cell, x: Tensor, lengths: Tensor, name: str, config: CellConfig, dropout: Dropout
) -> tuple[Tensor, list[Tensor]]:
    """One cell over [time, batch, in]: its outputs [time, batch, units], dropped out, and its final state parts."""
    x = dropout(f"{name}.input", x, config.dropout_input)
    states = cell.sequence(cell.project_inputs(x))
    return dropout(f"{name}.output", states[0], config.dropout_output), at_end(states, lengths)


def reversal(lengths: Tensor, time: int) -> Tensor:
    """Time index that reverses each sentence within its own length and leaves padding in place: [time, batch]."""
    steps = torch.arange(time, device=lengths.device).unsqueeze(1)
    return torch.where(steps < lengths, lengths - 1 - steps, steps)


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """`x[order[t, b], b]` for all t and b: [time, batch, units]."""
    batch = x.shape[1]
    rows = order * batch + torch.arange(batch, device=x.device)
    return F.embedding(rows, x.flatten(0, 1))  # a row look-up whose gradient is far faster than index_select's


def at_end(states: State, lengths: Tensor) -> list[Tensor]:
    """Each state part at the sentence's own last step: [time, batch, units] -> [batch, units]."""
    rows = (lengths - 1) * lengths.shape[0] + torch.arange(lengths.shape[0], device=lengths.device)
    return [F.embedding(rows, part.flatten(0, 1)) for part in states]


def zero_beyond_end(outputs: Tensor, lengths: Tensor) -> Tensor:
    """Zero where the time is not below the sentence's length: [time, batch, units]."""
    steps = torch.arange(outputs.shape[0], device=lengths.device)
    return outputs.masked_fill((steps.unsqueeze(1) >= lengths).unsqueeze(-1), 0.0)


def mean_over_time(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each sentence of `x` [time, batch, units], which is zero beyond its end: [batch, units]."""
    return x.sum(dim=0) / lengths.unsqueeze(-1)
