"""Search with a model whose parameters other processes have: each of them does its stages' share of every step.

The search itself is the one that it is with a model in this process. Here are only numbers of rows and of sentences:
where a search picks or reorders rows of a state, the numbers tell the processes where their own rows come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.search_parts import LOGITS, WEIGHTS


class Distant(Protocol):
    """Who asks the processes: what `distributed.strategy.Strategy.evaluation_model` gives where none has the model."""

    @property
    def outline(self) -> Any:
        """The model without values."""

    def scores(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Tensor]:
        """What `Seq2Seq.score` makes of each batch, the fields of a `Batch`: [2, tokens]."""

    def begin_search(self) -> None:
        """Parameters may have changed since the last search."""

    def ask(self, call: str, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the stages make of a call; see `nmt.models.search_stages`. An `encode` begins anew."""


class DistantModel:
    """What `nmt.evaluation.decode` takes in the place of a model."""

    def __init__(self, model: Distant):
        self._model = model

    def scores(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Tensor]:
        """What `Seq2Seq.score` makes of each batch, [2, tokens]."""
        return self._model.scores(batches)

    def in_rows(self, steps: int = 0) -> DistantRows:
        """What a search drives, at the beginning of a text."""
        self._model.begin_search()
        return DistantRows(self._model)


class DistantRows:
    """A `nmt.search.interface.RowModel` that asks.

    Encoded sentences and states are numbers [batch] and [rows]: of the sentences encoded last, and of the rows of the
    newest step (or, before the first, of sentences).
    """

    def __init__(self, model: Distant):
        self._model = model

    @property
    def packs(self) -> bool:
        """Whether `step` takes any rows."""
        return hasattr(self._model.outline.decoder, "step_rows")

    def in_rows(self, steps: int = 0) -> DistantRows:
        """Itself."""
        return self

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """Numbers of the sentences [batch]."""
        given = {"source": source, "lengths": lengths, "autocast": _autocast()}
        self._model.ask("encode", given)
        return torch.arange(len(source))

    def start(self, encoded: Tensor) -> Tensor:
        """The same numbers: a state for each sentence."""
        return encoded

    def step(
        self, tokens: Tensor, state: Tensor, encoded: Tensor, rows: HypothesisRows
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token further: numbers of the new rows, twice, and the attention weights [batch, k, time]."""
        given = {
            "tokens": tokens,
            "came_from": state,
            "sentences": encoded,
            "grid": torch.tensor([rows.batch, rows.k]),
            "autocast": _autocast(),
        }
        if rows.places is not None:
            given["places"] = rows.places
        answer = self._model.ask("step", given)
        numbers = torch.arange(len(tokens))
        return numbers, numbers, answer[WEIGHTS]

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of rows of the newest step."""
        answer = self._model.ask("logits", {"rows": outputs, "autocast": _autocast()})
        chunks = sorted(answer, key=lambda name: int(name.removeprefix(LOGITS)))
        return answer[chunks[0]] if len(chunks) == 1 else torch.cat([answer[name] for name in chunks], dim=1)


def _autocast() -> Tensor:
    """Whether products are made in bf16 here; the processes compute on CPUs."""
    return torch.tensor(torch.is_autocast_enabled("cpu"))
