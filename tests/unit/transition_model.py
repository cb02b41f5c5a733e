"""A tiny model for tests of search: a random automaton whose state depends on the source and on every token so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.data.vocabulary import EOS, SOS


class Automaton(NamedTuple):
    first: Tensor  # [batch]
    real: Tensor  # [batch, time]


class TransitionModel:
    """Logits and attention are rows of random tables, addressed by the automaton's state.

    With `spread` some rows are sharp, so that a hypothesis can go on at little cost, and others flat.
    """

    def __init__(self, seed: int, vocabulary: int = 5, states: int = 101, eos_bonus: float = 0.0, spread: float = 0.0):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(states, vocabulary, generator=generator) * 2
        self.table *= torch.exp(spread * torch.randn(states, 1, generator=generator))
        self.table[:, EOS] += eos_bonus
        self.focus = torch.randn(states, 64, generator=torch.Generator().manual_seed(seed + 1)) * 2
        self.states = states
        self.steps = 0
        self.rows: list[int] = []

    def encode(self, source: Tensor, lengths: Tensor) -> Automaton:
        mask = torch.arange(source.shape[1]) < lengths.unsqueeze(1)
        weights = torch.arange(1, source.shape[1] + 1)
        return Automaton((source * mask * weights).sum(dim=1) % self.states, mask)

    def start(self, encoded: Automaton, k: int) -> tuple[Tensor, ...]:
        return (encoded.first.unsqueeze(1).expand(-1, k).contiguous(),)

    def step(
        self, tokens: Tensor, state: tuple[Tensor, ...], encoded: Automaton
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        assert tokens.shape == state[0].shape and len(tokens) == len(encoded.first)
        self.steps += 1
        self.rows.append(tokens.numel())
        number = (state[0] * 31 + tokens * 7 + encoded.first.unsqueeze(1) + 1) % self.states
        real = encoded.real.unsqueeze(1)
        scores = self.focus[number][..., : real.shape[2]].masked_fill(~real, float("-inf"))
        return self.table[number], (number,), scores.softmax(dim=-1)

    def log_probabilities(self, first: int, tokens: tuple[int, ...]) -> Tensor:
        """[vocabulary] log-probabilities of what follows `tokens` for a sentence whose state starts as `first`."""
        return torch.log_softmax(self.table[self._number(first, tokens)], dim=0)

    def attention(self, first: int, tokens: tuple[int, ...], time: int) -> Tensor:
        """[time] attention with which the token behind `tokens` is chosen, for a source of `time` tokens."""
        return self.focus[self._number(first, tokens)][:time].softmax(dim=0)

    def _number(self, first: int, tokens: tuple[int, ...]) -> int:
        number = first
        for token in (SOS, *tokens):
            number = (number * 31 + token * 7 + first + 1) % self.states
        return number


def batch_of(sentences: list[list[int]], width: int = 0) -> tuple[Tensor, Tensor]:
    """Source [batch, time] and lengths [batch], each sentence ending with EOS."""
    lengths = torch.tensor([len(sentence) + 1 for sentence in sentences])
    source = torch.full((len(sentences), max(width, int(lengths.max()))), EOS)
    for row, sentence in enumerate(sentences):
        source[row, : len(sentence)] = torch.tensor(sentence, dtype=torch.int64)
    return source, lengths
