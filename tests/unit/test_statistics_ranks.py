"""Rank correlation against scipy's, exact p against all orders, and what its interval covers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from sweeps.statistics.ranks import rank_correlation

ROWS = [[3.0, 3.2], [1.0, 1.4], [2.0, 2.1], [9.0, 9.0], [4.0, 5.0]]


def test_rho_is_scipys() -> None:
    other = [[2.0], [1.0], [3.0], [8.0], [8.0]]  # a tie
    found = rank_correlation(ROWS, other)
    assert found.rho == pytest.approx(spearmanr([np.mean(row) for row in ROWS], [row[0] for row in other]).statistic)


def test_p_counts_the_orders_that_agree_as_well() -> None:
    same = rank_correlation(ROWS, ROWS)
    assert (same.rho, same.p_positive, same.p_negative) == (pytest.approx(1.0), pytest.approx(1 / 120), 1.0)
    other = [[float(value)] for value in (1, 2, 3, 4, 5)]
    means = [np.mean(row) for row in ROWS]
    observed = spearmanr(means, [1, 2, 3, 4, 5]).statistic
    better = [spearmanr(means, order).statistic >= observed - 1e-9 for order in itertools.permutations(range(5))]
    assert rank_correlation(ROWS, other).p_positive == pytest.approx(np.mean(better))


def test_many_rows_are_drawn_and_repeat() -> None:
    rows = [[float(number), number + 0.1] for number in range(10)]
    found = rank_correlation(rows, rows)
    assert found.p_positive == pytest.approx(1 / 100_001, rel=1.01)
    assert found == rank_correlation(rows, rows)
    assert found.interval == (pytest.approx(1.0), pytest.approx(1.0))  # no replicate of a row reaches the next one


def test_the_interval_is_wide_where_replicates_overlap() -> None:
    draws = np.random.default_rng(3)
    rows = [list(number + draws.normal(0, 3, 4)) for number in range(8)]
    found = rank_correlation(rows, rows)
    assert found.interval is not None
    assert found.interval[0] < 0.8
    single = rank_correlation([row[:1] for row in rows], [row[:1] for row in rows])
    assert single.interval is None


def test_rows_without_order_have_no_correlation() -> None:
    assert rank_correlation([[1.0]] * 4, ROWS[:4]).rho is None
    assert rank_correlation([[float("nan")], *ROWS[1:]], ROWS).rho is None
    with pytest.raises(ValueError, match="cannot be ranked"):
        rank_correlation(ROWS, ROWS[:3])
