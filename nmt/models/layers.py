"""Layers that draw nothing themselves: their parameters wait for `nmt.models.initialisation.initialise`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmt.models.initialisation import Constant, Draw, Glorot


class Affine(nn.Linear):
    """`x W^T + b` with `W [out, in]`; holds NaN until it is initialised or loaded, so a forgotten weight shows."""

    def reset_parameters(self) -> None:
        """Fill with NaN instead of drawing from the global generator."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(float("nan"))

    def first_values(self) -> dict[str, Draw]:
        """How each parameter starts; see `nmt.models.initialisation`."""
        return {"weight": Glorot.of(self.in_features, self.out_features), "bias": Constant(0.0)}


class Table(nn.Embedding):
    """An embedding table `[vocabulary, units]` without a padding row; holds NaN until it is initialised or loaded."""

    def reset_parameters(self) -> None:
        """Fill with NaN instead of drawing from the global generator."""
        with torch.no_grad():
            self.weight.fill_(float("nan"))

    def first_values(self) -> dict[str, Draw]:
        """How the table starts; see `nmt.models.initialisation`."""
        return {"weight": Glorot.of(self.num_embeddings, self.embedding_dim)}


def empty(*shape: int) -> nn.Parameter:
    """A parameter that holds NaN until it is initialised or loaded."""
    return nn.Parameter(torch.full(shape, float("nan")))


def sigmoid(x: Tensor) -> Tensor:
    """σ(x) = (1 + tanh(x/2)) / 2, with the same bits for a value wherever it stands in `x` and whatever the threads.

    `torch.sigmoid` rounds differently in its vectorised loop and in what that loop leaves over, so a row's bits would
    depend on the rows beside it. The hyperbolic tangent has no such remainder. Of very negative x the result is exact
    to 6e-8, not to the last digit. `nmt.models.recurrent.arithmetic.sigmoid_` is the same in place.
    """
    return (x * 0.5).tanh() * 0.5 + 0.5


def ordered_sum(losses: Tensor) -> Tensor:
    """Sum of [tokens] as a scalar, in an order that does not depend on the number of threads.

    torch splits a full reduction among threads from 32,768 elements on; half as many are summed by one thread.
    """
    while losses.numel() > 16384:
        losses = torch.stack([piece.sum() for piece in losses.split(16384)])
    return losses.sum()
