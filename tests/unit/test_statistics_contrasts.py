"""Contrasts of replicates: against enumeration by hand and scipy's own results."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from sweeps.statistics import contrasts
from sweeps.statistics.contrasts import contrast, exact_p, paired_p, permutation_p, smallest_p

FOUR_A, FOUR_B = [33.1, 32.8, 33.9, 33.4], [31.9, 32.2, 31.0, 32.1]


def enumerated(a: list[float], b: list[float], alternative: str, shift: float = 0.0) -> float:
    """The definition: every split of the pooled scores, its difference of means against the one observed."""
    pooled = [value - shift for value in a] + list(b)
    observed = sum(pooled[: len(a)]) / len(a) - sum(b) / len(b)
    greater = less = total = 0
    for chosen in combinations(range(len(pooled)), len(a)):
        inside = [pooled[place] for place in chosen]
        outside = [pooled[place] for place in range(len(pooled)) if place not in chosen]
        difference = sum(inside) / len(inside) - sum(outside) / len(outside)
        greater += difference >= observed - 1e-9
        less += difference <= observed + 1e-9
        total += 1
    shares = {"greater": greater / total, "less": less / total}
    return shares.get(alternative, min(1.0, 2 * min(greater, less) / total))


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("sizes", [(4, 4), (3, 5), (5, 2), (1, 4), (1, 1)])
def test_exact_p_is_the_share_of_all_splits_and_scipys(sizes: tuple[int, int], alternative: str) -> None:
    draws = np.random.default_rng(sizes)
    for scores in (draws.normal(30, 1, sum(sizes)), draws.integers(0, 3, sum(sizes)).astype(float)):  # with ties too
        a, b = scores[: sizes[0]].tolist(), scores[sizes[0] :].tolist()
        p = exact_p(a, b, alternative)
        assert p == pytest.approx(enumerated(a, b, alternative), abs=1e-15)
        if min(sizes) > 1:
            theirs = stats.permutation_test(
                (a, b),
                lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
                vectorized=True,
                n_resamples=np.inf,
                alternative=alternative,
            )
            assert p == pytest.approx(theirs.pvalue, abs=1e-15)


def test_smallest_reachable_p() -> None:
    assert exact_p([5, 6, 7, 8], [1, 2, 3, 4]) == smallest_p(4, 4) == 2 / 70
    assert exact_p([5, 6, 7, 8], [1, 2, 3, 4], "greater") == smallest_p(4, 4, "greater") == 1 / 70
    assert exact_p([5, 6, 7, 8], [1, 2, 3, 4], "less") == 1.0
    assert exact_p([4, 5, 6], [1, 2, 3]) == smallest_p(3, 3) == 0.1
    assert smallest_p(6, 6) == 2 / 924 == pytest.approx(0.0022, abs=5e-5)
    assert smallest_p(1, 1) == 1.0


def test_ties_never_make_p_smaller_than_the_observed_split_alone() -> None:
    assert exact_p([1, 1, 1, 1], [1, 1, 1, 1]) == 1.0
    # 0.1 + 0.2 is not 0.3 in binary: splits that differ by rounding alone are equal to the observed one.
    a, b = [0.1, 0.2, 0.3], [0.3, 0.1, 0.2]
    assert exact_p(a, b) == 1.0
    assert exact_p([30.1, 30.2], [30.2, 30.1], "greater") == enumerated([30.1, 30.2], [30.2, 30.1], "greater") == 5 / 6


@pytest.mark.parametrize("shift", [-0.5, 0.3, 1.3])
def test_shift_asks_for_a_minimum_effect_or_a_margin(shift: float) -> None:
    for alternative in ("two-sided", "greater", "less"):
        p = exact_p(FOUR_A, FOUR_B, alternative, shift)
        assert p == pytest.approx(enumerated(FOUR_A, FOUR_B, alternative, shift), abs=1e-15)
    assert exact_p(FOUR_A, FOUR_B, "greater", -5) == 1 / 70  # within a margin of 5 BLEU: not inferior
    assert exact_p(FOUR_A, FOUR_B, "greater", 5) == 1.0


def test_of_too_many_splits_some_are_drawn_with_a_fixed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(3)
    a, b = draws.normal(0.8, 1, 7), draws.normal(0, 1, 7)
    exact = exact_p(a, b)
    monkeypatch.setattr(contrasts, "DRAWS", 20_000)
    sampled = permutation_p(a[None], b[None], most=3000)  # of 3432
    assert sampled[0] == permutation_p(a[None], b[None], most=3000)[0] != exact
    assert sampled[0] == pytest.approx(exact, abs=5 * 2 * math.sqrt(exact / 2 / 3000))
    many = contrast(np.arange(12) + 20.0, np.arange(12))
    assert many.sampled
    assert many.p_exact == many.p_smallest == 2 / 20_001  # never zero: the observed split counts
    assert not contrast(a, b).sampled


def test_experiments_at_once_are_the_same_as_one_by_one() -> None:
    draws = np.random.default_rng(1)
    a, b = draws.normal(0, 1, (20, 3)), draws.normal(1, 2, (20, 4))
    together = permutation_p(a, b, "less", 0.1)
    assert together.tolist() == [exact_p(one, other, "less", 0.1) for one, other in zip(a, b, strict=True)]


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, of three equal values
@pytest.mark.parametrize(("a", "b"), [(FOUR_A, FOUR_B), ([1.0, 2.0], [7.0, 7.5, 9.0]), ([3.0, 3.0, 3.0], [1.0, 2.0])])
def test_welch_is_scipys(a: list[float], b: list[float]) -> None:
    found, theirs = contrast(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.p_welch == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-10)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.n_a, found.n_b) == (len(a), len(b))
    assert found.sd_a == pytest.approx(np.std(a, ddof=1))


def test_pairs_are_tested_as_pairs() -> None:
    found, theirs = contrast(FOUR_A, FOUR_B, paired=True), stats.ttest_rel(FOUR_A, FOUR_B)
    assert found.p_welch == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-10)
    assert found.p_exact == found.p_smallest == 2 / 16
    draws = np.random.default_rng(4)
    a, b = draws.normal(0.5, 1, 7), draws.normal(0, 1, 7)
    for alternative in ("two-sided", "greater", "less"):
        exact = stats.permutation_test(
            (a, b), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples", alternative=alternative
        )
        assert paired_p(a, b, alternative) == pytest.approx(exact.pvalue, abs=1e-12)
    with pytest.raises(ValueError, match="cannot be paired"):
        contrast([1.0, 2.0], [1.0], paired=True)


def test_what_cannot_be_tested_has_no_p() -> None:
    single = contrast([30.0], [28.0, 29.0])
    assert (single.sd_a, single.interval, single.p_welch) == (None, None, None)
    assert single.p_exact == 2 / 3
    flat = contrast([30.1, 30.1, 30.1], [29.3, 29.3, 29.3])  # no spread to measure by, whatever the mean's rounding
    assert (flat.sd_a, flat.interval, flat.p_welch, flat.p_exact) == (0.0, None, None, 0.1)
    for bad in (math.nan, math.inf, -math.inf):
        broken = contrast([30.0, bad, 31.0], [29.0, 28.0, 28.5])
        assert (broken.interval, broken.p_welch, broken.p_exact) == (None, None, None)
        assert not math.isfinite(broken.difference)
        assert math.isnan(exact_p([30.0, bad], [1.0, 2.0]))
    with pytest.raises(ValueError, match="at least one number"):
        contrast([], [1.0])
    with pytest.raises(ValueError, match="two-sided"):
        exact_p([1.0], [2.0], "bigger")
