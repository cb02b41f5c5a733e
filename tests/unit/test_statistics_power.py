"""Power: against simulation with scipy's own tests, and replicates against power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweeps.statistics.power import detectable_difference, pairs_needed, power_of, replicates_needed


@pytest.mark.parametrize(("n", "difference", "sds"), [(4, 1.0, (0.4, 0.4)), (2, 3.0, (0.4, 0.4)), (5, 1.0, (0.1, 0.6))])
def test_power_of_welch_is_that_of_simulation(n: int, difference: float, sds: tuple[float, float]) -> None:
    draws = np.random.default_rng(n)
    a = draws.normal(difference, sds[0], (10_000, n))
    b = draws.normal(0, sds[1], (10_000, n))
    found = stats.ttest_ind(a, b, axis=1, equal_var=False)
    simulated = ((found.pvalue < 0.05) & (found.statistic > 0)).mean()
    assert power_of(n, n, difference, *sds) == pytest.approx(simulated, abs=0.012)
    assert power_of(n, n, -difference, *sds) == power_of(n, n, difference, *sds)


def test_power_of_student_is_the_textbooks() -> None:
    # Cohen (1988), table 2.3: d = 0.5 takes 64 a group for power 0.8, d = 0.8 takes 26.
    assert [replicates_needed(d, 1.0, 1.0) for d in (0.5, 0.8)] == [64, 26]


def test_exact_tests_cannot_reach_a_level_below_their_smallest_p() -> None:
    assert power_of(3, 3, 100.0, 1.0, 1.0, test="exact") == 0.0  # 2/20 > 0.05
    assert power_of(4, 4, 100.0, 1.0, 1.0, test="exact") == 1.0
    assert power_of(4, 4, 100.0, 1.0, 1.0, test="exact", alpha=0.025) == 0.0
    assert power_of(3, 3, 100.0, 1.0, 1.0, test="exact", alternative="greater") == 1.0  # 1/20
    assert detectable_difference(3, 3, 1.0, 1.0, test="exact") is None
    assert replicates_needed(100.0, 1.0, 1.0, test="exact") == 4


def test_power_of_the_exact_test_is_that_of_simulation() -> None:
    draws = np.random.default_rng(9)
    a, b = draws.normal(1.0, 0.5, (400, 4)), draws.normal(0.0, 0.5, (400, 4))
    simulated = np.mean([(one.min() > other.max()) for one, other in zip(a, b, strict=True)])  # 2/70 means just this
    assert power_of(4, 4, 1.0, 0.5, 0.5, test="exact") == pytest.approx(simulated, abs=0.08)
    assert power_of(4, 4, -1.0, 0.5, 0.5, test="exact", alternative="greater") < 0.001


@pytest.mark.parametrize("test", ["welch", "exact"])
def test_replicates_and_detectable_differences_agree(test: str) -> None:
    needed = replicates_needed(1.0, 0.5, 0.5, test=test)
    assert needed is not None
    assert power_of(needed, needed, 1.0, 0.5, 0.5, test=test) >= 0.8
    assert power_of(needed - 1, needed - 1, 1.0, 0.5, 0.5, test=test) < 0.8
    found = detectable_difference(4, 4, 0.5, 0.5, test=test)
    assert found is not None
    assert power_of(4, 4, found, 0.5, 0.5, test=test) == pytest.approx(0.8, abs=0.01)


def test_what_has_no_answer_has_none() -> None:
    assert replicates_needed(0.0, 1.0, 1.0) is None
    assert replicates_needed(0.001, 1.0, 1.0) is None  # more than a thousand
    assert replicates_needed(1.0, None, 1.0) is None
    assert replicates_needed(math.nan, 1.0, 1.0) is None
    assert replicates_needed(1.0, 0.0, 0.0) == 2
    assert replicates_needed(50.0, 0.1, 0.1) == 2
    assert replicates_needed(1.0, 0.5, 0.5, alternative="less") is None
    assert detectable_difference(1, 4, 1.0, 1.0) is None
    with pytest.raises(ValueError, match="welch, exact"):
        power_of(4, 4, 1.0, 1.0, 1.0, test="z")


def test_pairs_needed_is_the_textbooks() -> None:
    # One sample, two-sided, power 0.8: 34 at d = 0.5, 15 at d = 0.8 (Cohen 1988).
    assert [pairs_needed(d, 1.0) for d in (0.5, -0.8)] == [34, 15]
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(1.0, None) is None
    assert pairs_needed(1.0, 0.0) == 2
    assert pairs_needed(60.0, 0.1) == 2
