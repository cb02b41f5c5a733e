"""What hypotheses are ranked by: log-probability over a length penalty, and what coverage charges.

    score = log P / lp(length) + coverage <= 0

A hypothesis that ended is charged in full. A live one is charged what is certain already: nothing by `wu`, since it may
still attend to what it left out, and by `summary` the excess so far, which can only grow. So the score of a live
hypothesis never falls short of what its coverage will allow, and `LengthPenalty.largest` turns it into a bound on all
that may come of it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from nmt.config.schema import SearchConfig

Lengths = TypeVar("Lengths", float, Tensor)

LEAST_COVERAGE = 1e-10  # of a source word by `wu`: a word that was never attended to costs 23 beta, not infinity


def length_penalty(length: Lengths, alpha: float) -> Lengths:
    """The divisor of a log-probability, ((5 + length) / 6)^alpha (Wu et al. 2016, equation 14).

    `length` counts tokens without EOS. With alpha 0 it is 1; the larger alpha, the more long hypotheses are favoured.
    """
    return ((5.0 + length) / 6.0) ** alpha


class LengthPenalty:
    """The divisors of `search.penalty` for all lengths up to `longest`, by numbers of tokens without EOS.

    gnmt: ((5 + length) / 6)^alpha. power: length^alpha. average: length. none: 1. For `power` and `average` an empty
    output counts as one token. With `penalty_counts_eos` the EOS of a hypothesis that ended with one is a token too.
    """

    def __init__(self, search: SearchConfig, longest: int, device: torch.device):
        lengths = torch.arange(longest + 2, dtype=torch.float64)
        alpha = search.length_penalty
        if search.penalty == "gnmt":
            table = length_penalty(lengths, alpha)
        elif search.penalty == "power":
            table = lengths.clamp(min=1.0) ** alpha
        elif search.penalty == "average":
            table = lengths.clamp(min=1.0)
        else:
            table = torch.ones_like(lengths)
        self.table = table.to(device)
        self.eos = int(search.penalty_counts_eos)
        self.falls = search.penalty in ("gnmt", "power") and alpha < 0

    def live(self, tokens: int) -> Tensor:
        """Of hypotheses that did not end with EOS: live ones, and those that the limit ended."""
        return self.table[tokens]

    def ended(self, tokens: int) -> Tensor:
        """Of hypotheses that ended with EOS behind `tokens` tokens."""
        return self.table[tokens + self.eos]

    def largest(self, tokens: int, limits: Tensor) -> Tensor:
        """The largest divisor [batch, 1] that a live hypothesis of `tokens` tokens can end with.

        Its log-probability is negative and can only fall, so nothing that comes of it scores better than today's
        log-probability over this. The divisor grows with the length unless alpha is negative; then the largest is that
        of ending at once. The bound is loose in that it lets a hypothesis reach its best length for nothing.
        """
        if self.falls:
            return self.ended(tokens).expand(len(limits), 1)
        return self.table[limits].unsqueeze(1)  # the last token before the limit may be the EOS, so this is not passed


class Coverage:
    """Penalties on the attention that each source word got from all output tokens; the source's EOS is no word.

    wu: weight * sum over words of log(min(attention, 1)) (Wu et al. 2016, equation 14): against words left out.
    summary: -weight * sum over words of (max(attention, 1) - 1) (Gehrmann et al. 2018): against words used twice.
    """

    def __init__(self, search: SearchConfig):
        self.kind, self.weight = search.coverage, search.coverage_weight

    def first(self, lengths: Tensor, time: int, k: int) -> Tensor:
        """Attention so far, [batch, k, time] float64: none on words, and 1 elsewhere, which neither kind charges."""
        words = torch.arange(time, device=lengths.device) < (lengths - 1).unsqueeze(1)
        return (~words).double().unsqueeze(1).expand(-1, k, -1)

    def after(self, covered: Tensor, first: Tensor, attention: Tensor) -> Tensor:
        """`covered` and the `attention` [batch, k, time] of one more token; `first` says which places are words."""
        return covered + attention.double().masked_fill(first == 1, 0.0)

    def charges(self, covered: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the scores of live and of ended hypotheses, both [batch, k]."""
        if self.kind == "wu":
            ended = self.weight * covered.clamp(LEAST_COVERAGE, 1.0).log().sum(dim=2)
            return torch.zeros_like(ended), ended
        excess = -self.weight * (covered.clamp(min=1.0) - 1.0).sum(dim=2)
        return excess, excess
