"""Batched beam search as the published system does it; greedy is a beam of 1.

At each step every candidate (a hypothesis of the beam and a next token) is ranked by its normalised score, and the best
`beam` of a sentence become its next hypotheses. A hypothesis that ended with EOS stays in the beam: its only candidate
is itself, at no cost, so it competes with the ones that go on. A sentence is done when all its hypotheses have ended or
have reached its length limit.

Ties go to the lower beam slot, then to the lower token number. What comes out for a sentence depends on that sentence
alone, to the last bit on a CPU: a float32 matrix product computes a row the same way whatever the other rows, if only
there are `STABLE_ROWS` of them or more, so a smaller batch is filled up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS, SOS
from nmt.search.scores import length_penalty

STABLE_ROWS = 16  # measured on MKL with 1 and 2 threads; below 4 rows the bits do differ
RATIO_ALLOWANCE = 10  # tokens beyond `max_length_ratio` times the source
CUT_AT = 0.75  # share of unfinished sentences below which the finished ones leave the batch


@dataclass(frozen=True)
class Hypothesis:
    """One output for a sentence.

    tokens: token numbers without EOS.
    score: log-probability divided by the length penalty, what hypotheses are ranked by.
    log_probability: natural logarithm, the EOS included where the hypothesis ended with one.
    attention: where it was asked for, [tokens, source tokens] float32 on the CPU: the weights with which each token was
        chosen, in the order of the source, whose EOS is the last column. Equality of hypotheses does not look at it.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    attention: Tensor | None = field(default=None, compare=False)


class TranslationModel(Protocol):
    """What a search asks of a model; `nmt.models.seq2seq.Seq2Seq` is one."""

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """`source` [batch, time] and `lengths` [batch] to a named tuple of tensors, first dimension batch."""

    def start(self, encoded: Any, k: int) -> tuple[Tensor, ...]:
        """The decoder's first state, tensors [batch, k, ...]."""

    def step(self, tokens: Tensor, state: tuple[Tensor, ...], encoded: Any) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        """`tokens` [batch, k] to (logits [batch, k, vocabulary], next state, attention weights)."""


def length_limit(source_tokens: int, search: SearchConfig) -> int:
    """The longest output of a sentence with `source_tokens` tokens (EOS counted on neither side)."""
    if search.max_length_ratio <= 0:
        return search.max_length
    return min(search.max_length, math.ceil(search.max_length_ratio * source_tokens) + RATIO_ALLOWANCE)


@torch.inference_mode()
def beam_search(
    model: TranslationModel, source: Tensor, lengths: Tensor, search: SearchConfig
) -> list[list[Hypothesis]]:
    """The `search.n_best` best hypotheses of each sentence, best first (fewer where fewer exist).

    Parameters
    ----------
    model: on the device of `source`, in evaluation mode.
    source: [batch, time] token numbers, each sentence ending with EOS.
    lengths: [batch] numbers of tokens, EOS included.
    """
    sentences, k, device = len(source), search.beam, source.device
    limits = [length_limit(length - 1, search) for length in lengths.tolist()]
    # Rows beyond the sentences are copies of the last one, and nobody asks for their hypotheses.
    rows = torch.arange(max(sentences, STABLE_ROWS), device=device).clamp(max=sentences - 1)
    encoded = model.encode(source[rows], lengths[rows])
    state = model.start(encoded, k)
    floor = math.ceil(STABLE_ROWS / k)  # from here on a product's rows are hypotheses
    rows = rows[: max(sentences, floor)]
    encoded, state = _take(encoded, slice(len(rows))), _take(state, slice(len(rows)))
    beam = _Beam.first(torch.tensor(limits, device=device)[rows], max(limits), search)
    everything = beam  # all sentences, each as it was when the batch was last cut
    present = torch.arange(len(rows), device=device)  # the rows of `everything` that `beam` holds

    for length in range(1, max(limits) + 1):
        logits, state, _ = model.step(beam.tokens, state, encoded)
        beam, parents = beam.advance(logits, length)
        state = tuple(_reorder(tensor, parents) for tensor in state)
        unfinished = ~beam.done()
        count = int(unfinished.sum())
        if count == 0:
            break
        if len(present) > floor and count <= CUT_AT * len(present):
            everything = everything.replace(present, beam)
            # A stable sort brings the unfinished to the front; finished ones behind them keep up the floor.
            kept = unfinished.int().sort(descending=True, stable=True).indices[: max(count, floor)]
            present, beam, encoded, state = present[kept], beam.take(kept), _take(encoded, kept), _take(state, kept)
    return everything.replace(present, beam).hypotheses(sentences, search.n_best)


