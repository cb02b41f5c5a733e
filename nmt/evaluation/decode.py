"""Decoding and teacher-forced scoring of whole texts, in batches that never change what comes out.

Sentences are grouped by length class, their length rounded up to a multiple of `CLASS_WIDTH`, and padded to the upper
end of their class. So the padding of a sentence, and with it every bit computed for it, depends on its own length and
not on its neighbours or the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, tee
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nmt.config.schema import SearchConfig
from nmt.data.batching import Batch
from nmt.data.vocabulary import EOS, SOS
from nmt.search.beam import STABLE_ROWS, Hypothesis, TranslationModel, beam_search
from nmt.search.rows import in_rows
from nmt.search.sampling import sample
from nmt.search.statistics import SearchStatistics
from nmt.search.trace import SearchTrace, Trace

if TYPE_CHECKING:
    from nmt.data.prepare import EncodedText
    from nmt.models.seq2seq import Seq2Seq

CLASS_WIDTH = 8  # tokens

Progress = Callable[[int, int], None]  # sentences done, sentences in all


def decode(
    model: TranslationModel,
    sentences: Sequence[np.ndarray],
    search: SearchConfig,
    device: str = "cpu",
    progress: Progress | None = None,
    *,
    prefixes: Sequence[np.ndarray] | None = None,
    attention: bool = False,
    traces: dict[int, SearchTrace] | None = None,
    statistics: SearchStatistics | None = None,
) -> list[list[Hypothesis]]:
    """The hypotheses of each sentence, in the order of `sentences`; in float32 on a CPU the same for every batch size.

    By `search.method` the best ones, best first, or samples in the order of drawing.

    Parameters
    ----------
    model: on `device` and in evaluation mode.
    sentences: token numbers without specials. An empty one has one empty hypothesis, and the model is not asked.
    progress: called with sentences done and sentences in all.
    prefixes: for each sentence the token numbers that its outputs begin with; empty ones force nothing.
    attention: whether hypotheses carry their attention weights.
    traces: filled with what the search of each sentence went through, by its number; empty sentences have none.
    statistics: where the work of the searches is added up.
    """
    search_batch = sample if search.method == "sample" else beam_search
    nothing = torch.zeros(0, 1) if attention else None
    found = [[Hypothesis((), 0.0, 0.0, nothing)] for _ in sentences]
    done = sum(len(sentence) == 0 for sentence in sentences)
    classes = [(_length_class(sentence),) if len(sentence) else () for sentence in sentences]
    width = search.n_best if search.method == "sample" else search.beam
    rows = in_rows(model, width * sum(map(len, sentences)))
    if progress:
        progress(done, len(sentences))
    for numbers, (width,) in _batches(classes, search.batch_size):
        source, lengths = _with_eos([sentences[number] for number in numbers], width)
        trace = None if traces is None else Trace()
        hypotheses = search_batch(
            rows,
            source.to(device),
            lengths.to(device),
            search,
            prefixes=None if prefixes is None else [prefixes[number].tolist() for number in numbers],
            attention=attention,
            trace=trace,
            statistics=statistics,
        )
        for number, own in zip(numbers, hypotheses, strict=True):
            found[number] = own
        if traces is not None and trace is not None:
            traces.update(zip(numbers, trace.sentences, strict=True))
        done += len(numbers)
        if progress:
            progress(done, len(sentences))
    return found


class TeacherForced(NamedTuple):
    """How a model continues the reference itself, over all target tokens, EOS counted.

    log_perplexity: mean negative log-likelihood, in nats. token_accuracy: tokens that are its first choice, in percent.
    """

    log_perplexity: float
    token_accuracy: float


@torch.inference_mode()
def teacher_forced(
    model: Seq2Seq | nn.Module,
    encoded: EncodedText,
    device: str = "cpu",
    *,
    limit: int | None = None,
    batch_size: int = 64,
) -> TeacherForced:
    """Score the reference under teacher forcing, without label smoothing.

    Token losses are added exactly, so on a CPU the batch size does not change a bit. `limit` scores the first sentences
    only. A model whose parameters lie in other processes has `scores` (`distributed.ring_tmp.outline_strategy`), which
    takes all batches and may be some ahead. Raises ValueError where there are no sentences.
    """
    count = len(encoded.source) if limit is None else min(limit, len(encoded.source))
    sources, targets = ([side[number] for number in range(count)] for side in (encoded.source, encoded.target))
    losses: list[float] = []
    right = 0
    pairs, asked = tee(_pairs(sources, targets, device, batch_size))
    scores = _scores(model, (batch for _, batch, _ in asked))
    for (numbers, _, owner), (token_losses, hits) in zip(pairs, scores, strict=True):
        counts = owner < len(numbers)
        losses += token_losses.cpu()[counts].tolist()
        right += int(hits.cpu()[counts].sum())
    if not losses:
        raise ValueError("no sentence to score")
    mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan
    return TeacherForced(mean, 100.0 * right / len(losses))


def _scores(model: Any, batches: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """What `Seq2Seq.score` makes of batches, by the model or by the processes that have its parameters."""
    if not hasattr(model, "scores"):
        return map(model.score, batches)
    return ((scores[0], scores[1] > 0) for scores in model.scores(batch._asdict() for batch in batches))


@dataclass(frozen=True)
class PairScore:
    """What a model says of one given output, in nats.

    log_probability: of the whole output, its EOS included. tokens: of each token behind those before it, EOS last.
    """

    log_probability: float
    tokens: tuple[float, ...]


@torch.inference_mode()
def score_pairs(
    model: Callable[[Any], Tensor],
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    device: str = "cpu",
    progress: Progress | None = None,
    *,
    batch_size: int = 64,
) -> list[PairScore]:
    """Log-probabilities of given outputs under teacher forcing, pair by pair; the same bits for every batch size.

    Parameters
    ----------
    model: `nmt.models.seq2seq.Seq2Seq` or `nmt.search.ensemble.Ensemble`, on `device` and in evaluation mode.
    sources, targets: token numbers without specials; empty ones are scored like others.
    progress: called with pairs done and pairs in all.
    """
    found = [PairScore(0.0, ())] * len(sources)
    done = 0
    if progress:
        progress(done, len(sources))
    for numbers, batch, owner in _pairs(sources, targets, device, batch_size):
        losses = model(batch).cpu()
        for row, number in enumerate(numbers):
            tokens = tuple((-losses[owner == row]).tolist())
            finite = all(map(math.isfinite, tokens))
            found[number] = PairScore(math.fsum(tokens) if finite else sum(tokens), tokens)
        done += len(numbers)
        if progress:
            progress(done, len(sources))
    return found


def _pairs(
    sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], device: str, batch_size: int
) -> Iterator[tuple[list[int], Any, Tensor]]:
    """Batches of pairs for teacher forcing: their numbers, the `Batch`, and the row that each token loss belongs to.

    Losses come time by time. Rows beyond the numbers are copies that fill up the batch.
    """
    classes = [(_length_class(one), _length_class(other)) for one, other in zip(sources, targets, strict=True)]
    for numbers, (source_width, target_width) in _batches(classes, batch_size):
        filled = numbers + numbers[-1:] * (STABLE_ROWS - len(numbers))
        source, source_lengths = _with_eos([sources[number] for number in filled], source_width)
        target, target_lengths = _with_eos([targets[number] for number in filled], target_width)
        shifted = torch.cat((torch.full_like(target[:, :1], SOS), target[:, :-1]), dim=1)
        tensors = (source, source_lengths, shifted, target, target_lengths)
        real = torch.arange(target_width).unsqueeze(1) < target_lengths
        yield (
            numbers,
            Batch(*(tensor.to(device) for tensor in tensors)),
            torch.arange(len(filled)).expand_as(real)[real],
        )


def _length_class(sentence: np.ndarray) -> int:
    """The padded length of a sentence, its EOS included."""
    return -(-(len(sentence) + 1) // CLASS_WIDTH) * CLASS_WIDTH


def _batches(classes: Sequence[tuple[int, ...]], batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """Sentence numbers that share a class, at most `batch_size` at a time, and their class; the largest classes first.

    Sentences of the empty class take no part.
    """
    numbers = sorted((n for n in range(len(classes)) if classes[n]), key=lambda n: classes[n], reverse=True)
    for shared, members in groupby(numbers, key=lambda n: classes[n]):
        same = list(members)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size], shared


def _with_eos(sentences: Sequence[np.ndarray], width: int) -> tuple[Tensor, Tensor]:
    """[batch, width] token numbers, EOS behind each sentence and in the padding; [batch] lengths with that EOS."""
    rows = np.full((len(sentences), width), EOS, dtype=np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = sentence
    lengths = np.array([len(sentence) + 1 for sentence in sentences], dtype=np.int64)
    return torch.from_numpy(rows), torch.from_numpy(lengths)
