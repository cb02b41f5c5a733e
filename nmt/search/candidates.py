"""What may follow each hypothesis: EOS and the likeliest other tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nmt.data.vocabulary import EOS


def candidates(log_probabilities: Tensor, count: int, finished: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gains in log-probability and tokens of what may follow each hypothesis, both [batch, k, candidates].

    Tokens ascend. EOS is always among them, beside the `count` likeliest others: no more than `count` continuations of
    one hypothesis can be among the `count` best of its sentence. Behind a finished hypothesis (`finished` [batch, k])
    only EOS counts, at no cost. `log_probabilities` [batch, k, vocabulary] are overwritten.
    """
    ended = log_probabilities[..., EOS].clone()
    log_probabilities[..., EOS] = -math.inf
    gains, tokens = largest(log_probabilities, min(count, log_probabilities.shape[-1] - 1))
    if finished is not None:
        ended = ended.masked_fill(finished, 0.0)
        gains = gains.masked_fill(finished.unsqueeze(2), -math.inf)
    gains = torch.cat((ended.unsqueeze(2), gains), dim=2)
    tokens = torch.cat((torch.full_like(tokens[..., :1], EOS), tokens), dim=2)
    tokens, order = tokens.sort(dim=2)
    return gains.gather(2, order), tokens


def best_places(scores: Tensor, count: int) -> Tensor:
    """Places [batch, count] of the largest of `scores` [batch, k, n], best first; of equal ones the first."""
    # Candidates stand in the order (slot, token), and a stable sort keeps it among equal scores.
    return scores.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :count]


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of the last dimension and their places; of equal values the first ones."""
    highest, places = values.topk(min(count + 1, values.shape[-1]), dim=-1)
    if highest.shape[-1] > count:
        # topk chooses freely among equals, which shows where they stand on both sides of the cut.
        cut = highest[..., count - 1]
        tied = ((cut == highest[..., count]) & (cut != -math.inf)).nonzero(as_tuple=True)
        if len(tied[0]):
            places[tied] = values[tied].sort(dim=-1, descending=True, stable=True).indices[:, : count + 1]
    return highest[..., :count], places[..., :count]
