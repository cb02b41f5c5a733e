"""Two samples of replicates: their difference, Welch's interval and test, and the exact permutation test.

The null is "these configurations": training either of them again gives scores of the same distribution (the permutation
test) or of the same mean (Welch's). Numbers are replicates' scores; a replicate is one training.

Sources: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
involved", Biometrika 34 (1947); R. A. Fisher, "The Design of Experiments" (1935) and E. J. G. Pitman, "Significance
tests which may be applied to samples from any populations" (1937) for permutations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

Scores = Sequence[float] | np.ndarray
ALTERNATIVES = ("two-sided", "greater", "less")
LEVEL = 0.95  # of every interval
MOST_SPLITS = 200_000  # enumerated; of more, DRAWS are drawn
DRAWS = 100_000
SEED = 20170310  # of everything drawn: the same question has the same answer
_TIES = 1e-12  # relative: sums that differ by rounding alone are equal
_AT_ONCE = 4_000_000  # numbers of an array on the way


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The scores of `a` minus those of `b`.

    sd_a, sd_b: sample form (n - 1); None for one value.
    interval: of the difference of the means, 95 %, after Welch; None where a side has one value or neither has spread.
    p_welch: two-sided; None as `interval` is.
    p_exact: two-sided, of the exact permutation test of the difference of means; None where a score is not finite.
    p_smallest: the smallest that `p_exact` can be with so many against so many: where it is above the level of a test,
        no scores whatever are significant.
    sampled: whether there were too many splits to enumerate, so that `p_exact` rests on `DRAWS` of them.
    paired: whether scores belong together in pairs (the same trained models decoded in two ways). `interval` and
        `p_welch` are then those of the paired t test, and `p_exact` flips the signs of the pairs' differences.
    sd_pairs: of the pairs' differences; None where there are none.
    """

    n_a: int
    n_b: int
    difference: float
    sd_a: float | None
    sd_b: float | None
    interval: tuple[float, float] | None
    p_welch: float | None
    p_exact: float | None
    p_smallest: float
    sampled: bool = False
    paired: bool = False
    sd_pairs: float | None = None


def contrast(a: Scores, b: Scores, *, paired: bool = False) -> Contrast:
    """Compare two samples. Scores that are not finite give figures that say so and no p.

    Raises ValueError for an empty sample, and for pairs of unequal numbers.
    """
    one, other = _sample(a), _sample(b)
    if paired and len(one) != len(other):
        raise ValueError(f"{len(one)} values cannot be paired with {len(other)}")
    finite = bool(np.isfinite(one).all() and np.isfinite(other).all())
    with np.errstate(invalid="ignore"):
        difference = float(one.mean() - other.mean())
    interval, p_welch = None, None
    if finite:
        middle, error, freedom = _paired_error(one, other) if paired else welch_error(one, other)
        if freedom > 0:  # false where there is no spread to measure by
            half = student_quantile(0.5 + LEVEL / 2, freedom) * error
            interval = (float(middle - half), float(middle + half))
            p_welch = float(student_p(middle / error, freedom))
    return Contrast(
        n_a=len(one),
        n_b=len(other),
        difference=difference,
        sd_a=_sd(one),
        sd_b=_sd(other),
        interval=interval,
        p_welch=p_welch,
        p_exact=(paired_p(one, other) if paired else exact_p(one, other)) if finite else None,
        p_smallest=smallest_paired_p(len(one)) if paired else smallest_p(len(one), len(other)),
        sampled=not paired and not enumerable(len(one), len(other)),
        paired=paired,
        sd_pairs=_sd(one - other) if paired and finite else None,
    )


