"""Scores taken apart into sentences: numbers of each sentence whose sums give the score of any set of them.

    statistics = sentence_statistics(hypotheses, references, "de", "bleu")   # [sentences, parts]
    corpus_scores("bleu", statistics.sum(axis=0))                           # what metrics.score says
    corpus_scores("bleu", weights @ statistics)                             # of any resampled test set, [...]

The parts are sacrebleu's sufficient statistics: lengths, n-gram matches and totals of BLEU; n-grams of chrF; edits and
reference lengths of TER. ROUGE is a mean over sentences: their scores, and their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nmt.evaluation.catalogue import METRICS
from nmt.evaluation.metrics import sacrebleu_metric, tokenise_all

BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2.0


def sentence_statistics(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str, name: str
) -> np.ndarray:
    """The sufficient statistics of each sentence for the metric `name`: float64 [sentences, parts].

    Raises ValueError for unequal numbers of lines or none.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    outputs, correct = tuple(hypotheses), tuple(references)
    if name.startswith("rouge"):
        return _rouge_statistics(outputs, correct, name)
    if name.startswith("bleu_tok"):
        outputs, correct = tokenise_all(outputs, target_language), tokenise_all(correct, target_language)
    metric = sacrebleu_metric(name, correct)
    return np.array(metric._extract_corpus_statistics(outputs, None), dtype=np.float64)


def corpus_scores(name: str, totals: np.ndarray) -> np.ndarray:
    """The metric in percent of summed statistics [..., parts], for each of them: [...]."""
    family = next(family for beginning, family in _FAMILIES.items() if name.startswith(beginning))
    return np.asarray(family(np.asarray(totals, dtype=np.float64)))


def has_sentence_statistics(name: str) -> bool:
    """Whether a metric comes apart into sentences: those of decoded text do."""
    return any(name.startswith(beginning) for beginning in _FAMILIES) and name in METRICS


def _bleu(totals: np.ndarray) -> np.ndarray:
    """sacrebleu's corpus BLEU with exponential smoothing."""
    ours, theirs = totals[..., 0], totals[..., 1]
    matches, counts = totals[..., 2 : 2 + BLEU_ORDER], totals[..., 2 + BLEU_ORDER :]
    with np.errstate(divide="ignore", invalid="ignore"):
        halvings = np.cumsum(matches == 0, axis=-1)  # of an order without matches: 1/2, 1/4, … of one match
        precisions = np.where(matches > 0, matches, 0.5**halvings) / counts
        brevity = np.where(ours < theirs, np.exp(1 - theirs / ours), 1.0)
        score = 100 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    return np.where((matches > 0).any(axis=-1) & (counts > 0).all(axis=-1) & (ours > 0), score, 0.0)


def _chrf(totals: np.ndarray) -> np.ndarray:
    """F of character n-grams, precision and recall averaged over the orders that both texts have."""
    parts = totals.reshape(*totals.shape[:-1], CHRF_ORDER, 3)
    ours, theirs, matches = parts[..., 0], parts[..., 1], parts[..., 2]
    usable = (ours > 0) & (theirs > 0)
    orders = np.maximum(usable.sum(axis=-1), 1)
    precision = np.where(usable, matches / np.maximum(ours, 1), 0.0).sum(axis=-1) / orders
    recall = np.where(usable, matches / np.maximum(theirs, 1), 0.0).sum(axis=-1) / orders
    weighted = CHRF_BETA**2 * precision + recall
    return 100 * (1 + CHRF_BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1.0)


def _ter(totals: np.ndarray) -> np.ndarray:
    edits, words = totals[..., 0], totals[..., 1]
    return 100 * np.where(words > 0, edits / np.where(words > 0, words, 1.0), edits > 0)


def _rouge(totals: np.ndarray) -> np.ndarray:
    return 100 * totals[..., 0] / np.maximum(totals[..., 1], 1)


def _rouge_statistics(hypotheses: Sequence[str], references: Sequence[str], name: str) -> np.ndarray:
    from nmt.evaluation.rouge import overlap, tokenise

    variant, _, part = name.partition("_")
    place = {"p": 0, "r": 1, "": 2}[part]
    scores = [
        overlap(tokenise(hypothesis), tokenise(reference), variant)[place]
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    return np.stack([np.array(scores), np.ones(len(scores))], axis=1)


_FAMILIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bleu": _bleu, "chrf": _chrf, "ter": _ter, "rouge": _rouge}
