"""What the two beams and sampling have in common: the interface to the loop over tokens."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

from torch import Tensor

from nmt.search.next_tokens import NextTokens


class Step(NamedTuple):
    """What one more token made of a batch: a record of its hypotheses, [batch, slots] each.

    tokens: chosen last; EOS behind a hypothesis that ended. parents: slot of the step before. scores and
    log_probabilities: float64; minus infinity where a slot holds nothing.
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    log_probabilities: Tensor


class Outputs(NamedTuple):
    """The hypotheses found for each sentence, best first, [batch, n] each; missing ones have minus infinity.

    steps: number of the step, from 0, at which the way back begins; slots: the slot there.
    """

    steps: Tensor
    slots: Tensor
    scores: Tensor
    log_probabilities: Tensor


class Hypotheses(Protocol):
    """The hypotheses of a batch under one method; every method returns new ones and changes nothing."""

    @property
    def tokens(self) -> Tensor:
        """[batch, k] what the model reads next."""

    def advance(self, next_tokens: NextTokens, attention: Tensor | None, length: int) -> tuple[Self, Step]:
        """One more token, the `length`-th, by its distributions behind the hypotheses that go on.

        `attention` [batch, k, time] are the weights of this step.
        """

    def going(self) -> Tensor:
        """Which hypotheses [batch, k] go on: a sentence with none is done."""

    def outputs(self) -> Outputs:
        """What was found."""

    def take(self, rows: Tensor | slice) -> Self:
        """Some sentences of these."""

    def put(self, rows: Tensor, other: Self) -> Self:
        """These sentences, with those of `other` in the given rows."""
