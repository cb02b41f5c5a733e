"""Output layer and softmax over pieces of the tokens, so that [tokens, V] never stands in memory as a whole.

The logits of a piece are one matrix product (one for each chunk of the vocabulary) into a buffer that all pieces share.
What is left then works on a few rows at a time, small enough for a core's cache, in place of the logits, with one
exponential each: bias, softmax, loss, and in training the logits' gradient, which the products of the gradients read
before the next piece comes. Nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nmt.models.layers import ordered_sum
from nmt.models.plain import refuse_second_derivatives
from nmt.models.recurrent.arithmetic import compute_type
from nmt.models.vocabulary_chunk import Cut, LogitsPiece, VocabularyChunk, chunk_rows, losses_of, normaliser_of


def target_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    label_smoothing: float,
    chunks: int = 1,
    choices: Tensor | None = None,
) -> Tensor:
    """Loss of each token in nats, without gradient: [tokens]. Arguments as for `nmt.models.loss.token_losses`.

    `choices` [tokens] is filled with the first word of the largest logit.
    """
    layer = _Layer(hidden, weight, bias, targets, label_smoothing, chunks)
    for piece in layer.cut.pieces:
        logits = layer.multiply(piece)
        for band in layer.cut.bands(piece):
            for part in logits:
                part.exponentials_(band, layer.statistics, choices, keep=False)
    return losses_of(layer.statistics, layer.cut.vocabulary, label_smoothing)


def summed_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float, chunks: int = 1
) -> Tensor:
    """The sum of all token losses as a scalar that can be differentiated once.

    Its gradient is made in the forward pass. So what waits for the backward pass is as large as the arguments.
    """
    loss: Tensor = _SummedLoss.apply(hidden, weight, bias, targets, label_smoothing, chunks)
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
        chunks: int,
    ) -> Tensor:
        layer = _Layer(hidden, weight, bias, targets, label_smoothing, chunks)
        gradients = layer.collect(ctx.needs_input_grad)
        for piece in layer.cut.pieces:
            logits = layer.multiply(piece)
            for band in layer.cut.bands(piece):
                for part in logits:
                    part.exponentials_(band, layer.statistics)
                normaliser = normaliser_of(layer.statistics[:, band])
                for part in logits:
                    part.gradients_(band, normaliser)
            for part in reversed(logits):
                part.multiply_back(gradients[0])
        arguments = zip(gradients, (hidden, weight, bias), strict=True)
        ctx.save_for_backward(*(None if one is None else one.to(argument.dtype) for one, argument in arguments))
        return ordered_sum(losses_of(layer.statistics, layer.cut.vocabulary, label_smoothing))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        # In place: torch then refuses a second pass through the same graph, whose gradients would be wrong.
        scaled = (None if gradient is None else gradient.mul_(upstream) for gradient in ctx.saved_tensors)
        return (*scaled, None, None, None)


class _Layer:
    """All chunks of the output layer for one slot, with a buffer for the logits of each; operands are cast once."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float, chunks: int
    ):
        rows = chunk_rows(len(bias), chunks)
        product_type = compute_type(weight)
        self.cut = Cut(len(hidden), tuple(rows), product_type, hidden.device)
        self.statistics = self.cut.no_statistics(label_smoothing)
        operands = [part.detach().to(product_type) for part in (hidden, weight)]
        self._chunks = [
            VocabularyChunk(self.cut, words, operands[1][words], bias[words], operands[0], targets, label_smoothing)
            for words in rows
        ]
        self._buffers = [chunk.new_buffer() for chunk in self._chunks]
        self._like = (hidden, weight, bias)

    def multiply(self, piece: slice) -> list[LogitsPiece]:
        return [chunk.multiply(piece, buffer) for chunk, buffer in zip(self._chunks, self._buffers, strict=True)]

    def collect(self, needed: tuple[bool, ...]) -> list[Tensor | None]:
        """Where the gradients of hidden states, weight and bias will be; None for what needs none."""
        kinds = (torch.zeros_like, torch.empty_like, torch.zeros_like)  # the weight's is written by the first piece
        of_hidden, of_weight, of_bias = (
            new(argument, dtype=self.cut.softmax_type) if needs else None
            for new, argument, needs in zip(kinds, self._like, needed, strict=False)
        )
        for chunk in self._chunks:
            chunk.collect(
                None if of_weight is None else of_weight[chunk.rows], None if of_bias is None else of_bias[chunk.rows]
            )
        return [of_hidden, of_weight, of_bias]
