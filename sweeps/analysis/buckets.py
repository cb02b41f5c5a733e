"""Scores of parts of a test set: sentences by length, words by how often the training text has them.

Everything is a sum over sentences or words, made once a replicate, so that parts add up to the whole. The questions are
those of compare-mt (Neubig et al. 2019); the arithmetic is ours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

LENGTHS = (10, 15, 20, 30, 40, 60)  # words from which the next bucket counts
FREQUENCIES = (1, 2, 3, 5, 10, 100, 1000)  # occurrences from which the next bucket counts


@dataclass(frozen=True, kw_only=True)
class WordScores:
    """How well the words of one bucket are translated: of `references` occurrences, in percent."""

    precision: float
    recall: float
    f1: float
    hypotheses: int
    references: int


def words_of(text: str) -> list[str]:
    """The words of a sentence, cut as BLEU cuts them (sacrebleu's 13a), in their case."""
    return str(_tokenizer()(text)).split()


def bucket_names(edges: Sequence[int]) -> list[str]:
    """`< 10`, `10–14`, …, `>= 60`: a name for each bucket, one more than edges; that of one number is the number."""
    names = [_span(low, high - 1) for low, high in pairwise(edges)]
    first = f"< {edges[0]}" if edges[0] > 1 else "0"
    return [first, *names, f">= {edges[-1]}"]


def bucket_numbers(values: Iterable[int], edges: Sequence[int]) -> np.ndarray:
    """The bucket that each value falls into, [values] int64: 0 below the first edge."""
    return np.array([bisect_right(edges, value) for value in values], dtype=np.int64)


def scores_by_bucket(statistics: np.ndarray, buckets: np.ndarray, count: int, metric: str) -> list[float | None]:
    """The corpus score of each bucket's sentences, None for a bucket without any.

    statistics: of each sentence, [sentences, parts] (`nmt.evaluation.sentence_statistics`). buckets: [sentences].
    """
    from nmt.evaluation.sentence_statistics import corpus_scores

    chosen = [buckets == number for number in range(count)]
    return [float(corpus_scores(metric, statistics[one].sum(axis=0))) if one.any() else None for one in chosen]


def word_counts(lines: Iterable[str]) -> Counter[str]:
    """How often each word occurs in a text."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(words_of(line))
    return counts


def word_scores(
    hypotheses: Sequence[str], references: Sequence[str], frequencies: Mapping[str, int], edges: Sequence[int]
) -> list[WordScores]:
    """Precision, recall and F1 of words by their frequency, in the buckets of `edges`.

    A word of an output is right as often as its sentence's reference has it.
    """
    count = len(edges) + 1
    right, ours, theirs = [0] * count, [0] * count, [0] * count
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        made, wanted = Counter(words_of(hypothesis)), Counter(words_of(reference))
        for counts, totals in ((made, ours), (wanted, theirs), (made & wanted, right)):
            for word, times in counts.items():
                totals[bisect_right(edges, frequencies.get(word, 0))] += times
    return [_word_scores(*numbers) for numbers in zip(right, ours, theirs, strict=True)]


def _word_scores(right: int, ours: int, theirs: int) -> WordScores:
    return WordScores(
        precision=100 * right / ours if ours else 0.0,
        recall=100 * right / theirs if theirs else 0.0,
        f1=200 * right / (ours + theirs) if ours + theirs else 0.0,
        hypotheses=ours,
        references=theirs,
    )


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()
