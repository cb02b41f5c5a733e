"""Several models that choose each next token together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.search.interface import RowModel, TranslationModel
from nmt.search.rows import in_rows


class Ensemble:
    """A `TranslationModel` whose next-token distribution is the mean of its members'.

    Parameters
    ----------
    members: models with one target vocabulary that read the same source tokens; on one device, in evaluation mode.
    combination: `log_prob`, the mean of log-probabilities, renormalised (a geometric mean), or `prob`, the mean of
        probabilities. With one member both are that member, bit for bit.
    attends: of each member, whether it has attention; None: all have. Weights are the mean over those that have, since
        one without gives zeros, or None where none has.

    Raises ValueError where there is no member.
    """

    def __init__(
        self,
        members: Sequence[TranslationModel],
        combination: str = "log_prob",
        attends: Sequence[bool] | None = None,
    ):
        if not members:
            raise ValueError("an ensemble of no models")
        if combination not in ("log_prob", "prob"):
            raise ValueError(f"unknown combination '{combination}'")
        self.members, self.combination = list(members), combination
        self.attends = [True] * len(members) if attends is None else list(attends)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        """What each member makes of the sentences."""
        return tuple(member.encode(source, lengths) for member in self.members)

    def start(self, encoded: tuple[Any, ...], k: int) -> tuple[Any, ...]:
        """Each member's first state."""
        return tuple(member.start(own, k) for member, own in zip(self.members, encoded, strict=True))

    def step(
        self, tokens: Tensor, state: tuple[Any, ...], encoded: tuple[Any, ...]
    ) -> tuple[Tensor, tuple[Any, ...], Tensor | None]:
        """One token further; the logits are log-probabilities up to a constant of each distribution."""
        steps = [
            member.step(tokens, own, memory) for member, own, memory in zip(self.members, state, encoded, strict=True)
        ]
        return (
            self.combined([logits for logits, _, _ in steps]),
            tuple(after for _, after, _ in steps),
            self.mean_attention([attention for _, _, attention in steps]),
        )

    def in_rows(self, steps: int = 0) -> RowsOfEnsemble:
        """The form that a search drives."""
        return RowsOfEnsemble(self, [in_rows(member, steps) for member in self.members])

    def __call__(self, batch: Any) -> Tensor:
        """Losses of a batch's real target tokens under teacher forcing, time by time: [tokens], as `Seq2Seq` has them.

        With several members, step by step: the mean of log-probabilities needs all of each distribution.
        """
        if len(self.members) == 1:
            return self.members[0](batch)  # type: ignore[operator]
        encoded = self.encode(batch.source, batch.source_lengths)
        state = self.start(encoded, 1)
        losses = []
        for time in range(batch.target_input.shape[1]):
            logits, state, _ = self.step(batch.target_input[:, time : time + 1], state, encoded)
            log_probabilities = torch.log_softmax(logits.float(), dim=-1).squeeze(1)
            losses.append(-log_probabilities.gather(1, batch.target_output[:, time : time + 1]).squeeze(1))
        every = torch.stack(losses)
        real = torch.arange(len(losses), device=every.device).unsqueeze(1) < batch.target_lengths
        return every[real]

    def mean_attention(self, weights: Sequence[Tensor | None]) -> Tensor | None:
        """The mean over the members that have attention, of each member's weights."""
        own = [one for one, attends in zip(weights, self.attends, strict=True) if attends and one is not None]
        return torch.stack(own).mean(dim=0) if len(own) > 1 else own[0] if own else None

    def combined(self, logits: Sequence[Tensor]) -> Tensor:
        """Log-probabilities up to a constant of each distribution, from each member's logits [..., vocabulary]."""
        if len(logits) == 1:
            return logits[0]
        log_probabilities = torch.stack([torch.log_softmax(own.float(), dim=-1) for own in logits])
        if self.combination == "log_prob":
            return log_probabilities.mean(dim=0)
        return log_probabilities.logsumexp(dim=0) - math.log(len(logits))


class RowsOfEnsemble:
    """An `Ensemble` as a `nmt.search.interface.RowModel`, from its members in that form."""

    def __init__(self, ensemble: Ensemble, members: Sequence[RowModel]):
        self.ensemble, self.members = ensemble, list(members)

    @property
    def packs(self) -> bool:
        """Whether all members do."""
        return all(member.packs for member in self.members)

    def in_rows(self, steps: int = 0) -> RowsOfEnsemble:
        """Itself."""
        return self

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        """What each member makes of the sentences."""
        return tuple(member.encode(source, lengths) for member in self.members)

    def start(self, encoded: tuple[Any, ...]) -> tuple[Any, ...]:
        """Each member's first state."""
        return tuple(member.start(own) for member, own in zip(self.members, encoded, strict=True))

    def step(
        self, tokens: Tensor, state: tuple[Any, ...], encoded: tuple[Any, ...], rows: HypothesisRows
    ) -> tuple[tuple[Any, ...], tuple[Any, ...], Tensor | None]:
        """One token further; the outputs are each member's."""
        outputs, states, weights = zip(
            *(
                member.step(tokens, own, memory, rows)
                for member, own, memory in zip(self.members, state, encoded, strict=True)
            ),
            strict=True,
        )
        return outputs, states, self.ensemble.mean_attention(weights)

    def logits(self, outputs: tuple[Any, ...]) -> Tensor:
        """Log-probabilities up to a constant of each distribution."""
        return self.ensemble.combined([member.logits(own) for member, own in zip(self.members, outputs, strict=True)])
