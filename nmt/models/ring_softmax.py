"""The output layer cut into chunks of the vocabulary, each of them a stage of its own: the ring softmax.

It is the largest part of a step, and no layer of it can be cut off; but its words can. The hidden states visit all
chunks in the forward pass, which gathers the statistics of every token, and in the backward pass, which gathers their
gradient (`nmt.models.vocabulary_chunk`). So chunks are stages as others are: to whoever runs stages, they need no
messages, no schedule and no recovery of their own. The bits are those of the loss in as many chunks in one process,
whichever stages lie together.

    output.0   reads what the decoder made, hands on `hidden` [tokens, h] and `statistics` [3 or 4, tokens]
    output.c   reads both and hands them on, statistics with its own words
    output.K-1 makes `loss`

Back comes the gradient of `hidden`, and in the place of one of `statistics` what every chunk needs on the way back: the
largest logit, the reciprocal of the sum of exponentials, and the upstream gradient of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmt.models.layers import Affine, ordered_sum
from nmt.models.loss import real_targets, real_tokens
from nmt.models.recurrent.arithmetic import Program, compute_type, run
from nmt.models.stages import MIX, Part, Run, Slot
from nmt.models.vocabulary_chunk import Cut, LogitsPiece, VocabularyChunk, chunk_rows, losses_of, normaliser_of

HIDDEN, STATISTICS = "hidden", "statistics"
UPSTREAM = 2  # behind `normaliser_of`, the row of what comes back in the place of a gradient of the statistics


class ChunkedAffine(nn.Module):
    """An output layer whose rows are parameters chunk by chunk, so that they may lie in different processes.

    They are named `weight.<chunk>` and `bias.<chunk>`, and share the memory of the layer that they are made of. In a
    flat buffer they lie where its parameters would.
    """

    def __init__(self, output: Affine, chunks: int):
        super().__init__()
        self.rows = tuple(chunk_rows(output.out_features, chunks))
        self.weight = nn.ParameterList(nn.Parameter(output.weight.detach()[rows]) for rows in self.rows)
        self.bias = nn.ParameterList(nn.Parameter(output.bias.detach()[rows]) for rows in self.rows)

    def chunk(self, number: int) -> nn.ParameterList:
        """Weight and bias of a chunk."""
        return nn.ParameterList((self.weight[number], self.bias[number]))


@dataclass(frozen=True)
class RingSoftmax:
    """The loss of a `ChunkedAffine` as parts of a model.

    keep: whether a chunk keeps its exponentials for the way back, as large as its logits, or computes them again: the
        same bits, for a third of its arithmetic more.
    """

    output: ChunkedAffine
    label_smoothing: float = 0.0
    keep: bool = True

    def parts(self) -> list[Part]:
        """One for each chunk, in order."""
        return [self._part(number) for number in range(len(self.output.rows))]

    def _part(self, number: int) -> Part:
        last = number == len(self.output.rows) - 1
        reads = (HIDDEN, STATISTICS) if number else (MIX,)
        makes = ("loss",) if last else (HIDDEN, STATISTICS)
        return Part(f"output.{number}", self._run(number), reads, makes, (self.output.chunk(number),))

    def _run(self, number: int) -> Run:
        def first(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            visit = self._score if slot.is_scored else self._visit
            return visit(0, *real_tokens(carried[MIX], slot.batch, slot.target_tokens), None)

        def later(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            visit, targets = (
                self._score if slot.is_scored else self._visit,
                real_targets(slot.batch, slot.target_tokens),
            )
            return visit(number, carried[HIDDEN], targets, carried[STATISTICS])

        return later if number else first

    def _score(self, number: int, hidden: Tensor, targets: Tensor, so_far: Tensor | None) -> dict[str, Tensor]:
        """A chunk's visit without gradient or smoothing; a further row of the statistics has the first choice so far.

        That is a whole number, exact in float32 up to 16 million words.
        """
        output = self.output
        weight, bias, last = output.weight[number], output.bias[number], number == len(output.rows) - 1
        cut = Cut(len(hidden), output.rows, compute_type(weight), hidden.device)
        chunk = VocabularyChunk(cut, output.rows[number], weight, bias, hidden.to(cut.product_type), targets, 0.0)
        if so_far is None:
            statistics, choices = cut.no_statistics(0.0), torch.full_like(targets, -1)
        else:
            statistics, choices = so_far[:-1].clone(), so_far[-1].long()
        buffer = chunk.new_buffer()
        for piece in cut.pieces:
            logits = chunk.multiply(piece, buffer)
            for band in cut.bands(piece):
                logits.exponentials_(band, statistics, choices, keep=False)
        if last:
            losses = losses_of(statistics, cut.vocabulary, 0.0)
            return {"loss": torch.stack((losses, (choices == targets).to(losses.dtype)))}
        further = torch.cat((statistics, choices.unsqueeze(0).to(statistics.dtype)))
        return {HIDDEN: hidden.to(cut.softmax_type), STATISTICS: further}

    def _visit(self, number: int, hidden: Tensor, targets: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        visit = _Visit(self, number, hidden, targets, statistics)
        made = run(visit, hidden, *visit.parameters, *(() if statistics is None else (statistics,)))
        return {"loss": made[0]} if visit.is_last else {HIDDEN: made[0], STATISTICS: made[1]}


class _Visit(Program):
    """One chunk of the words in the loss of one slot, there and back."""

    def __init__(self, softmax: RingSoftmax, number: int, hidden: Tensor, targets: Tensor, statistics: Tensor | None):
        output = softmax.output
        self._is_first, self.is_last = statistics is None, number == len(output.rows) - 1
        self.parameters = (output.weight[number], output.bias[number])
        self._smoothing, self._keep = softmax.label_smoothing, softmax.keep
        self._hidden = hidden.detach()
        self._cut = Cut(len(hidden), output.rows, compute_type(self.parameters[0]), hidden.device)
        self._chunk = VocabularyChunk(
            self._cut,
            output.rows[number],
            *self.parameters,
            self._hidden.to(self._cut.product_type),
            targets,
            self._smoothing,
        )
        none = self._cut.no_statistics(self._smoothing)
        self._statistics = none if statistics is None else statistics.detach().clone()
        self._pieces: list[LogitsPiece] = []

    def forward(self) -> tuple[Tensor, ...]:
        cut, statistics = self._cut, self._statistics
        buffer = None if self._keep else self._chunk.new_buffer()
        for piece in cut.pieces:
            logits = self._exponentials(piece, statistics, buffer, keep=self._keep)
            if self._keep:
                self._pieces.append(logits)
        if not self.is_last:
            return self._hidden.to(cut.softmax_type), statistics
        self._normaliser = normaliser_of(statistics)
        return (ordered_sum(losses_of(statistics, cut.vocabulary, self._smoothing)),)

    def backward(self, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cut, chunk = self._cut, self._chunk
        if self.is_last:
            (upstream,) = gradients
            normaliser = self._normaliser
            hidden = torch.zeros_like(self._hidden, dtype=cut.softmax_type)
        else:
            hidden, back = gradients[0].clone(), gradients[1]
            normaliser, upstream = back[:UPSTREAM], back[UPSTREAM, 0]
        weight = torch.empty_like(chunk.weight, dtype=cut.softmax_type)
        bias = torch.zeros_like(chunk.bias)
        chunk.collect(weight, bias)
        buffer = None if self._keep else chunk.new_buffer()
        for number, piece in enumerate(cut.pieces):
            if self._keep:
                logits = self._pieces[number]
            else:
                logits = self._exponentials(piece, cut.no_statistics(self._smoothing), buffer, keep=True)
            for band in cut.bands(piece):
                logits.gradients_(band, normaliser[:, band])
            logits.multiply_back(hidden)
        of_parameters = (
            found.to(parameter.dtype).mul_(upstream)
            for found, parameter in zip((weight, bias), self.parameters, strict=True)
        )
        if self._is_first:
            return hidden.to(self._hidden.dtype).mul_(upstream), *of_parameters
        if self.is_last:
            back = torch.zeros_like(self._statistics)
            back[:UPSTREAM], back[UPSTREAM] = normaliser, upstream
        return hidden, *of_parameters, back

    def _exponentials(self, piece: slice, statistics: Tensor, buffer: Tensor | None, *, keep: bool) -> LogitsPiece:
        logits = self._chunk.multiply(piece, self._chunk.new_buffer() if buffer is None else buffer)
        for band in self._cut.bands(piece):
            logits.exponentials_(band, statistics, keep=keep)
        return logits
