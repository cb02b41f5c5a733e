"""Systems side by side: scores by length of the source, by frequency of words, and the sentences that differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nmt.config import RunConfig
from nmt.data.corpus import load_corpus, load_test
from nmt.evaluation.sentence_statistics import corpus_scores
from sweeps.aggregate import Statistics, describe
from sweeps.analysis.buckets import (
    bucket_names,
    bucket_numbers,
    scores_by_bucket,
    word_counts,
    word_scores,
    words_of,
)
from sweeps.sentences import hypotheses, references, statistics_of
from sweeps.sides import Side

SENTENCE_METRIC = "chrf"  # of single sentences: unlike BLEU it is not zero as soon as four words in a row are missing


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A part of the test set.

    n: sentences, or occurrences of words in the references. values: of each side, over its replicates: of sentences the
    score; of words `precision`, `recall` and `f1`. None where a side has nothing in it.
    """

    name: str
    n: int
    values: tuple[dict[str, Statistics | None], ...]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of which two systems make different things; `gain` is a's chrF less b's, means over replicates.

    `outputs` are those of each system's first replicate.
    """

    number: int
    gain: float
    source: str
    reference: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All of it; parts that were not asked for are empty."""

    labels: tuple[str, ...]
    replicates: tuple[int, ...]
    metric: str
    whole: tuple[Statistics | None, ...]
    lengths: tuple[Bucket, ...] = ()
    frequencies: tuple[Bucket, ...] = ()
    sentences: tuple[Sentence, ...] = ()


def analyse(
    sides: Sequence[Side],
    config: RunConfig,
    metric: str = "bleu",
    *,
    lengths: Sequence[int] = (),
    frequencies: Sequence[int] = (),
    shown: int = 0,
) -> Analysis:
    """Compare systems on the test set that `config` names.

    Parameters
    ----------
    metric: of decoded text, for the buckets of sentences.
    lengths, frequencies: edges of the buckets; empty leaves that part out. Only `frequencies` reads the training text.
    shown: how many sentences to list in which the first system is better than the second, and as many the other way.

    Raises UserError where the corpus is not at hand, or is not what the systems were scored on.
    """
    test, correct, language = load_test(config.data), references(config), config.data.target_language
    statistics = [[statistics_of(one, correct, language, metric) for one in side.replicates] for side in sides]
    whole = [describe(float(corpus_scores(metric, one.sum(axis=0))) for one in each) for each in statistics]
    return Analysis(
        labels=tuple(side.name for side in sides),
        replicates=tuple(len(side.replicates) for side in sides),
        metric=metric,
        whole=tuple(whole),
        lengths=tuple(_by_length(test.source, statistics, metric, lengths)) if lengths else (),
        frequencies=tuple(_by_frequency(sides, config, correct, frequencies)) if frequencies else (),
        sentences=tuple(_most_different(sides, test.source, correct, language, shown)) if shown else (),
    )


def _by_length(
    sources: Sequence[str], statistics: Sequence[Sequence[np.ndarray]], metric: str, edges: Sequence[int]
) -> list[Bucket]:
    buckets, names = bucket_numbers((len(words_of(source)) for source in sources), edges), bucket_names(edges)
    scores = [[scores_by_bucket(one, buckets, len(names), metric) for one in each] for each in statistics]
    return [
        Bucket(
            name=name,
            n=n,
            values=tuple({metric: describe(one[number] for one in each)} for each in scores),
        )
        for number, name in enumerate(names)
        if (n := int((buckets == number).sum()))
    ]


def _by_frequency(
    sides: Sequence[Side], config: RunConfig, correct: Sequence[str], edges: Sequence[int]
) -> list[Bucket]:
    counts = word_counts(target for _, target in load_corpus(config.data).train)
    found = [[word_scores(hypotheses(one), correct, counts, edges) for one in side.replicates] for side in sides]
    names = bucket_names(edges)
    buckets = []
    for number, name in enumerate(names):
        n = found[0][0][number].references
        values = [
            {part: describe(getattr(one[number], part) for one in each) for part in ("precision", "recall", "f1")}
            for each in found
        ]
        if n or any(one[number].hypotheses for each in found for one in each):
            buckets.append(Bucket(name=name, n=n, values=tuple(values)))
    return buckets


def _most_different(
    sides: Sequence[Side], sources: Sequence[str], correct: Sequence[str], language: str, shown: int
) -> list[Sentence]:
    """The sentences with the largest gains of the first side, then its largest losses; of equal ones the earlier."""
    means = [
        np.mean(
            [
                corpus_scores(SENTENCE_METRIC, statistics_of(one, correct, language, SENTENCE_METRIC))
                for one in side.replicates
            ],
            axis=0,
        )
        for side in sides[:2]
    ]
    gains = means[0] - means[1]
    order = np.argsort(-gains, kind="stable")
    best = [number for number in order[:shown] if gains[number] > 0]
    worst = [number for number in np.argsort(gains, kind="stable")[:shown] if gains[number] < 0]
    outputs = [hypotheses(side.replicates[0]) for side in sides]
    return [
        Sentence(
            number=int(number) + 1,
            gain=float(gains[number]),
            source=sources[number],
            reference=correct[number],
            outputs=tuple(lines[number] for lines in outputs),
        )
        for number in (*best, *worst)
    ]
