"""Cross-entropy over the target vocabulary, as a whole or in consecutive chunks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.models.layers import ordered_sum
from nmt.models.piecewise import summed_loss, target_losses
from nmt.models.plain import is_plain

if TYPE_CHECKING:
    from nmt.models.stages import Batch


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
    chunks: number of nearly equal chunks of the vocabulary that the softmax is accumulated over, in order, as in
        `nmt.models.vocabulary_chunk`: the arithmetic of a vocabulary that is spread over processes. What autograd
        differentiates has one.
    """
    if not torch.is_grad_enabled():
        return target_losses(hidden, weight, bias, targets, label_smoothing, chunks)
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def training_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0, chunks: int = 1
) -> Tensor:
    """The sum of the `token_losses` as a scalar, added in a fixed order.

    It can be differentiated once (twice within `nmt.models.plain.plain_autograd`, without chunks), and neither pass
    keeps logits of all tokens.
    """
    if is_plain() or not torch.is_grad_enabled():
        return ordered_sum(token_losses(hidden, weight, bias, targets, label_smoothing, chunks))
    return summed_loss(hidden, weight, bias, targets, label_smoothing, chunks)


@torch.no_grad()
def scored_tokens(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunks: int = 1
) -> tuple[Tensor, Tensor]:
    """Loss of each token in nats, without smoothing, and whether the target is the model's first choice: [tokens] each.

    Without gradient. The losses are those of `token_losses` without gradient, bit for bit. Of equally likely tokens the
    first is the choice.
    """
    choices = torch.full_like(targets, -1)
    losses = target_losses(hidden, weight, bias, targets, 0.0, chunks, choices)
    return losses, choices == targets


def real_tokens(mix: Tensor, batch: Batch, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of `mix` [time, batch, h] at the real target tokens, time by time, and these tokens: [tokens, h], [tokens].

    Their number is known, so nothing waits for the device.
    """
    places = _real_places(batch, tokens)
    hidden = F.embedding(places, mix.flatten(0, 1))  # a row look-up whose gradient is far faster than index_select's
    return hidden, batch.target_output.t().flatten()[places]


def real_targets(batch: Batch, tokens: int) -> Tensor:
    """The real target tokens, time by time: [tokens]."""
    return batch.target_output.t().flatten()[_real_places(batch, tokens)]


def _real_places(batch: Batch, tokens: int) -> Tensor:
    steps = torch.arange(batch.target_output.shape[1], device=batch.target_lengths.device).unsqueeze(1)
    return torch.nonzero_static((steps < batch.target_lengths).flatten(), size=tokens).squeeze(1)