@dataclass(frozen=True)
class _Beam:
    """The hypotheses of a batch, best first; a slot without one has log-probability minus infinity."""

    tokens: Tensor  # [batch, k] newest token
    history: Tensor  # [batch, k, longest limit] all tokens; only the first `lengths` of them count
    lengths: Tensor  # [batch, k] tokens without EOS
    log_probabilities: Tensor  # [batch, k] float64
    scores: Tensor  # [batch, k] float64
    finished: Tensor  # [batch, k] bool: ended by EOS or by the limit
    limits: Tensor  # [batch] longest length allowed
    length_penalty: float

    @classmethod
    def first(cls, limits: Tensor, longest: int, search: SearchConfig) -> _Beam:
        """What a search starts from: nothing but SOS, in slot 0 alone."""
        shape, device = (len(limits), search.beam), limits.device
        log_probabilities = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
        log_probabilities[:, 0] = 0.0  # with more than one live slot the beam would fill with copies
        return cls(
            tokens=torch.full(shape, SOS, device=device),
            history=torch.full((*shape, longest), EOS, device=device),
            lengths=torch.zeros(shape, dtype=torch.int64, device=device),
            log_probabilities=log_probabilities,
            scores=log_probabilities,
            finished=torch.zeros(shape, dtype=torch.bool, device=device),
            limits=limits,
            length_penalty=search.length_penalty,
        )

    def advance(self, logits: Tensor, length: int) -> tuple[_Beam, Tensor]:
        """The hypotheses after one more token, the `length`-th, and the slot [batch, k] that each came from."""
        k = self.tokens.shape[1]
        gains, tokens = _candidates(torch.log_softmax(logits.float(), dim=-1), k, self.finished)
        continues = ~self.finished.unsqueeze(2) & (tokens != EOS)
        lengths = self.lengths.unsqueeze(2) + continues
        log_probabilities = self.log_probabilities.unsqueeze(2) + gains
        scores = log_probabilities / length_penalty(lengths.double(), self.length_penalty)

        # Candidates stand in the order (slot, token), and a stable sort keeps it among equal scores.
        scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
        order = order[:, :k]
        parents = order // tokens.shape[2]
        tokens = tokens.flatten(1).gather(1, order)
        history = _reorder(self.history, parents)
        history[:, :, length - 1] = tokens
        finished = self.finished.gather(1, parents) | (tokens == EOS) | (self.limits.unsqueeze(1) <= length)
        beam = replace(
            self,
            tokens=tokens,
            history=history,
            lengths=lengths.flatten(1).gather(1, order),
            log_probabilities=log_probabilities.flatten(1).gather(1, order),
            scores=scores[:, :k],
            finished=finished,
        )
        return beam, parents

    def done(self) -> Tensor:
        """Which sentences [batch] have nothing left to continue."""
        return (self.finished | (self.log_probabilities == -math.inf)).all(dim=1)

    def take(self, rows: Tensor) -> _Beam:
        """The hypotheses of some sentences."""
        return self._map(lambda tensor, _: tensor[rows], self)

    def replace(self, rows: Tensor, other: _Beam) -> _Beam:
        """These hypotheses, with those of `other` in the given rows."""
        return self._map(lambda tensor, new: tensor.index_copy(0, rows, new), other)

    def hypotheses(self, sentences: int, n_best: int) -> list[list[Hypothesis]]:
        """The best of the first `sentences` rows."""
        history, lengths, scores, log_probabilities = (
            tensor[:sentences, :n_best].tolist()
            for tensor in (self.history, self.lengths, self.scores, self.log_probabilities)
        )
        return [
            [
                Hypothesis(tuple(tokens[:length]), score, log_probability)
                for tokens, length, score, log_probability in zip(*slots, strict=True)
                if log_probability != -math.inf
            ]
            for slots in zip(history, lengths, scores, log_probabilities, strict=True)
        ]

    def _map(self, change: Callable[[Tensor, Tensor], Tensor], other: _Beam) -> _Beam:
        names = [item.name for item in fields(self) if item.name != "length_penalty"]
        changed: dict[str, Any] = {name: change(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, **changed)


def _candidates(log_probabilities: Tensor, k: int, finished: Tensor) -> tuple[Tensor, Tensor]:
    """What may follow each hypothesis: gains in log-probability and tokens, both [batch, k, candidates].

    Tokens ascend. EOS is always among them, beside the `k` likeliest others: no more than `k` continuations of one
    hypothesis can be among the sentence's `k` best. Behind a finished hypothesis only EOS counts, at no cost.
    """
    ended = log_probabilities[..., EOS].masked_fill(finished, 0.0).unsqueeze(2)
    log_probabilities[..., EOS] = -math.inf
    gains, tokens = _largest(log_probabilities, min(k, log_probabilities.shape[-1] - 1))
    gains = torch.cat((ended, gains.masked_fill(finished.unsqueeze(2), -math.inf)), dim=2)
    tokens = torch.cat((torch.full_like(tokens[..., :1], EOS), tokens), dim=2)
    tokens, order = tokens.sort(dim=2)
    return gains.gather(2, order), tokens


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest values of the last dimension and their places; of equal values the first ones."""
    largest, places = values.topk(min(k + 1, values.shape[-1]), dim=-1)
    if largest.shape[-1] > k:
        # topk chooses freely among equals, which shows where they stand on both sides of the cut.
        tied = (largest[..., k - 1] == largest[..., k]).nonzero(as_tuple=True)
        if len(tied[0]):
            places[tied] = values[tied].sort(dim=-1, descending=True, stable=True).indices[:, : k + 1]
    return largest[..., :k], places[..., :k]


def _reorder(tensor: Tensor, parents: Tensor) -> Tensor:
    """`tensor` [batch, k, ...] with its slots taken from `parents` [batch, k]."""
    batch, k = parents.shape
    flat = torch.arange(0, batch * k, k, device=parents.device).unsqueeze(1) + parents
    return tensor.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, (batch, k))


def _take(tensors: Any, rows: Tensor | slice) -> Any:
    """Rows of the first dimension, of every tensor in a (named) tuple of tensors and such tuples."""
    if isinstance(tensors, Tensor):
        return tensors[rows]
    taken = [_take(tensor, rows) for tensor in tensors]
    return type(tensors)(*taken) if hasattr(tensors, "_fields") else tuple(taken)
