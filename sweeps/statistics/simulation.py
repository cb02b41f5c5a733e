"""How often tests are wrong, and intervals right, found out by simulation: the sizes and coverages that are printed.

A test's size is how often it rejects where nothing is to be found; at the level 0.05 it should be at most 0.05. Exact
tests keep to that whatever the distribution, and simulation only checks it; of approximate ones it is the one honest
answer. An interval's coverage is how often it holds the truth.

Scores of sentences are modelled as linear: the score of replicate r on sentence s is quality_r + taste_rs, and a test
set's score is their mean. Quality varies between trainings of one configuration with the sd `rho` times that which the
tastes of finitely many sentences give the mean, so `rho` says how much more a score varies with the training than the
choice of sentences explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sweeps.statistics.contrasts import SEED, permutation_p, student_p, student_quantile, welch_error
from sweeps.statistics.families import variance_check
from sweeps.statistics.power import ALPHA
from sweeps.statistics.resampling import resample
from sweeps.statistics.systems import paired_test, stratified_p

EXPERIMENTS = 20_000
FAMILIES = 4_000  # simulated families of tests
TEXTS = 400  # simulated pairs of configurations with their sentences
SENTENCES = 100  # of a simulated test set; `rho` is relative, so that more would change little


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of simulated experiments; `error` is its standard error."""

    value: float
    experiments: int

    @property
    def error(self) -> float:
        """The standard error of the share."""
        return math.sqrt(self.value * (1 - self.value) / self.experiments)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def rate(found: np.ndarray) -> Rate:
    """The share of true values."""
    return Rate(value=float(np.mean(found)), experiments=len(found))


@lru_cache(maxsize=64)
def welch_size(n_a: int, n_b: int, sd_ratio: float = 1.0, experiments: int = EXPERIMENTS) -> Rate:
    """How often Welch's two-sided test of two samples of one mean rejects; `sd_ratio` is sd_a / sd_b."""
    a, b = _normal(n_a, n_b, sd_ratio, experiments)
    return rate(_welch_p(a, b) <= ALPHA)


@lru_cache(maxsize=64)
def welch_coverage(n_a: int, n_b: int, sd_ratio: float = 1.0, experiments: int = EXPERIMENTS) -> Rate:
    """How often Welch's 95 % interval of a difference holds it."""
    difference, error, freedom = welch_error(*_normal(n_a, n_b, sd_ratio, experiments))
    return rate(np.abs(difference) <= student_quantile(0.975, freedom) * error)


@lru_cache(maxsize=64)
def family_error(sizes: tuple[int, ...], baseline: int, experiments: int = FAMILIES) -> Rate:
    """How often at least one row is marked where all rows are the baseline over again.

    Rows of `sizes` replicates, two or more, against one baseline: Welch's test, corrected by Holm. The smallest p
    decides: Holm marks something exactly where it is at most 0.05 over the number of rows.
    """
    draws = np.random.default_rng([SEED, *sizes, baseline])
    control = draws.standard_normal((experiments, baseline))
    smallest = np.full(experiments, np.inf)
    for n in sizes:
        smallest = np.minimum(smallest, _welch_p(draws.standard_normal((experiments, n)), control))
    return rate(smallest * len(sizes) <= ALPHA)


Distribution = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DISTRIBUTIONS: dict[str, Distribution] = {
    "normal": lambda draws, shape: draws.standard_normal(shape),
    "skewed (exponential)": lambda draws, shape: draws.standard_exponential(shape),
    "one in ten diverges": lambda draws, shape: draws.standard_normal(shape) - 20 * (draws.random(shape) < 0.1),
    "rounded to ties": lambda draws, shape: np.round(draws.standard_normal(shape)),
}


def exact_size(
    n_a: int, n_b: int, distribution: str = "normal", alternative: str = "two-sided", experiments: int = EXPERIMENTS
) -> Rate:
    """How often the exact permutation test rejects two samples of one of `DISTRIBUTIONS`: never above the level."""
    draws = np.random.default_rng([SEED, n_a, n_b])
    scores = DISTRIBUTIONS[distribution](draws, (experiments, n_a + n_b))
    return rate(permutation_p(scores[:, :n_a], scores[:, n_a:], alternative) <= ALPHA)


