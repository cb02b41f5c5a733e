"""Output layer and softmax over pieces of the tokens, so that [tokens, V] never stands in memory as a whole.

A piece's logits are one matrix product into a buffer that all pieces share. What is left then works on a few rows at a
time, small enough for a core's cache, in place of the logits, with one exponential each: bias, softmax, loss, and in
training the logits' gradient, which the products of the gradients read before the next piece comes. Nothing is computed
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nmt.models.layers import ordered_sum
from nmt.models.plain import refuse_second_derivatives
from nmt.models.recurrent.arithmetic import compute_type

# Of a piece's logits. Large enough that products run at full speed; and glibc keeps buffers below 32 MiB for the next
# caller, while larger ones come from the kernel page by page, which costs more than the arithmetic on them.
PIECE_BYTES = 1 << 24
BLOCK = 1 << 18  # logits of the softmax's rows at a time: 1 MiB in float32


def target_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float, hits: Tensor | None = None
) -> Tensor:
    """Loss of each token in nats, without gradient: [tokens]. Arguments as for `nmt.models.loss.token_losses`.

    `hits` [tokens], bool, is filled with whether the target is the first of the largest logits.
    """
    layer = _Layer(hidden, weight, bias)
    losses = layer.new_losses()
    for start, logits in layer.pieces():
        for rows, block in _blocks(logits, start):
            block.add_(layer.bias)
            if hits is not None:
                torch.eq(block.argmax(dim=-1), targets[rows], out=hits[rows])
            losses[rows], _ = _exponentials_(block, targets[rows], label_smoothing)
    return losses


def summed_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """The sum of all token losses as a scalar that can be differentiated once.

    Its gradient is made in the forward pass. So what waits for the backward pass is as large as the arguments.
    """
    loss: Tensor = _SummedLoss.apply(hidden, weight, bias, targets, label_smoothing)
    return loss


class _SummedLoss(torch.autograd.Function):
    """Forward: the loss and, for an upstream gradient of one, the gradients. Backward: these times the real one."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        layer = _Layer(hidden, weight, bias)
        losses = layer.new_losses()
        gradients = _Gradients(layer, ctx.needs_input_grad)
        for start, logits in layer.pieces():
            for rows, block in _blocks(logits, start):
                target = targets[rows].unsqueeze(1)
                losses[rows], sums = _exponentials_(block.add_(layer.bias), targets[rows], label_smoothing)
                block.mul_(sums.reciprocal_().unsqueeze(1))  # probabilities, off which the smoothed targets are taken
                if label_smoothing:
                    block.sub_(label_smoothing / layer.vocabulary)
                block.scatter_(1, target, block.gather(1, target).sub_(1 - label_smoothing))
                gradients.add_bias(block)
                if layer.rounded:
                    logits[rows.start - start : rows.stop - start] = block
            gradients.add(start, logits)
        ctx.save_for_backward(_as(gradients.hidden, hidden), _as(gradients.weight, weight), _as(gradients.bias, bias))
        return ordered_sum(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        # In place: torch then refuses a second pass through the same graph, whose gradients would be wrong.
        scaled = (None if gradient is None else gradient.mul_(upstream) for gradient in ctx.saved_tensors)
        return (*scaled, None, None)


class _Layer:
    """The output layer's operands in the type of its products, cast once; `rounded`: that type is below float32.

    The bias is added to the logits later, in at least float32.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor):
        product_type = compute_type(weight)
        self.hidden, self.weight = hidden.detach().to(product_type), weight.detach().to(product_type)
        self.bias = bias.detach().to(_at_least_float32(product_type))
        self.tokens, self.vocabulary = len(hidden), len(bias)
        self.rounded = product_type.itemsize < 4

    def new_losses(self) -> Tensor:
        return self.hidden.new_empty(self.tokens, dtype=_at_least_float32(self.hidden.dtype))

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """The first token of each piece, and its logits [rows, V] without the bias, which the next piece overwrites.

        Pieces are nearly equal, so that none has few rows, where matrix products may have other bits.
        """
        most = max(64, PIECE_BYTES // (self.vocabulary * self.hidden.element_size()))
        count = max(1, -(-self.tokens // most))
        buffer = self.hidden.new_empty(-(-self.tokens // count), self.vocabulary)
        columns = self.weight.t()
        for piece in range(count):
            start, stop = self.tokens * piece // count, self.tokens * (piece + 1) // count
            yield start, torch.mm(self.hidden[start:stop], columns, out=buffer[: stop - start])


class _Gradients:
    """Gradients of the arguments of `_Layer` that need one (None for the others), summed in at least float32."""

    def __init__(self, layer: _Layer, needed: tuple[bool, ...]):
        self._layer = layer
        self._needs_weight = needed[1]
        self.hidden = torch.empty_like(layer.hidden) if needed[0] else None
        self.weight: Tensor | None = None
        self.bias = torch.zeros_like(layer.bias) if needed[2] else None

    def add_bias(self, block: Tensor) -> None:
        """Take in the logits' gradient [rows, V] of a block, before it is rounded."""
        if self.bias is not None:
            self.bias.add_(block.sum(dim=0))

    def add(self, start: int, logits: Tensor) -> None:
        """Take in the logits' gradient [rows, V] of the piece that begins with token `start`."""
        layer, stop = self._layer, start + len(logits)
        if self.hidden is not None:
            torch.mm(logits, layer.weight, out=self.hidden[start:stop])
        if not self._needs_weight:
            return
        rows, columns = layer.hidden[start:stop], logits.t()
        if self.weight is None:
            self.weight = torch.mm(columns, rows).to(_at_least_float32(logits.dtype))
        elif layer.rounded:
            self.weight.add_(torch.mm(columns, rows))
        else:
            self.weight.addmm_(columns, rows)


def _blocks(logits: Tensor, start: int) -> Iterator[tuple[slice, Tensor]]:
    """The tokens of each block of a piece that begins with token `start`, and the block's logits in at least float32.

    A block may be overwritten. It is a part of `logits`, or a copy where these are rounded.
    """
    tokens, vocabulary = logits.shape
    rows = max(1, BLOCK // vocabulary) if logits.device.type == "cpu" else max(1, tokens)
    wide = _at_least_float32(logits.dtype)
    copies = None if wide == logits.dtype else logits.new_empty(min(rows, tokens), vocabulary, dtype=wide)
    for first in range(0, tokens, rows):
        block = logits[first : first + rows]
        taken = slice(start + first, start + first + len(block))
        yield taken, block if copies is None else copies[: len(block)].copy_(block)


def _exponentials_(block: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Turn logits [rows, V] into exp(logit - largest) in place; the losses of their targets, and the sums: [rows] each.

    Losses are those of `nmt.models.loss.token_losses`.
    """
    expected = block.gather(1, targets.unsqueeze(1)).squeeze(1)
    if label_smoothing:
        expected.mul_(1 - label_smoothing).add_(_row_sums(block), alpha=label_smoothing / block.shape[1])
    largest = block.amax(dim=-1, keepdim=True)
    sums = _row_sums(block.sub_(largest).exp_())
    return torch.log(sums).add_(largest.squeeze(1)).sub_(expected), sums


def _row_sums(block: Tensor) -> Tensor:
    # A long row alone would be cut among threads; two rows are not.
    return block.sum(dim=-1) if len(block) > 1 else block.expand(2, -1).sum(dim=-1)[:1]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _as(gradient: Tensor | None, argument: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(argument.dtype)
