"""What an output may be: its length, its beginning, and tokens that may not come next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS, UNK
from nmt.search.rows import Rowwise, reorder

RATIO_ALLOWANCE = 10  # tokens beyond `max_length_ratio` times the source


def length_limit(source_tokens: int, search: SearchConfig) -> int:
    """The longest output of a sentence with `source_tokens` tokens (EOS counted on neither side)."""
    if search.max_length_ratio <= 0:
        return search.max_length
    return min(search.max_length, math.ceil(search.max_length_ratio * source_tokens) + RATIO_ALLOWANCE)


def length_floor(source_tokens: int, search: SearchConfig) -> int:
    """The shortest output of a sentence with `source_tokens` tokens, no longer than its longest."""
    floor = max(search.min_length, math.ceil(search.min_length_ratio * source_tokens))
    return min(floor, length_limit(source_tokens, search))


@dataclass(frozen=True)
class Constraints(Rowwise):
    """Takes the probability from tokens that may not come next; what is left is not scaled up.

    - a shortest length: no EOS before it;
    - `block_ngrams` = n: no token that would repeat n tokens in a row of the same hypothesis. Where that and the
      shortest length leave no token at all, the hypothesis may end;
    - `block_unknown`: no UNK;
    - a forced beginning, to which the other rules do not apply. Its tokens cost what the model says.
    """

    floors: Tensor | None  # [batch] shortest outputs, where there are any
    prefixes: Tensor | None  # [batch, longest prefix] forced tokens
    prefix_lengths: Tensor | None  # [batch]
    history: Tensor | None  # [batch, k, tokens so far], where n-grams are blocked
    longest_floor: int
    longest_prefix: int
    ngrams: int
    unknown: bool

    @classmethod
    def first(
        cls,
        floors: Sequence[int],
        prefixes: Sequence[Sequence[int]] | None,
        k: int,
        search: SearchConfig,
        device: torch.device,
    ) -> Self | None:
        """What holds for sentences of the given shortest lengths and beginnings; None where nothing does."""
        longest_floor = max(floors)
        longest_prefix = max(map(len, prefixes)) if prefixes else 0
        if not (longest_floor or longest_prefix or search.block_ngrams or search.block_unknown):
            return None
        forced = lengths = None
        if prefixes and longest_prefix:
            rows = [[*prefix, *[EOS] * (longest_prefix - len(prefix))] for prefix in prefixes]
            forced = torch.tensor(rows, dtype=torch.int64, device=device)
            lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        history = torch.empty((len(floors), k, 0), dtype=torch.int64, device=device) if search.block_ngrams else None
        return cls(
            floors=torch.tensor(floors, device=device) if longest_floor else None,
            prefixes=forced,
            prefix_lengths=lengths,
            history=history,
            longest_floor=longest_floor,
            longest_prefix=longest_prefix,
            ngrams=search.block_ngrams,
            unknown=search.block_unknown,
        )

    def apply(self, log_probabilities: Tensor, length: int) -> None:
        """Set `log_probabilities` [batch, k, vocabulary] of what may not be the `length`-th token to minus infinity."""
        forced = None
        if self.prefixes is not None and self.prefix_lengths is not None and length <= self.longest_prefix:
            token = self.prefixes[:, None, length - 1 : length].expand(-1, log_probabilities.shape[1], -1)
            forced = token, log_probabilities.gather(2, token), (self.prefix_lengths >= length)[:, None, None]
        ended = log_probabilities[..., EOS].clone()
        early = length <= self.longest_floor
        if early and self.floors is not None:
            log_probabilities[..., EOS].masked_fill_((self.floors >= length).unsqueeze(1), -math.inf)
        if self.unknown:
            log_probabilities[..., UNK] = -math.inf
        if self.history is not None:
            log_probabilities.masked_fill_(self._repeating(self.history, log_probabilities.shape[-1]), -math.inf)
            if early:
                stuck = (log_probabilities == -math.inf).all(dim=2)
                log_probabilities[..., EOS] = torch.where(stuck, ended, log_probabilities[..., EOS])
        if forced is not None:
            token, value, applies = forced
            log_probabilities.masked_fill_(applies, -math.inf)
            log_probabilities.scatter_(2, token, torch.where(applies, value, log_probabilities.gather(2, token)))

    def after(self, parents: Tensor, tokens: Tensor) -> Self:
        """What holds after each hypothesis went on from `parents` with `tokens`, [batch, k] both."""
        if self.history is None:
            return self
        return replace(self, history=torch.cat((reorder(self.history, parents), tokens.unsqueeze(2)), dim=2))

    def _repeating(self, history: Tensor, vocabulary: int) -> Tensor:
        """Which tokens [batch, k, vocabulary] would end an n-gram that is in `history` [batch, k, length] already."""
        batch, k, length = history.shape
        blocked = torch.zeros((batch, k, vocabulary + 1), dtype=torch.bool, device=history.device)
        n = self.ngrams
        if length >= n:
            windows = history.unfold(2, n, 1)  # [batch, k, length - n + 1, n]
            same = (windows[..., :-1] == history[..., None, length - n + 1 :]).all(dim=3)
            blocked.scatter_(2, torch.where(same, windows[..., -1], vocabulary), True)  # no match: the column too many
        blocked[..., EOS] = False  # behind a finished hypothesis stands EOS after EOS
        return blocked[..., :vocabulary]
