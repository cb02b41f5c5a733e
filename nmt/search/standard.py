"""The finishing rule of most toolkits: a hypothesis that ended leaves the beam, which goes on with live ones only.

At each step all candidates (a hypothesis of the beam and a next token) are ranked by their scores. Those among the
`beam` best that end, with EOS or at the length limit, are finished; the `beam` best that do not end live on. The
`n_best` best finished ones are kept. A candidate that ends further down the ranking is not found, as in fairseq and in
Kasai et al. (2022, algorithm 1): else the first step would finish `beam` hypotheses.
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
class StandardBeam(Rowwise):
    """The live hypotheses of a batch and the best that have finished; minus infinity where a place is empty."""

    tokens: Tensor  # [batch, k] newest token
    log_probabilities: Tensor  # [batch, k] float64
    limits: Tensor  # [batch] longest length allowed
    count: Tensor  # [batch, 1] hypotheses that have finished
    steps: Tensor  # [batch, 1] tokens chosen so far
    found: Tensor  # [batch, n_best] float64 scores of the best that have finished, best first
    found_log_probabilities: Tensor  # [batch, n_best] float64
    found_steps: Tensor  # [batch, n_best] step in which each finished
    found_slots: Tensor  # [batch, n_best] its slot in the record of that step
    covered: Tensor | None  # [batch, k, time] attention so far, where coverage is scored
    uncovered: Tensor | None  # [batch, k, time] what it was at first
    search: SearchConfig
    penalty: LengthPenalty
    coverage: Coverage

    @classmethod
    def first(cls, limits: Tensor, lengths: Tensor, time: int, longest: int, search: SearchConfig) -> Self:
        """What a search starts from: nothing but SOS, in slot 0 alone. Arguments as those of `GoogleBeam.first`."""
        batch, device = len(limits), limits.device
        log_probabilities = torch.full((batch, search.beam), -math.inf, dtype=torch.float64, device=device)
        log_probabilities[:, 0] = 0.0  # with more than one live slot the beam would fill with copies
        nothing = torch.full((batch, search.n_best), -math.inf, dtype=torch.float64, device=device)
        never = torch.zeros_like(nothing, dtype=torch.int64)
        coverage = Coverage(search)
        uncovered = None if search.coverage == "none" else coverage.first(lengths, time, search.beam)
        return cls(
            tokens=torch.full((batch, search.beam), SOS, device=device),
            log_probabilities=log_probabilities,
            limits=limits,
            count=torch.zeros_like(limits).unsqueeze(1),
            steps=torch.zeros_like(limits).unsqueeze(1),
            found=nothing,
            found_log_probabilities=nothing,
            found_steps=never,
            found_slots=never,
            covered=uncovered,
            uncovered=uncovered,
            search=search,
            penalty=LengthPenalty(search, longest, device),
            coverage=coverage,
        )

    def advance(self, next_tokens: NextTokens, attention: Tensor | None, length: int) -> tuple[Self, Step]:
        """The hypotheses after one more token, the `length`-th; see `nmt.search.hypotheses.Hypotheses`.

        Its record has 2k slots: the k live hypotheses, then those of the k best candidates that ended.
        """
        k = self.tokens.shape[1]
        gains, tokens = next_tokens.candidates(k)
        totals = self.log_probabilities.unsqueeze(2) + gains
        with_eos = tokens == EOS
        ends = with_eos | (self.limits <= length)[:, None, None]
        scores = totals / torch.where(with_eos, self.penalty.ended(length - 1), self.penalty.live(length))
        covered = live_charges = None
        if self.covered is not None and self.uncovered is not None:
            assert attention is not None, "coverage needs a model with attention"
            covered = self.coverage.after(self.covered, self.uncovered, attention)
            live_charges, end_charges = self.coverage.charges(covered)
            scores = scores + torch.where(ends, end_charges.unsqueeze(2), live_charges.unsqueeze(2))

        # At most one candidate of each hypothesis ends before the limit, so the best 2k hold k that do not.
        order = best_places(scores, 2 * k)
        parents = order // tokens.shape[2]
        tokens, totals, scores, ends = (
            tensor.flatten(1).gather(1, order) for tensor in (tokens, totals, scores, ends.expand_as(tokens))
        )
        front = slice(k)
        ended_scores, ended_totals = (
            tensor[:, front].masked_fill(~ends[:, front], -math.inf) for tensor in (scores, totals)
        )
        lives = ends.int().sort(dim=1, stable=True).indices[:, :k]  # those that do not end come first, best first
        totals, live_scores = (tensor.masked_fill(ends, -math.inf).gather(1, lives) for tensor in (totals, scores))
        live_parents = parents.gather(1, lives)
        step = Step(
            tokens=torch.cat((tokens.gather(1, lives), tokens[:, front]), dim=1),
            parents=torch.cat((live_parents, parents[:, front]), dim=1),
            scores=torch.cat((live_scores, ended_scores), dim=1),
            log_probabilities=torch.cat((totals, ended_totals), dim=1),
        )
        beam = replace(
            self,
            tokens=step.tokens[:, :k],
            log_probabilities=totals,
            steps=self.steps + 1,
            count=self.count + (ended_totals != -math.inf).sum(dim=1, keepdim=True),
            covered=None if covered is None else reorder(covered, live_parents),
        )._finish(ended_scores, ended_totals)
        charges = None if live_charges is None else live_charges.gather(1, live_parents)
        stops = beam._stops(charges, length)
        return replace(beam, log_probabilities=totals.masked_fill(stops, -math.inf)), step

    def going(self) -> Tensor:
        """Which hypotheses [batch, k] go on."""
        return self.log_probabilities != -math.inf

    def outputs(self) -> Outputs:
        """The best finished hypotheses."""
        return Outputs(self.found_steps, self.found_slots, self.found, self.found_log_probabilities)

    def _finish(self, scores: Tensor, log_probabilities: Tensor) -> Self:
        """With what ends in this step, [batch, k], put among what finished before; among equals the earlier ones."""
        n_best, k = self.found.shape[1], scores.shape[1]
        slots = torch.arange(k, 2 * k, device=scores.device).expand(len(scores), k)
        step = (self.steps - 1).expand_as(slots)
        scores, order = torch.cat((self.found, scores), dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, :n_best]

        def best(before: Tensor, now: Tensor) -> Tensor:
            return torch.cat((before, now), dim=1).gather(1, order)

        return replace(
            self,
            found=scores[:, :n_best],
            found_log_probabilities=best(self.found_log_probabilities, log_probabilities),
            found_steps=best(self.found_steps, step),
            found_slots=best(self.found_slots, slots),
        )

    def _stops(self, charges: Tensor | None, length: int) -> Tensor:
        """Which sentences [batch, 1] end now."""
        if self.search.stop != "bound":
            return self.count >= finished_needed(self.search)
        bounds = self.log_probabilities / self.penalty.largest(length, self.limits)
        if charges is not None:
            bounds = bounds + charges
        return self.found[:, -1:] >= bounds.amax(dim=1, keepdim=True)
