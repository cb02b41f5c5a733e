"""The finishing rule of the published system: finished hypotheses keep their place in the beam and compete.

At each step every candidate (a hypothesis of the beam and a next token) is ranked by its score, and the best `beam` of
a sentence become its next hypotheses. The only candidate behind a finished hypothesis is itself, at no cost. With
`stop=all` a sentence is done when all its hypotheses have finished, by EOS or by the length limit.

Diverse groups (Vijayakumar et al. 2016, algorithm 1, with Hamming diversity): the beam is cut into equal groups that
are filled one after the other, each from its own hypotheses, with `diverse_strength` nats off a token for each
hypothesis of an earlier group that chose it in the same step. That decides what is chosen; scores stay the model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS, SOS
from nmt.search.candidates import best_places
from nmt.search.hypotheses import Outputs, Step
from nmt.search.next_tokens import NextTokens
from nmt.search.rows import Rowwise, reorder
from nmt.search.scores import Coverage, LengthPenalty
from nmt.search.stopping import finished_needed


@dataclass(frozen=True)
class GoogleBeam(Rowwise):
    """The hypotheses of a batch, best first; a slot without one has log-probability minus infinity."""

    tokens: Tensor  # [batch, k] newest token
    log_probabilities: Tensor  # [batch, k] float64
    scores: Tensor  # [batch, k] float64
    finished: Tensor  # [batch, k] bool: ended by EOS or by the limit
    limits: Tensor  # [batch] longest length allowed
    steps: Tensor  # [batch] tokens chosen so far
    covered: Tensor | None  # [batch, k, time] attention so far, where coverage is scored
    uncovered: Tensor | None  # [batch, k, time] what it was at first
    search: SearchConfig
    penalty: LengthPenalty
    coverage: Coverage

    @classmethod
    def first(cls, limits: Tensor, lengths: Tensor, time: int, longest: int, search: SearchConfig) -> Self:
        """What a search starts from: nothing but SOS, in the first slot of each group alone.

        limits: [batch] longest outputs; `longest` is the largest. lengths: [batch] of sources padded to `time`.
        """
        shape, device = (len(limits), search.beam), limits.device
        log_probabilities = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
        # With more than one live slot a group would fill with copies.
        log_probabilities[:, :: search.beam // search.diverse_groups] = 0.0
        coverage = Coverage(search)
        uncovered = None if search.coverage == "none" else coverage.first(lengths, time, search.beam)
        return cls(
            tokens=torch.full(shape, SOS, device=device),
            log_probabilities=log_probabilities,
            scores=log_probabilities,
            finished=torch.zeros(shape, dtype=torch.bool, device=device),
            limits=limits,
            steps=torch.zeros_like(limits),
            covered=uncovered,
            uncovered=uncovered,
            search=search,
            penalty=LengthPenalty(search, longest, device),
            coverage=coverage,
        )

    def advance(self, next_tokens: NextTokens, attention: Tensor | None, length: int) -> tuple[Self, Step]:
        """The hypotheses after one more token, the `length`-th; see `nmt.search.hypotheses.Hypotheses`."""
        k = self.tokens.shape[1]
        gains, tokens = next_tokens.candidates(k, self.finished)
        totals = self.log_probabilities.unsqueeze(2) + gains
        ends = tokens == EOS
        divisors = torch.where(ends, self.penalty.ended(length - 1), self.penalty.live(length))
        at_limit = (self.limits <= length).unsqueeze(1)
        covered = live_charges = charges = None
        if self.covered is not None and self.uncovered is not None:
            assert attention is not None, "coverage needs a model with attention"
            covered = self.coverage.after(self.covered, self.uncovered, attention)
            live_charges, end_charges = self.coverage.charges(covered)
            charges = torch.where(ends | at_limit.unsqueeze(2), end_charges.unsqueeze(2), live_charges.unsqueeze(2))

        # EOS may stand among the candidates more than once, but only once with more than minus infinity.
        stays = self.finished.unsqueeze(2) & ends & (totals != -math.inf)
        scores = self._scores(totals, divisors, charges, stays)
        if self.search.diverse_groups == 1:
            order = best_places(scores, k)
        else:
            order = self._diverse(tokens, totals, divisors, charges, stays)
        parents = order // tokens.shape[2]
        tokens, totals, scores = (tensor.flatten(1).gather(1, order) for tensor in (tokens, totals, scores))
        finished = self.finished.gather(1, parents) | (tokens == EOS) | at_limit
        step = Step(tokens, parents, scores, totals)
        if self.search.stop != "all":
            charges = None if live_charges is None else live_charges.gather(1, parents)
            dropped = self._stops(totals, scores, finished, charges, length) & ~finished
            totals, scores = (tensor.masked_fill(dropped, -math.inf) for tensor in (totals, scores))
        beam = replace(
            self,
            tokens=tokens,
            log_probabilities=totals,
            scores=scores,
            finished=finished,
            steps=self.steps + 1,
            covered=None if covered is None else reorder(covered, parents),
        )
        return beam, step

    def going(self) -> Tensor:
        """Which hypotheses [batch, k] go on."""
        return ~self.finished & (self.log_probabilities != -math.inf)

    def outputs(self) -> Outputs:
        """Every hypothesis, best first."""
        scores, slots = self.scores.sort(dim=1, descending=True, stable=True)
        steps = (self.steps - 1).unsqueeze(1).expand_as(slots)
        return Outputs(steps, slots, scores, self.log_probabilities.gather(1, slots))

    def _scores(self, totals: Tensor, divisors: Tensor, charges: Tensor | None, stays: Tensor) -> Tensor:
        """Of candidates [batch, k, n]; one that only stays keeps the score that it finished with."""
        scores = totals / divisors
        if charges is not None:
            scores = scores + charges
        return torch.where(stays, self.scores.unsqueeze(2), scores)

    def _diverse(
        self, tokens: Tensor, totals: Tensor, divisors: Tensor, charges: Tensor | None, stays: Tensor
    ) -> Tensor:
        """The places [batch, k] of the candidates that are chosen, group by group."""
        batch, k, count = tokens.shape
        width = k // self.search.diverse_groups
        orders: list[Tensor] = []
        chosen = tokens.new_empty((batch, 0))  # by earlier groups in this step; -1 where a finished hypothesis stayed
        for start in range(0, k, width):
            same = (tokens.unsqueeze(3) == chosen[:, None, None, :]).sum(dim=3)
            scores = self._scores(totals - self.search.diverse_strength * same, divisors, charges, stays)
            order = best_places(scores[:, start : start + width], width) + start * count
            orders.append(order)
            new = tokens.masked_fill(stays | (totals == -math.inf), -1).flatten(1).gather(1, order)
            chosen = torch.cat((chosen, new), dim=1)
        return torch.cat(orders, dim=1)

    def _stops(self, totals: Tensor, scores: Tensor, finished: Tensor, charges: Tensor | None, length: int) -> Tensor:
        """Which sentences [batch, 1] end now."""
        n_best = self.search.n_best
        if self.search.stop != "bound":
            there = finished & (totals != -math.inf)
            return there.sum(dim=1, keepdim=True) >= finished_needed(self.search)
        bounds = totals / self.penalty.largest(length, self.limits)
        if charges is not None:
            bounds = bounds + charges
        # In the first slots the finished ones also win ties from now on.
        best = finished[:, :n_best].all(dim=1, keepdim=True)
        highest = bounds.masked_fill(finished, -math.inf).amax(dim=1, keepdim=True)
        return best & (scores[:, n_best - 1 : n_best] >= highest)