@lru_cache(maxsize=64)
def pooling_allowed(rows: int, n: int, ratio: float, experiments: int = FAMILIES) -> Rate:
    """How often the variance check lets rows of n replicates be pooled, one of which has `ratio` times the others' sd.

    A check that rejects nothing is no proof: with 4 replicates it misses much.
    """
    draws = np.random.default_rng([SEED, rows, n])
    scores = draws.standard_normal((experiments, rows, n))
    scores[:, 0] *= ratio
    return rate(np.array([variance_check(one.tolist()).allows_pooling for one in scores]))


@lru_cache(maxsize=64)
def stratified_size(n_a: int, n_b: int, rho: float, experiments: int = TEXTS) -> Rate:
    """How often stratified approximate randomisation rejects two configurations that are the same one.

    Their replicates vary with `rho`: the test takes that for a difference of the systems, which it is.
    """
    texts = (_text(n_a, n_b, rho, number) for number in range(experiments))
    return rate(np.array([stratified_p(a, b, _mean, shuffles=199) <= ALPHA for a, b in texts]))


@lru_cache(maxsize=64)
def resampling_coverage(n_a: int, n_b: int, rho: float, experiments: int = TEXTS) -> Rate:
    """How often the 95 % interval of `resampling.resample` holds the true difference of two configurations.

    Each has a taste in sentences of its own, half as strong as a single replicate's.
    """
    held = []
    for number in range(experiments):
        low, high = resample(*_text(n_a, n_b, rho, number, own_taste=0.5), _mean, draws=400).interval
        held.append(low <= 0 <= high)
    return rate(np.array(held))


@lru_cache(maxsize=64)
def paired_size(method: str, rho: float, experiments: int = TEXTS) -> Rate:
    """How often sacrebleu's paired test rejects one replicate each of two configurations that are the same one."""
    found = []
    for number in range(experiments):
        a, b = (side[0] for side in _text(1, 1, rho, number))
        found.append(paired_test(range(len(a)), range(len(b)), _Simulated(a, b), method, samples=199) <= ALPHA)  # type: ignore[arg-type]
    return rate(np.array(found))


class _Simulated:
    """A metric in sacrebleu's shape whose statistics are there already: first asked of b, then of a."""

    name = "simulated"

    def __init__(self, a: np.ndarray, b: np.ndarray):
        self.statistics = [a, b]

    def _extract_corpus_statistics(self, hypotheses: Any, references: Any) -> np.ndarray:
        return self.statistics.pop()

    def _compute_score_from_stats(self, statistics: np.ndarray) -> Any:
        return _Score(float(_mean(np.asarray(statistics))))

    def _aggregate_and_compute(self, statistics: np.ndarray) -> Any:
        return self._compute_score_from_stats(np.asarray(statistics).sum(axis=0))

    def get_signature(self) -> Any:
        return self

    def update(self, key: str, value: Any) -> None:
        """Signatures take what the test adds; this one keeps nothing."""


class _Score(NamedTuple):
    score: float
    name: str = "simulated"


def _text(n_a: int, n_b: int, rho: float, number: int, own_taste: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Sentence statistics of two configurations of equal quality, [replicates, sentences, (score, 1)]."""
    draws = np.random.default_rng([SEED, n_a, n_b, number])
    difficulty = draws.standard_normal(SENTENCES)
    sides = []
    for n in (n_a, n_b):
        quality = rho / math.sqrt(SENTENCES) * draws.standard_normal((n, 1))
        taste = draws.standard_normal((n, SENTENCES)) + own_taste * draws.standard_normal(SENTENCES)
        scores = difficulty + quality + taste
        sides.append(np.stack([scores, np.ones_like(scores)], axis=-1))
    return sides[0], sides[1]


def _mean(totals: np.ndarray) -> np.ndarray:
    return np.asarray(totals[..., 0] / totals[..., 1])


def exact_size_unlike(n_a: int, n_b: int, sd_ratio: float, experiments: int = EXPERIMENTS) -> Rate:
    """How often the exact test rejects two samples of one mean and unlike sds, which is not its null hypothesis."""
    return rate(permutation_p(*_normal(n_a, n_b, sd_ratio, experiments)) <= ALPHA)


def _welch_p(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference, error, freedom = welch_error(a, b)
    return student_p(difference / error, freedom)


def _normal(n_a: int, n_b: int, sd_ratio: float, experiments: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng([SEED, n_a, n_b])
    return sd_ratio * draws.standard_normal((experiments, n_a)), draws.standard_normal((experiments, n_b))
