"""Encoders: stacks of recurrent cells over the source sentence.

Nothing depends on padding. Padding follows a sentence in reading order (each is reversed by its own length), so no step
inside a sentence sees it; outputs beyond a sentence's end are zero, and the final state is the state at the
sentence's own last step, which is what holding the state beyond the end would give.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import EncoderConfig
from nmt.models.cells import CellStack, State
from nmt.models.dropout import Dropout


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
    """Layers of cells that read in one direction, each with dropout on its input and output (TF's DropoutWrapper)."""

    def __init__(self, config: EncoderConfig, input_units: int, name: str):
        super().__init__()
        self.cells = CellStack(config.cell, "model.encoder.cell", config.layers, input_units, config.units)
        self.config = config.cell
        self.name = name

    def forward(self, x: Tensor, lengths: Tensor, dropout: Dropout) -> tuple[Tensor, list[Tensor]]:
        """The top layer's outputs [time, batch, units] and each layer's final state parts [batch, units].

        Outputs beyond a sentence's end are meaningless.
        """
        final: list[Tensor] = []
        for layer, cell in enumerate(self.cells):
            x = dropout(f"{self.name}.{layer}.input", x, self.config.dropout_input)
            states = cell.sequence(cell.project_inputs(x))
            final += at_end(states, lengths)
            x = dropout(f"{self.name}.{layer}.output", states[0], self.config.dropout_output)
        return x, final


class UnidirectionalEncoder(nn.Module):
    """One stack of cells, left to right.

    Parameters
    ----------
    config: units, layers and cell.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.forwards = RecurrentStack(config, input_units, "encoder.forwards")
        self.output_units = self.value_units = config.units
        self.state_units = self.forwards.cells.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        outputs, final = self.forwards(embedded, lengths, dropout)
        return EncoderOutput(zero_beyond_end(outputs, lengths), torch.cat(final, dim=-1))


class BidirectionalEncoder(nn.Module):
    """One stack of cells each way; their top outputs are joined (Schuster and Paliwal 1997).

    Parameters
    ----------
    config: units and layers *of each direction*, and cell.
    input_units: width e of the embeddings.
    """

    def __init__(self, config: EncoderConfig, input_units: int):
        super().__init__()
        self.forwards = RecurrentStack(config, input_units, "encoder.forwards")
        self.backwards = RecurrentStack(config, input_units, "encoder.backwards")
        self.output_units = self.value_units = 2 * config.units
        self.state_units = 2 * self.forwards.cells.state_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        order = reversal(lengths, embedded.shape[0])
        ahead, final_ahead = self.forwards(embedded, lengths, dropout)
        back, final_back = self.backwards(reorder(embedded, order), lengths, dropout)
        outputs = zero_beyond_end(torch.cat((ahead, reorder(back, order)), dim=-1), lengths)
        return EncoderOutput(outputs, torch.cat(final_ahead + final_back, dim=-1))


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
