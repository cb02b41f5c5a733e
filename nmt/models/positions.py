"""Where a token stands: encodings of positions, and their combination with embeddings.

Encodings are computed in float64 and rounded once, so that a position has the same bits however many others are asked
for with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmt.models.initialisation import Constant, Draw
from nmt.models.layers import Table


def memn2n(count: int, positions: int, units: int, like: Tensor) -> Tensor:
    """Position encodings of end-to-end memory networks (Sukhbaatar et al. 2015, section 4.1): [count, units].

        enc[j - 1, k - 1] = (1 - j / (S + 1)) - (k / (E + 1)) · (1 - 2 j / (S + 1))

    S is `positions`, as in google/seq2seq, and not the sentence's own length; E is `units`. Positions beyond S continue
    the straight lines. Type and device are those of `like`.
    """
    j = torch.arange(1, count + 1, dtype=torch.float64, device=like.device).unsqueeze(1) / (positions + 1)
    k = torch.arange(1, units + 1, dtype=torch.float64, device=like.device) / (units + 1)
    return ((1 - j) - k * (1 - 2 * j)).to(like.dtype)


def sinusoids(first: int, count: int, units: int, like: Tensor) -> Tensor:
    """Sinusoidal encodings of the positions `first`, `first` + 1, … counted from 0: [count, units].

        enc[p, 2i] = sin(p / 10000^(2i / units))        enc[p, 2i + 1] = cos(p / 10000^(2i / units))

    (Vaswani et al. 2017, section 3.5.) Type and device are those of `like`.
    """
    positions = torch.arange(first, first + count, dtype=torch.float64, device=like.device).unsqueeze(1)
    rates = 10000.0 ** (-torch.arange(0, units, 2, dtype=torch.float64, device=like.device) / units)
    angles = positions * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :units].to(like.dtype)


class PositionTable(Table):
    """A learned vector for each position; multiplied ones start at 1, so that training starts from the bare embedding.

    Parameters
    ----------
    positions: rows of the table; later positions share the last one.
    units: width of the embeddings.
    multiplied: whether the vectors will be multiplied with embeddings rather than added to them.
    """

    def __init__(self, positions: int, units: int, multiplied: bool):
        super().__init__(positions, units)
        self.multiplied = multiplied

    def first_values(self) -> dict[str, Draw]:
        """How the table starts; see `nmt.models.initialisation`."""
        return {"weight": Constant(1.0)} if self.multiplied else super().first_values()


class Positions(nn.Module):
    """Combines embeddings with encodings of their positions.

    Parameters
    ----------
    kind: memn2n | sinusoidal | learned | none.
    combiner: add | multiply (google/seq2seq multiplies).
    positions: number S of positions of `memn2n`, rows of the table of `learned`; the other kinds have no use for it.
    units: width e of the embeddings.
    """

    def __init__(self, kind: str, combiner: str, positions: int, units: int):
        super().__init__()
        self.kind, self.positions, self.units = kind, positions, units
        self.multiplies = combiner == "multiply"
        self.table = PositionTable(positions, units, self.multiplies) if kind == "learned" else None

    def forward(self, embedded: Tensor) -> Tensor:
        """[time, batch, e] -> [time, batch, e]."""
        if self.kind == "none":
            return embedded
        encoding = self._encoding(embedded.shape[0], embedded).unsqueeze(1)
        return embedded * encoding if self.multiplies else embedded + encoding

    def _encoding(self, time: int, like: Tensor) -> Tensor:
        if self.table is not None:
            return self.table(torch.arange(time, device=like.device).clamp(max=self.positions - 1))
        if self.kind == "memn2n":
            return memn2n(time, self.positions, self.units, like)
        return sinusoids(0, time, self.units, like)
