"""Cross-entropy over the target vocabulary, in one piece or in consecutive chunks of the vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.models.layers import ordered_sum
from nmt.models.piecewise import summed_loss, target_losses
from nmt.models.plain import is_plain


class ChunkStatistics(NamedTuple):
    """What one chunk of the vocabulary contributes to each token's loss; every field is [tokens].

    maximum: largest logit (carries no gradient: it cancels). exp_sum: sum of exp(logit - maximum).
    target: the target's logit, zero where the target lies in another chunk. total: sum of the logits.
    """

    maximum: Tensor
    exp_sum: Tensor
    target: Tensor
    total: Tensor


def token_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0, chunks: int = 1
) -> Tensor:
    """Loss of each token in nats: [tokens].

        loss = (1 - ε) · (-log p[target]) + ε · mean over the whole vocabulary of -log p

    (Szegedy et al. 2016, section 7, with a uniform prior.) Logits are a matrix product and follow autocast; everything
    after it is at least float32.

    Parameters
    ----------
    hidden: [tokens, h]. weight: [V, h]. bias: [V]. targets: [tokens], each in 0 … V - 1.
    label_smoothing: ε, the probability mass that is spread evenly over the vocabulary.
    chunks: number of nearly equal chunks of the vocabulary that the softmax is accumulated over, in order; with more
        than one, the arithmetic is that of a vocabulary spread over as many processes.
    """
    if chunks == 1:
        if not torch.is_grad_enabled():
            return target_losses(hidden, weight, bias, targets, label_smoothing)
        logits = _at_least_float32(F.linear(hidden, weight, bias))
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    merged: ChunkStatistics | None = None
    start = 0
    for weight_chunk, bias_chunk in zip(weight.tensor_split(chunks), bias.tensor_split(chunks), strict=True):
        if not len(bias_chunk):
            continue  # more chunks than entries
        statistics = chunk_statistics(hidden, weight_chunk, bias_chunk, targets, start)
        merged = statistics if merged is None else merge(merged, statistics)
        start += len(bias_chunk)
    assert merged is not None
    return losses_from(merged, len(bias), label_smoothing)


def training_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0, chunks: int = 1
) -> Tensor:
    """The sum of the `token_losses` as a scalar, added in a fixed order.

    With one chunk of the vocabulary it can be differentiated once (twice within `nmt.models.plain.plain_autograd`), and
    neither pass keeps logits of all tokens.
    """
    if chunks > 1 or is_plain() or not torch.is_grad_enabled():
        return ordered_sum(token_losses(hidden, weight, bias, targets, label_smoothing, chunks))
    return summed_loss(hidden, weight, bias, targets, label_smoothing)


@torch.no_grad()
def scored_tokens(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunks: int = 1
) -> tuple[Tensor, Tensor]:
    """Loss of each token in nats, without smoothing, and whether the target is the model's first choice: [tokens] each.

    Without gradient. The losses are those of `token_losses` without gradient, bit for bit. Of equally likely tokens the
    first is the choice.
    """
    if chunks == 1:
        hits = torch.empty_like(targets, dtype=torch.bool)
        return target_losses(hidden, weight, bias, targets, 0.0, hits), hits
    pieces = zip(weight.tensor_split(chunks), bias.tensor_split(chunks), strict=True)
    logits = torch.cat([F.linear(hidden, weight_chunk, bias_chunk) for weight_chunk, bias_chunk in pieces], dim=-1)
    return token_losses(hidden, weight, bias, targets, chunks=chunks), logits.argmax(dim=-1) == targets


def chunk_statistics(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, start: int) -> ChunkStatistics:
    """Statistics of the vocabulary entries from `start` on; `weight` and `bias` are those of these entries only."""
    logits = _at_least_float32(F.linear(hidden, weight, bias))
    maximum = logits.detach().amax(dim=-1)
    local = targets - start
    inside = (local >= 0) & (local < len(bias))
    picked = logits.gather(-1, local.clamp(0, len(bias) - 1).unsqueeze(-1)).squeeze(-1)
    return ChunkStatistics(
        maximum=maximum,
        exp_sum=(logits - maximum.unsqueeze(-1)).exp().sum(dim=-1),
        target=torch.where(inside, picked, 0.0),
        total=logits.sum(dim=-1),
    )


def merge(one: ChunkStatistics, other: ChunkStatistics) -> ChunkStatistics:
    """Statistics of two chunks together; the order of merging is part of the arithmetic."""
    maximum = torch.maximum(one.maximum, other.maximum)
    exp_sum = one.exp_sum * (one.maximum - maximum).exp() + other.exp_sum * (other.maximum - maximum).exp()
    return ChunkStatistics(maximum, exp_sum, one.target + other.target, one.total + other.total)


def losses_from(merged: ChunkStatistics, vocabulary: int, label_smoothing: float) -> Tensor:
    """Token losses [tokens] from the statistics of the whole vocabulary."""
    log_normaliser = merged.maximum + merged.exp_sum.log()
    expected = (1 - label_smoothing) * merged.target + label_smoothing / vocabulary * merged.total
    return log_normaliser - expected


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
