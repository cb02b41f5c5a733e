"""Tests of "these systems": trained models as they stand, compared on resampled or exchanged sentences.

They answer whether the difference would hold on other sentences of the same kind, and say nothing of another training.

- Paired bootstrap (P. Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004) and
  approximate randomisation (S. Riezler and J. T. Maxwell, "On some pitfalls in automatic evaluation and significance
  testing for MT", 2005) of two systems: sacrebleu's own.
- Stratified approximate randomisation of several replicates a side (J. H. Clark, C. Dyer, A. Lavie and N. A. Smith,
  "Better hypothesis testing for statistical machine translation: controlling for optimizer instability", ACL 2011, the
  test of MultEval): outputs for the same sentence are exchanged between all replicates of both sides.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sweeps.statistics.contrasts import SEED, every_split

RESAMPLES = 1_000  # of the paired bootstrap
TRIALS = 10_000  # of approximate randomisation
SHUFFLES = 1_000  # of the stratified test
METHODS = {"bootstrap": ("bs", RESAMPLES), "randomisation": ("ar", TRIALS)}
_MOST_TABLED = 4_000  # splits of one sentence's outputs that are listed; of more, each is drawn by sorting
_AT_ONCE = 4_000_000  # numbers of an array on the way
_TIES = 1e-9  # percent

Score = Callable[[np.ndarray], np.ndarray]
"""Scores of summed sentence statistics [..., parts]: [...]; `nmt.evaluation.sentence_statistics.corpus_scores`."""


def paired_test(a: Sequence[str], b: Sequence[str], metric: Any, method: str, samples: int = 0) -> float:
    """p of sacrebleu's paired test of two systems' outputs.

    sacrebleu takes its seed from the environment, where SACREBLEU_SEED=none or 0 means another result every time; here
    the seed is always the same.

    Its bootstrap subtracts the mean from absolute differences, so that a p of it is near one half of a two-sided one:
    it rejects about a tenth of true nulls at 0.05 (`simulation.paired_size`). Its randomisation keeps to the level.

    Parameters
    ----------
    metric: a sacrebleu metric that holds the references.
    method: `bootstrap` or `randomisation`.
    samples: 0: 1,000 resamples, or 10,000 trials.
    """
    from sacrebleu.significance import PairedTest

    kind, usual = METHODS[method]
    with _seeded():
        test = PairedTest(
            [("b", list(b)), ("a", list(a))], {"metric": metric}, None, test_type=kind, n_samples=samples or usual
        )
        _, found = test()
    results: Any = next(values for name, values in found.items() if name != "System")
    return float(results[1].p_value)


def stratified_p(a: np.ndarray, b: np.ndarray, score: Score, shuffles: int = SHUFFLES) -> float:
    """p of stratified approximate randomisation, two-sided.

    For each sentence the outputs of all replicates are dealt anew, n_a of them to one side and the rest to the other;
    p is the share of shuffles whose difference is as large as the one observed, which counts itself. With one replicate
    a side it is approximate randomisation.

    Parameters
    ----------
    a, b: sentence statistics, [replicates, sentences, parts]. A side's score is that of all its outputs as one text.
    """
    both = np.concatenate([a, b])
    replicates, sentences, parts = both.shape
    flat = np.ascontiguousarray(both.transpose(1, 0, 2)).reshape(sentences * replicates, parts)
    total, observed = flat.sum(axis=0), abs(float(score(a.sum(axis=(0, 1))) - score(b.sum(axis=(0, 1)))))
    if not math.isfinite(observed):
        return math.nan
    draws = np.random.default_rng(SEED)
    as_large, step = 0, max(1, _AT_ONCE // len(flat))
    for start in range(0, shuffles, step):
        dealt = _deal(draws, min(step, shuffles - start), sentences, len(a), len(b))
        side = dealt.reshape(len(dealt), -1).astype(np.float64) @ flat
        as_large += int((np.abs(score(side) - score(total - side)) >= observed - _TIES).sum())
    return (1 + as_large) / (1 + shuffles)


def _deal(draws: np.random.Generator, shuffles: int, sentences: int, n_a: int, n_b: int) -> np.ndarray:
    """Which outputs of each sentence go to the first side: [shuffles, sentences, n_a + n_b]."""
    if math.comb(n_a + n_b, n_a) <= _MOST_TABLED:
        table = every_split(n_a, n_b)
        return table[draws.integers(0, len(table), (shuffles, sentences))]
    return draws.random((shuffles, sentences, n_a + n_b)).argsort(axis=-1) < n_a


@contextmanager
def _seeded() -> Iterator[None]:
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(SEED)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
