"""What the hand-written loops compute with: products in the compute type, and the autograd function around a loop.

Pointwise arithmetic and states are float32 (or the parameters' own type); matrix products are made in the compute type,
which under autocast is bfloat16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nmt.models.plain import refuse_second_derivatives


def compute_type(like: Tensor) -> torch.dtype:
    """The type of matrix products: autocast's where it is on (and `like` is float32), else that of `like`."""
    device = like.device.type
    # The meta device, on which costs are counted, knows no autocast.
    if like.dtype == torch.float32 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return like.dtype


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A context in which every product is made in the type of its operands."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class Weight:
    """A matrix [out, in], or one for each direction [directions, out, in], cast once to the compute type."""

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        self.matrix = weight.detach().to(dtype)
        self.transposed = self.matrix.transpose(-1, -2)

    def add_product(self, into: Tensor, x: Tensor) -> None:
        """`into` += x W^T, for x [..., rows, in] and `into` [..., rows, out]."""
        _add_product(into, x, self.transposed)

    def add_back_product(self, into: Tensor, g: Tensor) -> None:
        """`into` += g W: the gradient with respect to x, from that of the product."""
        _add_product(into, g, self.matrix)

    def back_product(self, g: Tensor) -> Tensor:
        """g W, in the type of g."""
        return product(g.to(self.matrix.dtype), self.matrix).to(g.dtype)

    def affine(self, x: Tensor, bias: Tensor, out: Tensor) -> None:
        """`out` = x W^T + b, with b [out], or [directions, 1, out]."""
        if self.matrix.dtype != out.dtype:
            out.copy_(product(x.to(self.matrix.dtype), self.transposed)).add_(bias)
        elif out.dim() == 2:
            torch.addmm(bias, x, self.transposed, out=out)
        elif _has_other_bits_alone(x):
            _as_one_of_two(bias, x, self.transposed, out)
        else:
            torch.baddbmm(bias, x, self.transposed, out=out)

    def gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """The weight's own gradient over all rows: Σ g^T x, of g [..., rows, out] and x [..., rows, in]."""
        dtype = self.matrix.dtype
        return product(g.to(dtype).transpose(-1, -2), x.to(dtype)).to(g.dtype)


def sigmoid_(x: Tensor) -> Tensor:
    """σ(x) in place as (1 + tanh(x/2)) / 2, whose bits for a value do not depend on where it stands in `x`."""
    return x.mul_(0.5).tanh_().mul_(0.5).add_(0.5)


def through_sigmoid_(gradient: Tensor, y: Tensor) -> None:
    """Overwrite y = σ(x) with the gradient with respect to x, from that with respect to y."""
    torch.ops.aten.sigmoid_backward.grad_input(gradient, y, grad_input=y)


def through_tanh_(gradient: Tensor, y: Tensor) -> None:
    """Overwrite y = tanh(x) with the gradient with respect to x, from that with respect to y."""
    torch.ops.aten.tanh_backward.grad_input(gradient, y, grad_input=y)


def column_sum(g: Tensor) -> Tensor:
    """Sum over the rows of [..., rows, n]: the gradient of a bias, as a product, whose bits no threads change."""
    ones = g.new_ones(*g.shape[:-2], 1, g.shape[-2])
    return product(ones, g).squeeze(-2)


def product(x: Tensor, y: Tensor) -> Tensor:
    """The matrix product of [..., rows, n] and [..., n, columns].

    In float32 one of two directions has the same bits alone, [1, rows, n], as beside the other, [2, rows, n].
    """
    return torch.matmul(_twice(x), _twice(y))[:1] if _has_other_bits_alone(x) else torch.matmul(x, y)


class Program(ABC):
    """A computation whose gradient is written by hand: made for one forward pass, it holds what the backward needs."""

    @abstractmethod
    def forward(self) -> tuple[Tensor, ...]:
        """Compute the outputs; without autograd."""

    @abstractmethod
    def backward(self, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the inputs that `run` was given, in their order; called once at most."""


class _HandWritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.program = program
        # Outputs get this node as their origin: were the same objects held by the program, none would ever be freed.
        with without_autocast(inputs[0].device.type):  # programs choose the type of each product
            return tuple(output.detach() for output in program.forward())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        program, ctx.program = ctx.program, None
        if program is None:
            raise RuntimeError(
                "the backward pass of a recurrent loop overwrites what it kept and runs once; "
                "nmt.models.plain.plain_autograd() is for more"
            )
        return None, *program.backward(*gradients)


def run(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs of `program`, connected to the tensors `inputs` that it was made of."""
    outputs: tuple[Tensor, ...] = _HandWritten.apply(program, *inputs)
    return outputs


def _add_product(into: Tensor, x: Tensor, matrix: Tensor) -> None:
    add = Tensor.addmm_ if into.dim() == 2 else Tensor.baddbmm_
    if matrix.dtype != into.dtype:
        into.add_(product(x.to(matrix.dtype), matrix).to(into.dtype))
    elif _has_other_bits_alone(x):
        _as_one_of_two(into, x, matrix, into)
    else:
        add(into, x, matrix)


def _has_other_bits_alone(x: Tensor) -> bool:
    """Whether x is a row of a single direction: a batch of one is multiplied as a matrix, and a row as a vector.

    In bfloat16 oneDNN adds up in another order for a batch of one of any size, and now and then the rounding shows it.
    """
    return x.dim() == 3 and x.shape[:2] == (1, 1)


def _as_one_of_two(bias: Tensor, x: Tensor, matrix: Tensor, out: Tensor) -> None:
    """`out` = bias + x · matrix for a row of a single direction.

    How far rows and directions lie apart in `out` decides the way, too: so it is as here.
    """
    (apart, row, _), units = out.stride(), out.shape[-1]
    both = out.new_empty(2, 1 if apart == row else 2, max(row, units))[:, :1, :units]
    torch.baddbmm(_twice(bias), _twice(x), _twice(matrix), out=both)
    out.copy_(both[:1])


def _twice(x: Tensor) -> Tensor:
    """A direction beside itself, without a copy."""
    return x.expand(2, -1, -1)
