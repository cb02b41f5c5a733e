"""Searches straight from their definitions: one sentence, one hypothesis at a time, in plain Python."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from transition_model import TransitionModel, batch_of

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS, UNK
from nmt.search.interface import Hypothesis


@dataclass(frozen=True)
class Partial:
    """A hypothesis: `eos` says whether it ended with EOS, `ended` whether it ended at all."""

    tokens: tuple[int, ...]
    total: float
    eos: bool
    ended: bool
    score: float


class Reference:
    """One sentence under one search."""

    def __init__(self, model: TransitionModel, sentence: list[int], search: SearchConfig, prefix: tuple[int, ...] = ()):
        self.model, self.search, self.prefix = model, search, prefix
        self.first = int(model.encode(*batch_of([sentence])).first)
        self.words = len(sentence)
        self.limit = search.max_length
        if search.max_length_ratio:
            self.limit = min(self.limit, math.ceil(search.max_length_ratio * self.words) + 10)
        self.floor = min(self.limit, max(search.min_length, math.ceil(search.min_length_ratio * self.words)))
        self.limit = max(self.limit, len(prefix))

    def gains(self, tokens: tuple[int, ...]) -> dict[int, float]:
        """What may follow, and what it costs."""
        everything = dict(enumerate(self.model.log_probabilities(self.first, tokens).double().tolist()))
        if len(tokens) < len(self.prefix):
            forced = self.prefix[len(tokens)]
            return {forced: everything[forced]}
        allowed = dict(everything)
        if len(tokens) < self.floor:
            del allowed[EOS]
        if self.search.block_unknown:
            del allowed[UNK]
        n = self.search.block_ngrams
        if n:
            seen = {tokens[i : i + n] for i in range(len(tokens) - n + 1)}
            for token in list(allowed):
                if token != EOS and (*tokens, token)[-n:] in seen:
                    del allowed[token]
        return allowed or {EOS: everything[EOS]}

    def score(self, tokens: tuple[int, ...], total: float, *, eos: bool, ended: bool) -> float:
        search = self.search
        length = len(tokens) + (eos and search.penalty_counts_eos)
        divisor = {
            "gnmt": ((5 + length) / 6) ** search.length_penalty,
            "power": max(length, 1) ** search.length_penalty,
            "average": max(length, 1),
            "none": 1.0,
        }[search.penalty]
        return total / divisor + self.coverage(tokens, eos=eos, ended=ended)

    def coverage(self, tokens: tuple[int, ...], *, eos: bool, ended: bool) -> float:
        search = self.search
        if search.coverage == "none":
            return 0.0
        sums = [0.0] * self.words
        for position in range(len(tokens) + eos):
            weights = self.model.attention(self.first, tokens[:position], self.words + 1).tolist()
            sums = [one + other for one, other in zip(sums, weights[: self.words], strict=True)]
        if search.coverage == "summary":
            return -search.coverage_weight * sum(max(value, 1.0) - 1.0 for value in sums)
        return search.coverage_weight * sum(math.log(min(value, 1.0)) for value in sums) if ended else 0.0

    def extend(self, partial: Partial) -> list[tuple[int, Partial]]:
        """Every candidate behind a live hypothesis with its token, tokens ascending."""
        found = []
        for token, gain in sorted(self.gains(partial.tokens).items()):
            eos = token == EOS
            tokens = partial.tokens if eos else (*partial.tokens, token)
            ended, total = eos or len(tokens) == self.limit, partial.total + gain
            found.append((token, Partial(tokens, total, eos, ended, self.score(tokens, total, eos=eos, ended=ended))))
        return found

    def start(self) -> Partial:
        return Partial((), 0.0, False, False, 0.0)

    def everything(self) -> list[Partial]:
        """All outputs, best first."""
        found, live = [], [self.start()]
        while live:
            extended = [candidate for partial in live for _, candidate in self.extend(partial)]
            found += [candidate for candidate in extended if candidate.ended]
            live = [candidate for candidate in extended if not candidate.ended]
        return sorted(found, key=lambda partial: -partial.score)

    def needed(self) -> float:
        if self.search.stop == "first_n":
            return self.search.n_best
        return self.search.beam * self.search.patience if self.search.stop == "patience" else math.inf

    def google(self) -> list[Partial]:
        """With `bound` it runs to the end, since that must make no difference."""
        width = self.search.beam // self.search.diverse_groups
        groups = [[self.start()] for _ in range(self.search.diverse_groups)]
        while not all(partial.ended for partial in itertools.chain(*groups)):
            chosen: list[int] = []
            for number, group in enumerate(groups):
                candidates = []
                for slot, partial in enumerate(group):
                    if partial.ended:
                        candidates.append((-partial.score, slot, EOS, -1, partial))
                        continue
                    for token, new in self.extend(partial):
                        off = self.search.diverse_strength * chosen.count(token)
                        seen = self.score(new.tokens, new.total - off, eos=new.eos, ended=new.ended)
                        candidates.append((-seen, slot, token, token, new))
                best = sorted(candidates, key=lambda candidate: candidate[:3])[:width]
                groups[number] = [new for *_, new in best]
                chosen += [token for *_, token, _ in best if token >= 0]
            finished = [partial for partial in itertools.chain(*groups) if partial.ended]
            if len(finished) >= self.needed():
                return self.best(finished)
        return self.best(list(itertools.chain(*groups)))

    def standard(self) -> list[Partial]:
        """With `bound` it runs to the end, since that must make no difference."""
        beam, finished = [self.start()], []
        while beam and len(finished) < self.needed():
            candidates = [
                (-new.score, slot, token, new)
                for slot, partial in enumerate(beam)
                for token, new in self.extend(partial)
            ]
            ranked = [new for *_, new in sorted(candidates, key=lambda candidate: candidate[:3])]
            finished += [new for new in ranked[: self.search.beam] if new.ended]
            beam = [new for new in ranked if not new.ended][: self.search.beam]
        return self.best(finished)

    def best(self, finished: list[Partial]) -> list[Partial]:
        kept: dict[tuple[int, ...], Partial] = {}
        for partial in sorted(finished, key=lambda partial: -partial.score):
            kept.setdefault(partial.tokens, partial)
        return list(kept.values())[: self.search.n_best]

    def search_result(self) -> list[Partial]:
        return self.standard() if self.search.finishing == "standard" else self.google()


def agrees(found: list[Hypothesis], expected: list[Partial]) -> bool:
    """The same outputs in the same order, with the same scores up to rounding."""
    return [hypothesis.tokens for hypothesis in found] == [partial.tokens for partial in expected] and all(
        math.isclose(one.score, other.score, abs_tol=1e-5)
        and math.isclose(one.log_probability, other.total, abs_tol=1e-5)
        for one, other in zip(found, expected, strict=True)
    )
