"""An embedding table cut into chunks of its words, each of them a stage of its own.

The embeddings of a slot visit all chunks, each of which fills in the words that it has; their gradient visits them in
turn on the way back. A word's embedding is a copy of its row, and a row's gradient the sum over its tokens in their
order: the bits are those of the whole table, whatever the number of chunks, and wherever they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.models.layers import Table
from nmt.models.recurrent.arithmetic import Program, run
from nmt.models.stages import Part, Run, Slot
from nmt.models.vocabulary_chunk import chunk_rows


class ChunkedTable(nn.Module):
    """An embedding table whose rows are parameters chunk by chunk, named `weight.<chunk>`.

    They share the memory of the table that they are made of. In a flat buffer they lie where it would.
    """

    def __init__(self, table: Table, chunks: int):
        super().__init__()
        self.rows = tuple(chunk_rows(table.num_embeddings, chunks))
        self.weight = nn.ParameterList(nn.Parameter(table.weight.detach()[rows]) for rows in self.rows)


@dataclass(frozen=True)
class RingEmbedding:
    """The look-up in a `ChunkedTable` as parts of a model.

    name: of the parts, `<name>.<chunk>`. words: the slot's words, [time, batch].
    finish: what the last part makes of their embeddings [time, batch, e], under the name `makes`.
    """

    table: ChunkedTable
    name: str
    words: Callable[[Slot], Tensor]
    finish: Callable[[Slot, Tensor], Tensor]
    makes: str

    def parts(self) -> list[Part]:
        """One for each chunk, in order."""
        return [self._part(number) for number in range(len(self.table.rows))]

    @property
    def _found(self) -> str:
        return f"{self.name} so far"

    def _part(self, number: int) -> Part:
        last = number == len(self.table.rows) - 1
        reads, makes = (self._found,) if number else (), self.makes if last else self._found
        own = nn.ParameterList((self.table.weight[number],))
        return Part(f"{self.name}.{number}", self._run(number, last), reads, (makes,), (own,))

    def _run(self, number: int, last: bool) -> Run:
        def fill_in(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            before = (carried[self._found],) if number else ()
            lookup = _LookUp(self.words(slot), self.table.weight[number], self.table.rows[number].start, *before)
            (found,) = run(lookup, self.table.weight[number], *before)
            return {self.makes: self.finish(slot, found)} if last else {self._found: found}

        return fill_in


class _LookUp(Program):
    """The words of one chunk: its weight [words, e] holds those from `start` on. `before`: what other chunks had."""

    def __init__(self, words: Tensor, weight: Tensor, start: int, before: Tensor | None = None):
        self._weight, self._before = weight.detach(), None if before is None else before.detach()
        local = words - start
        self._is_here = (local >= 0) & (local < len(weight))
        self._local = torch.where(self._is_here, local, 0)

    def forward(self) -> tuple[Tensor, ...]:
        found = F.embedding(self._local, self._weight)
        before = torch.zeros_like(found) if self._before is None else self._before
        return (torch.where(self._is_here.unsqueeze(-1), found, before),)

    def backward(self, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        elsewhere = len(self._weight)  # a row more, of which torch leaves out the tokens
        rows = torch.where(self._is_here, self._local, elsewhere)
        weight = torch.ops.aten.embedding_dense_backward(gradient, rows, elsewhere + 1, elsewhere, False)[:elsewhere]
        return (weight,) if self._before is None else (weight, gradient)
