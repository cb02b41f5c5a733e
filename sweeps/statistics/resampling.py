"""A bootstrap over replicates and over sentences at once: an interval of a difference that knows both kinds of chance.

Each draw takes as many replicates of either side as there are, with replacement, and a test set of as many sentences,
the same one for all of them. With few replicates such an interval is no good one: it counts the sentences' chance twice
where there is little else, and spreads by only (n - 1)/n of the replicates' variance where that is most of it. So
nothing is marked by it, and `simulation.resampling_coverage` says how often it holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sweeps.statistics.contrasts import LEVEL, SEED
from sweeps.statistics.systems import Score

DRAWS = 2_000
_AT_ONCE = 4_000_000  # numbers of an array on the way


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """What resampling says of a difference, a minus b.

    interval: 95 %, by percentiles.
    rho: how much more scores vary between trainings of one configuration than the choice of sentences explains: the sd
        that is the training's own, over the sd that the test set's size alone gives a replicate's score. 0: replicates
        differ no more than one would on other sentences. None with one replicate a side.
    rho_interval: 95 % of it, for normal scores: few replicates say little of their spread.
    """

    interval: tuple[float, float]
    rho: float | None
    rho_interval: tuple[float, float] | None


def resample(a: np.ndarray, b: np.ndarray, score: Score, draws: int = DRAWS, seed: int = SEED) -> Resampling:
    """Resample replicates, then sentences. a, b: sentence statistics, [replicates, sentences, parts]."""
    generator = np.random.default_rng(seed)
    both = np.concatenate([a, b])
    scores = np.concatenate(
        [score(weights @ both).T for weights in _test_sets(generator, draws, both.shape[1])]
    )  # [draws, replicates]
    side_a, side_b = scores[:, : len(a)], scores[:, len(a) :]
    differences = _picked(generator, side_a) - _picked(generator, side_b)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rho, rho_interval = _rho(score(both.sum(axis=1)), scores, len(a))
    return Resampling(interval=(float(low), float(high)), rho=rho, rho_interval=rho_interval)


def _test_sets(generator: np.random.Generator, draws: int, sentences: int) -> Iterator[np.ndarray]:
    """How often each sentence is in each drawn test set, [draws, sentences] in pieces."""
    step = max(1, _AT_ONCE // sentences)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        chosen = generator.integers(0, sentences, (count, sentences)) + sentences * np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=count * sentences).reshape(count, sentences)
        yield weights.astype(np.float64)


def _picked(generator: np.random.Generator, scores: np.ndarray) -> np.ndarray:
    """Means over replicates drawn with replacement, [draws]."""
    chosen = generator.integers(0, scores.shape[1], scores.shape)
    return np.asarray(np.take_along_axis(scores, chosen, axis=1).mean(axis=1))


def _rho(observed: np.ndarray, scores: np.ndarray, n_a: int) -> tuple[float | None, tuple[float, float] | None]:
    """rho and its interval, of observed scores [replicates] and those on drawn test sets [draws, replicates].

    What replicates of a side have in common cancels in their deviations from its mean: the spread of these over test
    sets is the sentences' doing, and what the observed spread has beyond it the training's.
    """
    from scipy.special import gammaincinv

    own, noise, freedom = 0.0, 0.0, 0
    for part in (slice(None, n_a), slice(n_a, None)):
        deviations = scores[:, part] - scores[:, part].mean(axis=1, keepdims=True)
        own += float(((observed[part] - observed[part].mean()) ** 2).sum())
        noise += float(deviations.var(axis=0).sum())
        freedom += deviations.shape[1] - 1
    if noise <= 0 or not math.isfinite(own):
        return None, None
    lowest, highest = (
        own / noise * freedom / (2 * float(gammaincinv(freedom / 2, share)))
        for share in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
    )
    rho, low, high = (math.sqrt(max(0.0, ratio - 1)) for ratio in (own / noise, lowest, highest))
    return rho, (low, high)
