"""The record of a search: what every step chose, and from it the outputs, their attention and the trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nmt.data.vocabulary import EOS
from nmt.search.hypotheses import Outputs, Step
from nmt.search.interface import Hypothesis
from nmt.search.trace import SearchTrace, gather_tree


class Chosen(NamedTuple):
    """One step of the sentences that were in the batch."""

    rows: Tensor  # [present] their numbers
    step: Step  # [present, slots]
    attention: Tensor | None  # [present, k, time] with which the hypotheses of the step before chose, if it is wanted
    live: Tensor  # [present] whether a sentence went on


@dataclass(frozen=True)
class Found:
    """An output of a sentence: the column of `Outputs` that it stands in, and its tokens."""

    column: int
    tokens: tuple[int, ...]


class Record:
    """Keeps the steps of a search by reference, which costs nothing, and reads them backwards in the end.

    rows: sentences, those included that only fill up the batch.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self.chosen: list[Chosen] = []

    def add(self, rows: Tensor, step: Step, attention: Tensor | None, live: Tensor) -> None:
        """One more step."""
        self.chosen.append(Chosen(rows, step, attention, live))

    def read(
        self, outputs: Outputs, lengths: list[int], n_best: int, *, distinct: bool, attention: bool, trace: bool
    ) -> tuple[list[list[Hypothesis]], list[SearchTrace]]:
        """The hypotheses of the first sentences, at most `n_best` each, and their traces where these are wanted.

        Parameters
        ----------
        outputs: where the way back begins.
        lengths: tokens of these sentences, EOS counted.
        distinct: whether an output that was found several times counts once.
        attention: whether hypotheses carry their attention weights.
        """
        count = len(lengths)
        parents, tokens = self._table("parents", 0), self._table("tokens", EOS)
        path = gather_tree(parents, outputs.steps, outputs.slots)
        found = self._found(tokens.gather(2, path), outputs, count, n_best, distinct)
        weights = self._attention(parents.gather(2, path)) if attention else None
        scores, log_probabilities = outputs.scores[:count].tolist(), outputs.log_probabilities[:count].tolist()
        hypotheses = [
            [
                Hypothesis(
                    output.tokens,
                    scores[number][output.column],
                    log_probabilities[number][output.column],
                    None if weights is None else weights[number, output.column, : len(output.tokens), :length].clone(),
                )
                for output in found[number]
            ]
            for number, length in enumerate(lengths)
        ]
        return hypotheses, self._traces(path, tokens, parents, outputs, found) if trace else []

    def _found(self, tokens: Tensor, outputs: Outputs, count: int, n_best: int, distinct: bool) -> list[list[Found]]:
        """The outputs of each sentence, from the `tokens` [time, rows, n] on the way to them."""
        time = torch.arange(len(tokens), device=tokens.device)[:, None, None]
        tokens = tokens.masked_fill(time > outputs.steps, EOS)[:, :count].permute(1, 2, 0)
        lengths = (tokens != EOS).sum(dim=2)  # EOS stands behind a hypothesis only
        columns = (tokens.tolist(), lengths.tolist(), outputs.log_probabilities[:count].tolist())
        found: list[list[Found]] = []
        for sentence in zip(*columns, strict=True):
            kept: dict[object, Found] = {}
            for column, (words, length, log_probability) in enumerate(zip(*sentence, strict=True)):
                output = Found(column, tuple(words[:length]))
                if log_probability != -math.inf and len(kept) < n_best:
                    kept.setdefault(output.tokens if distinct else column, output)
            found.append(list(kept.values()))
        return found

    def _attention(self, slots: Tensor) -> Tensor | None:
        """Weights [rows, n, time, source time] on the CPU: those of `slots` [time, rows, n] at each step."""
        first = self.chosen[0].attention
        if first is None:
            return None
        time, rows, n = slots.shape
        weights = first.new_zeros((rows, n, time, first.shape[2]))
        for number, chosen in enumerate(self.chosen):
            assert chosen.attention is not None
            own = slots[number, chosen.rows].unsqueeze(2).expand(-1, -1, first.shape[2])
            weights[chosen.rows, :, number] = chosen.attention.gather(1, own)
        return weights.float().cpu()

    def _traces(
        self, path: Tensor, tokens: Tensor, parents: Tensor, outputs: Outputs, found: list[list[Found]]
    ) -> list[SearchTrace]:
        """What each sentence went through, up to its own last step."""
        scores, log_probabilities = (self._table(name, -math.inf) for name in ("scores", "log_probabilities"))
        empty = log_probabilities == -math.inf
        arrays = tokens.masked_fill(empty, EOS), parents.masked_fill(empty, 0), scores, log_probabilities
        live = torch.zeros((len(self.chosen), self.rows), dtype=torch.bool, device=path.device)
        for row, chosen in zip(live, self.chosen, strict=True):
            row.index_copy_(0, chosen.rows, chosen.live)
        counts = (1 + live.sum(dim=0)).tolist()
        last, path = outputs.steps.cpu(), path.cpu()
        traces: list[SearchTrace] = []
        for number, sentence in enumerate(found):
            steps = counts[number]
            ends = [(min(int(last[number, output.column]), steps - 1), output.column) for output in sentence]
            own = [array[:steps, number].cpu().numpy() for array in arrays]
            places = tuple((step, int(path[step, number, column])) for step, column in ends)
            traces.append(SearchTrace(own[0], own[1], own[2], own[3], places))
        return traces

    def _table(self, name: str, nothing: float) -> Tensor:
        """One field of all steps: [time, rows, slots]."""
        first: Tensor = getattr(self.chosen[0].step, name)
        table = first.new_full((len(self.chosen), self.rows, first.shape[1]), nothing)
        for row, chosen in zip(table, self.chosen, strict=True):
            row.index_copy_(0, chosen.rows, getattr(chosen.step, name))
        return table
