"""What a search asks of a model, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from nmt.models.hypothesis_rows import HypothesisRows


@dataclass(frozen=True)
class Hypothesis:
    """One output for a sentence.

    tokens: token numbers without EOS.
    score: what hypotheses are ranked by: log-probability divided by the length penalty, less what coverage charges.
    log_probability: natural logarithm, the EOS included where the hypothesis ended with one.
    attention: where it was asked for, [tokens, source tokens] float32 on the CPU: the weights with which each token was
        chosen, in the order of the source, whose EOS is the last column. Equality of hypotheses does not look at it.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    attention: Tensor | None = field(default=None, compare=False)


class TranslationModel(Protocol):
    """What a search asks of a model; `nmt.models.seq2seq.Seq2Seq` is one, `nmt.search.ensemble.Ensemble` another."""

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """`source` [batch, time] and `lengths` [batch] to a (nested, named) tuple of tensors, first dimension batch."""

    def start(self, encoded: Any, k: int) -> Any:
        """The decoder's first state: a (nested) tuple of tensors [batch, k, ...]."""

    def step(self, tokens: Tensor, state: Any, encoded: Any) -> tuple[Tensor, Any, Tensor | None]:
        """One token further, from `tokens` [batch, k] chosen last (SOS at first).

        Returns logits [batch, k, vocabulary], the next state, and the attention weights [batch, k, time] in the order
        of the source, or None.
        """


class RowModel(Protocol):
    """A model as the loop over tokens drives it: hypotheses are rows, and those that ended need not be among them.

    Whatever has an `in_rows` gives one of these; other models are wrapped (`nmt.search.rows.in_rows`).
    """

    @property
    def packs(self) -> bool:
        """Whether `step` takes any rows; else it needs all places of the grid in order."""

    def in_rows(self, steps: int = 0) -> RowModel:
        """Itself; of a model this form of it. `steps`: hypotheses to be extended by a token in all, roughly."""

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """See `TranslationModel`."""

    def start(self, encoded: Any) -> Any:
        """The decoder's first state, a row a sentence: a (nested) tuple of tensors [batch, ...]."""

    def step(self, tokens: Tensor, state: Any, encoded: Any, rows: HypothesisRows) -> tuple[Any, Any, Tensor | None]:
        """One token further, from `tokens` [rows] chosen last.

        Returns outputs for `logits`, a tensor or (nested) tuple of tensors [rows, ...], the next state, and the
        attention weights in the grid [batch, k, time], or None.
        """

    def logits(self, outputs: Any) -> Tensor:
        """Logits [rows, vocabulary] of some rows of outputs; the next call may overwrite them, the caller too."""
