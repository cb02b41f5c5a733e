"""Outputs drawn from the model's distribution, token by token.

The distribution of a next token is the model's at `temperature`, of the `top_k` likeliest tokens, of the likeliest ones
that together have probability `top_p` (Holtzman et al. 2020), in this order. Log-probabilities and scores are those of
the model itself.

Random numbers are addressed by (seed, source sentence, number of the sample, step) and never consumed from a stream
that sentences share: a sample depends neither on its batch nor on how many others are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS, SOS
from nmt.search.candidates import largest
from nmt.search.hypotheses import Outputs, Step
from nmt.search.interface import Hypothesis, RowModel, TranslationModel
from nmt.search.loop import run
from nmt.search.next_tokens import NextTokens
from nmt.search.rows import Rowwise
from nmt.search.scores import LengthPenalty
from nmt.search.statistics import SearchStatistics
from nmt.search.trace import Trace

ONE = 2**52  # probability 1 in whole numbers; a token below 2^-53 is never drawn


@dataclass(frozen=True)
class Samples(Rowwise):
    """`search.n_best` outputs of each sentence of a batch, in the order of their numbers."""

    tokens: Tensor  # [batch, n] newest token
    log_probabilities: Tensor  # [batch, n] float64, of the model
    scores: Tensor  # [batch, n] float64
    finished: Tensor  # [batch, n] bool: ended by EOS or by the limit
    limits: Tensor  # [batch] longest length allowed
    steps: Tensor  # [batch] tokens drawn so far
    uniform: Tensor  # [batch, n, longest limit] float64 random numbers in [0, 1), one a token
    search: SearchConfig
    penalty: LengthPenalty

    @classmethod
    def first(cls, limits: Tensor, uniform: Tensor, longest: int, search: SearchConfig) -> Self:
        """What drawing starts from: nothing but SOS."""
        shape, device = (len(limits), search.n_best), limits.device
        nothing = torch.zeros(shape, dtype=torch.float64, device=device)
        return cls(
            tokens=torch.full(shape, SOS, device=device),
            log_probabilities=nothing,
            scores=nothing,
            finished=torch.zeros(shape, dtype=torch.bool, device=device),
            limits=limits,
            steps=torch.zeros_like(limits),
            uniform=uniform,
            search=search,
            penalty=LengthPenalty(search, longest, device),
        )

    def advance(self, next_tokens: NextTokens, attention: Tensor | None, length: int) -> tuple[Self, Step]:
        """The outputs after one more token, the `length`-th; see `nmt.search.hypotheses.Hypotheses`."""
        log_probabilities = next_tokens.log_probabilities()
        drawn = draw(log_probabilities, self.uniform[:, :, length - 1], self.search)
        tokens = drawn.masked_fill(self.finished, EOS)
        gains = log_probabilities.gather(2, tokens.unsqueeze(2)).squeeze(2).masked_fill(self.finished, 0.0)
        totals = self.log_probabilities + gains
        ends = tokens == EOS
        scores = totals / torch.where(ends, self.penalty.ended(length - 1), self.penalty.live(length))
        scores = torch.where(self.finished, self.scores, scores)
        samples = replace(
            self,
            tokens=tokens,
            log_probabilities=totals,
            scores=scores,
            finished=self.finished | ends | (self.limits <= length).unsqueeze(1),
            steps=self.steps + 1,
        )
        slots = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return samples, Step(tokens, slots, scores, totals)

    def going(self) -> Tensor:
        """Which outputs [batch, n] go on."""
        return ~self.finished

    def outputs(self) -> Outputs:
        """All of them, in the order of their numbers."""
        slots = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        steps = (self.steps - 1).unsqueeze(1).expand_as(slots)
        return Outputs(steps, slots, self.scores, self.log_probabilities)


def sample(
    model: TranslationModel | RowModel,
    source: Tensor,
    lengths: Tensor,
    search: SearchConfig,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    attention: bool = False,
    trace: Trace | None = None,
    statistics: SearchStatistics | None = None,
) -> list[list[Hypothesis]]:
    """`search.n_best` outputs of each sentence in the order of drawing; arguments as of `beam_search`."""

    def first(rows: Tensor, limits: Tensor, longest: int) -> Samples:
        sentences = [tokens[:length] for tokens, length in zip(source.tolist(), lengths.tolist(), strict=True)]
        uniform = uniform_numbers(sentences, search.seed, search.n_best, longest)
        return Samples.first(limits, uniform.to(source.device)[rows], longest, search)

    return run(
        model,
        source,
        lengths,
        search,
        first,
        search.n_best,
        prefixes=prefixes,
        attention=attention,
        trace=trace,
        statistics=statistics,
    )


def draw(log_probabilities: Tensor, uniform: Tensor, search: SearchConfig) -> Tensor:
    """Tokens [batch, n] at the places `uniform` [batch, n] of the cumulative distributions; see the module's docstring.

    Minus infinity among `log_probabilities` [batch, n, vocabulary] is never drawn.
    """
    values, tokens = log_probabilities.double() / search.temperature, None
    if 0 < search.top_k < values.shape[-1]:
        rows = log_probabilities.flatten(0, 1)  # in the order of `values`, in a type that has a fast look-up
        tokens = largest(rows, search.top_k)[1].sort(dim=1).values.view(*values.shape[:2], -1)
        values = values.gather(-1, tokens)
    if search.top_p < 1.0:
        values, order = values.sort(dim=-1, descending=True, stable=True)
        tokens = order if tokens is None else tokens.gather(-1, order)
    # Whole numbers add up in any order, and CUDA has no deterministic cumulative sum of others.
    weights = (values.log_softmax(dim=-1).exp() * ONE).round().long()
    cumulative = weights.cumsum(dim=-1)
    if search.top_p < 1.0:
        # A token stays if those before it have not reached top_p, so the first one always does.
        weights = weights.masked_fill(cumulative - weights >= int(search.top_p * ONE), 0)
        cumulative = weights.cumsum(dim=-1)
    total = cumulative[..., -1]
    aims = torch.minimum((uniform * total).long(), total - 1)
    places = torch.searchsorted(cumulative, aims.unsqueeze(-1), right=True)
    places = places.clamp(max=cumulative.shape[-1] - 1)  # of a model that computes no numbers
    return (places if tokens is None else tokens.gather(2, places)).squeeze(2)


def uniform_numbers(sources: Sequence[Sequence[int]], seed: int, samples: int, steps: int) -> Tensor:
    """[sentences, samples, steps] float64 in [0, 1): rows are functions of seed, sentence and number of the sample."""
    numbers = np.empty((len(sources), samples, steps))
    for row, source in zip(numbers, sources, strict=True):
        text = ",".join(map(str, source))
        for number in range(samples):
            address = hashlib.blake2b(f"{seed}/{number}/{text}".encode(), digest_size=16).digest()
            key = np.frombuffer(address, dtype=np.uint64)
            row[number] = np.random.Generator(np.random.Philox(key=key)).random(steps)
    return torch.from_numpy(numbers)