def exact_p(
    a: Scores,
    b: Scores,
    alternative: str = "two-sided",
    shift: float = 0.0,
) -> float:
    """p of the exact permutation test of the difference of means; NaN where a score is not finite.

    The share of all splits of the pooled scores into n_a and n_b whose difference is at least as large as the one
    observed, the observed split among them: never below one over the number of splits, and at most the level as often
    as the level says, whatever the distribution. Two-sided is twice the smaller one-sided p. Of more than
    `MOST_SPLITS` splits, `DRAWS` are drawn, and p = (1 + as large) / (1 + drawn) (`enumerable` tells).

    Parameters
    ----------
    alternative: `greater`: mean(a) - mean(b) > shift; `less`: below it; `two-sided`: either.
    shift: the difference under the null. A minimum effect of d is `greater` with shift=d; that a is worse by less than
        a margin m (non-inferiority) is `greater` with shift=-m.
    """
    return float(permutation_p(_sample(a)[None], _sample(b)[None], alternative, shift)[0])


def permutation_p(
    a: np.ndarray, b: np.ndarray, alternative: str = "two-sided", shift: float = 0.0, most: int = MOST_SPLITS
) -> np.ndarray:
    """`exact_p` of many experiments at once: a [experiments, n_a], b [experiments, n_b] to p [experiments].

    Of more than `most` splits so many are drawn, the same ones for all experiments; of the default, `DRAWS`.
    """
    _check(alternative)
    n_a, n_b = a.shape[1], b.shape[1]
    pooled = np.concatenate([a - shift, b], axis=1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        # The sum of the first part grows with the difference of means: the total is the same in every split.
        centred = pooled - pooled.mean(axis=1, keepdims=True)
        slack = _TIES * np.abs(pooled).sum(axis=1)
        observed = centred[:, :n_a].sum(axis=1)
        greater, less, total = np.zeros(len(a), np.int64), np.zeros(len(a), np.int64), 0
        for split in _splits(n_a, n_b, most):
            step = max(1, _AT_ONCE // len(split))
            for start in range(0, len(a), step):
                rows = slice(start, start + step)
                sums = centred[rows] @ split.T.astype(np.float64)
                greater[rows] += (sums >= (observed - slack)[rows, None]).sum(axis=1)
                less[rows] += (sums <= (observed + slack)[rows, None]).sum(axis=1)
            total += len(split)
    drawn = int(math.comb(n_a + n_b, n_a) > most)  # the observed split, which a draw need not contain
    p_greater, p_less = (greater + drawn) / (total + drawn), (less + drawn) / (total + drawn)
    p = {"greater": p_greater, "less": p_less, "two-sided": np.minimum(1.0, 2 * np.minimum(p_greater, p_less))}
    return np.where(np.isfinite(pooled).all(axis=1), p[alternative], np.nan)


def smallest_p(n_a: int, n_b: int, alternative: str = "two-sided") -> float:
    """The smallest that `exact_p` can be: one split of all, two for a two-sided test. 4 against 4: 2/70."""
    _check(alternative)
    splits = math.comb(n_a + n_b, n_a) if enumerable(n_a, n_b) else DRAWS + 1
    return min(1.0, (2 if alternative == "two-sided" else 1) / splits)


def enumerable(n_a: int, n_b: int) -> bool:
    """Whether `exact_p` looks at every split of n_a against n_b, or draws from them."""
    return math.comb(n_a + n_b, n_a) <= MOST_SPLITS


def paired_p(
    a: Scores,
    b: Scores,
    alternative: str = "two-sided",
    shift: float = 0.0,
) -> float:
    """p of the exact test of pairs: the share of all ways to flip the signs of their differences. NaN as `exact_p`.

    For scores that belong together, such as one trained model decoded in two ways. More than 17 pairs are drawn from
    as `exact_p` draws. Raises ValueError for unequal numbers.
    """
    _check(alternative)
    differences = np.subtract(_sample(a), _sample(b)) - shift
    if not np.isfinite(differences).all():
        return math.nan
    n, slack, observed = len(differences), _TIES * (np.abs(a).sum() + np.abs(b).sum()), differences.sum()
    if 2**n <= MOST_SPLITS:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = 1 - 2 * np.random.default_rng(SEED).integers(0, 2, (DRAWS, n))
    sums, drawn = signs @ differences, int(2**n > MOST_SPLITS)
    greater = ((sums >= observed - slack).sum() + drawn) / (len(sums) + drawn)
    less = ((sums <= observed + slack).sum() + drawn) / (len(sums) + drawn)
    return float({"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative])


def smallest_paired_p(n: int, alternative: str = "two-sided") -> float:
    """The smallest that `paired_p` of n pairs can be; 4 pairs: 2/16."""
    _check(alternative)
    return min(1.0, (2 if alternative == "two-sided" else 1) / (2**n if 2**n <= MOST_SPLITS else DRAWS + 1))


def welch_error(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of means, its standard error and Welch's degrees of freedom, over the last axis of both.

    Degrees of freedom are 0 where there is nothing to measure by: a side of one value, or no spread in either.
    """
    n_a, n_b = a.shape[-1], b.shape[-1]
    difference = a.mean(axis=-1) - b.mean(axis=-1)
    if min(n_a, n_b) < 2:
        return difference, np.full(difference.shape, np.nan), np.zeros(difference.shape)
    share_a, share_b = _variance(a) / n_a, _variance(b) / n_b
    square = share_a + share_b
    safe = np.where(square > 0, square, 1.0)
    freedom = safe**2 / np.maximum(share_a**2 / (n_a - 1) + share_b**2 / (n_b - 1), np.finfo(float).tiny)
    return difference, np.sqrt(square), np.where(square > 0, freedom, 0.0)


def student_p(t: np.ndarray | float, freedom: np.ndarray | float, alternative: str = "two-sided") -> np.ndarray:
    """p of Student's t: how often a t of so many degrees of freedom is at least as large by chance."""
    from scipy.special import stdtr

    _check(alternative)
    if alternative == "two-sided":
        return np.asarray(2 * stdtr(freedom, -np.abs(t)))
    return np.asarray(stdtr(freedom, -np.asarray(t) if alternative == "greater" else t))


def student_quantile(share: float, freedom: np.ndarray | float) -> np.ndarray:
    """The t that `share` of the distribution lies below."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(freedom, share))


def _paired_error(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    differences = a - b
    n = len(differences)
    square = _variance(differences) / n if n > 1 else np.asarray(0.0)
    return differences.mean(), np.sqrt(square), np.where(square > 0, n - 1, 0)


def _variance(values: np.ndarray) -> np.ndarray:
    """Over the last axis, n - 1 in the denominator; 0 where all are equal, which rounding of the mean would hide."""
    equal = (values == values[..., :1]).all(axis=-1)
    return np.where(equal, 0.0, values.var(axis=-1, ddof=1))


def _splits(n_a: int, n_b: int, most: int) -> Iterator[np.ndarray]:
    """Which of n_a + n_b values go into the first part: uint8 [splits, values], in pieces where they are drawn."""
    if math.comb(n_a + n_b, n_a) <= most:
        yield every_split(n_a, n_b)
        return
    draws, wanted = np.random.default_rng(SEED), min(most, DRAWS)
    for start in range(0, wanted, step := max(1, _AT_ONCE // (n_a + n_b))):
        places = draws.random((min(step, wanted - start), n_a + n_b)).argsort(axis=1)
        yield (places < n_a).astype(np.uint8)


@lru_cache(maxsize=32)
def every_split(n_a: int, n_b: int) -> np.ndarray:
    """Which of n_a + n_b values go into the first part, in every way there is: uint8 [splits, values], read-only."""
    chosen = np.fromiter(
        (place for places in combinations(range(n_a + n_b), n_a) for place in places), dtype=np.intp
    ).reshape(-1, n_a)
    split = np.zeros((len(chosen), n_a + n_b), np.uint8)
    np.put_along_axis(split, chosen, 1, axis=1)
    split.setflags(write=False)
    return split


def _sample(values: Scores) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"a sample is a row of at least one number, not an array of shape {sample.shape}")
    return sample


def _sd(sample: np.ndarray) -> float | None:
    if len(sample) < 2:
        return None
    return float(np.sqrt(_variance(sample))) if np.isfinite(sample).all() else math.nan


def _check(alternative: str) -> None:
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative '{alternative}' is none of {', '.join(ALTERNATIVES)}")
