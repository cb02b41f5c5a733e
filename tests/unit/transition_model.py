"""A tiny model for tests of search: a random automaton whose state depends on the source and on every token so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.data.vocabulary import EOS, SOS


class Automaton(NamedTuple):
    first: Tensor  # [batch]


class TransitionModel:
    """Logits are a row of a random table, addressed by the automaton's state."""

    def __init__(self, seed: int, vocabulary: int = 5, states: int = 101, eos_bonus: float = 0.0):
        self.table = torch.randn(states, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2
        self.table[:, EOS] += eos_bonus
        self.states = states
        self.steps = 0
        self.rows: list[int] = []

    def encode(self, source: Tensor, lengths: Tensor) -> Automaton:
        mask = torch.arange(source.shape[1]) < lengths.unsqueeze(1)
        weights = torch.arange(1, source.shape[1] + 1)
        return Automaton((source * mask * weights).sum(dim=1) % self.states)

    def start(self, encoded: Automaton, k: int) -> tuple[Tensor, ...]:
        return (encoded.first.unsqueeze(1).expand(-1, k).contiguous(),)

    def step(
        self, tokens: Tensor, state: tuple[Tensor, ...], encoded: Automaton
    ) -> tuple[Tensor, tuple[Tensor, ...], None]:
        assert tokens.shape == state[0].shape and len(tokens) == len(encoded.first)
        self.steps += 1
        self.rows.append(tokens.numel())
        number = (state[0] * 31 + tokens * 7 + encoded.first.unsqueeze(1) + 1) % self.states
        return self.table[number], (number,), None

    def log_probabilities(self, first: int, tokens: tuple[int, ...]) -> Tensor:
        """[vocabulary] log-probabilities of what follows `tokens` for a sentence whose state starts as `first`."""
        number = first
        for token in (SOS, *tokens):
            number = (number * 31 + token * 7 + first + 1) % self.states
        return torch.log_softmax(self.table[number], dim=0)


def batch_of(sentences: list[list[int]], width: int = 0) -> tuple[Tensor, Tensor]:
    """Source [batch, time] and lengths [batch], each sentence ending with EOS."""
    lengths = torch.tensor([len(sentence) + 1 for sentence in sentences])
    source = torch.full((len(sentences), max(width, int(lengths.max()))), EOS)
    for row, sentence in enumerate(sentences):
        source[row, : len(sentence)] = torch.tensor(sentence, dtype=torch.int64)
    return source, lengths
