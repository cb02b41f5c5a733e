"""Decoding and teacher-forced scoring of whole texts, in batches that never change what comes out.

Sentences are grouped by length class, their length rounded up to a multiple of `CLASS_WIDTH`, and padded to the upper
end of their class. So the padding of a sentence, and with it every bit computed for it, depends on its own length and
not on its neighbours or the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.data.batching import Batch
from nmt.data.vocabulary import EOS, SOS
from nmt.search.beam import STABLE_ROWS, Hypothesis, TranslationModel, beam_search

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
    attention: bool = False,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each sentence, in the order of `sentences`; on a CPU the same bits for every batch size.

    Sentences are token numbers without specials. An empty one has one empty hypothesis, and the model is not asked.
    The model is on `device` and in evaluation mode. With `attention` each hypothesis carries its attention weights.
    """
    found = [[Hypothesis((), 0.0, 0.0)] for _ in sentences]
    done = sum(len(sentence) == 0 for sentence in sentences)
    classes = [(_length_class(sentence),) if len(sentence) else () for sentence in sentences]
    if progress:
        progress(done, len(sentences))
    for numbers, (width,) in _batches(classes, search.batch_size):
        source, lengths = _with_eos([sentences[number] for number in numbers], width)
        for number, hypotheses in zip(
            numbers, beam_search(model, source.to(device), lengths.to(device), search), strict=True
        ):
            found[number] = hypotheses
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
    model: Seq2Seq, encoded: EncodedText, device: str = "cpu", *, limit: int | None = None, batch_size: int = 64
) -> TeacherForced:
    """Score the reference under teacher forcing, without label smoothing.

    Token losses are added exactly, so on a CPU the batch size does not change a bit. `limit` scores the first sentences
    only. Raises ValueError where there are none.
    """
    count = len(encoded.source) if limit is None else min(limit, len(encoded.source))
    sources, targets = ([side[number] for number in range(count)] for side in (encoded.source, encoded.target))
    classes = [(_length_class(one), _length_class(other)) for one, other in zip(sources, targets, strict=True)]
    losses: list[float] = []
    right = 0
    for numbers, (source_width, target_width) in _batches(classes, batch_size):
        filled = numbers + numbers[-1:] * (STABLE_ROWS - len(numbers))  # copies, which do not count
        source, source_lengths = _with_eos([sources[number] for number in filled], source_width)
        target, target_lengths = _with_eos([targets[number] for number in filled], target_width)
        shifted = torch.cat((torch.full_like(target[:, :1], SOS), target[:, :-1]), dim=1)
        tensors = (source, source_lengths, shifted, target, target_lengths)
        batch: Any = Batch(*(tensor.to(device) for tensor in tensors))
        token_losses, hits = model.score(batch)
        real = torch.arange(target_width).unsqueeze(1) < target_lengths  # [time, batch], the order of the losses
        counts = torch.arange(len(filled)).expand_as(real)[real] < len(numbers)
        losses += token_losses.cpu()[counts].tolist()
        right += int(hits.cpu()[counts].sum())
    if not losses:
        raise ValueError("no sentence to score")
    mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan
    return TeacherForced(mean, 100.0 * right / len(losses))


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
