"""Families of tests: Holm by hand, Dunnett and Brown-Forsythe as scipy has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweeps.statistics.families import dunnett, holm, variance_check


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    draws = np.random.default_rng(0)
    for _ in range(200):
        p = draws.beta(0.3, 1.0, size=6)
        rejected = np.zeros(6, bool)
        for rank, place in enumerate(np.argsort(p)):  # the procedure as Holm states it
            if p[place] > 0.05 / (6 - rank):
                break
            rejected[place] = True
        assert [value <= 0.05 for value in holm(p.tolist())] == rejected.tolist()


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])


def test_variances_are_checked_before_they_are_pooled() -> None:
    draws = np.random.default_rng(5)
    alike = [draws.normal(30, 1, 6).tolist() for _ in range(3)]
    found = variance_check(alike)
    assert found.p == pytest.approx(stats.levene(*alike, center="median").pvalue)
    assert found.allows_pooling
    unlike = [*alike, draws.normal(30, 40, 6).tolist()]
    assert not variance_check(unlike).allows_pooling
    assert variance_check(unlike).sd_ratio == pytest.approx(
        max(np.std(one, ddof=1) for one in unlike) / min(np.std(one, ddof=1) for one in unlike)
    )


def test_variances_that_cannot_be_checked_are_not_pooled() -> None:
    three = [2.0, 3.0, 4.5]
    # Of two values each is as far from the median as the other: their test would reject whatever they are.
    for samples in ([[1.0], three], [[1.0, 1.0, 1.0], three], [[1.0, math.nan, 2.0], three], [[1.0, 5.0], three], []):
        found = variance_check(samples)
        assert (found.p, found.allows_pooling) == (None, False)


def test_dunnett_is_scipys_and_the_same_every_time() -> None:
    draws = np.random.default_rng(2)
    rows, control = [draws.normal(mean, 1, 5).tolist() for mean in (0, 1, 3)], draws.normal(0, 1, 5).tolist()
    p = dunnett(rows, control)
    assert p == dunnett(rows, control)
    assert p == pytest.approx(stats.dunnett(*rows, control=control, rng=1).pvalue, abs=2e-3)
    with pytest.raises(ValueError, match="two values"):
        dunnett([[1.0]], control)
