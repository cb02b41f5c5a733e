"""Planned contrasts against p-values counted by hand, and the rate at which true nulls pass."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sweeps.claims.claim import PlannedContrast
from sweeps.claims.judging import ALPHA, HELD, REVERSED, UNDECIDED, Comparison, Judgement, judge, judge_collapse
from sweeps.claims.sides import comparisons
from sweeps.statistics.contrasts import permutation_p

LOW, HIGH = (1.0, 1.1, 1.2, 1.3), (5.0, 5.1, 5.2, 5.3)
MIXED = (1.05, 1.15, 1.25, 1.35)


def verdict(a: tuple[float, ...], b: tuple[float, ...], expect: str, effect: float, paired: bool = False) -> Judgement:
    return judge([Comparison(name="a against b", a=a, b=b)], expect, effect, paired)


def test_greater_needs_significance_and_the_minimum() -> None:
    held = verdict(HIGH, LOW, "greater", 3.9)
    assert (held.verdict, held.p, held.effect) == (HELD, pytest.approx(1 / 70), pytest.approx(4.0))
    assert held.interval is not None
    assert held.interval[0] < 4.0 < held.interval[1]
    small = verdict(HIGH, LOW, "greater", 4.1)
    assert (small.verdict, small.reason) == (UNDECIDED, "significant, and below the minimum effect")
    tiny = verdict(HIGH, LOW, "greater", 9.0)
    assert (tiny.verdict, tiny.needed) == (UNDECIDED, None)
    assert tiny.reason.startswith("an effect as large as the minimum is refuted")
    reverse = verdict(LOW, HIGH, "greater", 3.9)
    assert (reverse.verdict, reverse.p, reverse.p_opposite) == (REVERSED, 1.0, pytest.approx(1 / 70))
    # 1.05 + 1.15 + 1.25 + 1.35 = 4.8 out of 9.4: p is far from either end.
    open_ = verdict(MIXED, LOW, "greater", 0.1)
    assert (open_.verdict, open_.reason) == (UNDECIDED, "neither direction is significant")
    assert open_.needed is not None
    assert 15 < open_.needed < 25  # a minimum of 0.1 is three quarters of a standard deviation


def test_the_smaller_the_minimum_the_more_replicates_it_takes() -> None:
    needed = [verdict(MIXED, LOW, "greater", minimum).needed for minimum in (0.15, 0.1, 0.02)]
    assert all(needed)
    assert needed[0] < needed[1] < needed[2]  # type: ignore[operator]


def test_not_less_has_its_margin_in_the_null() -> None:
    assert verdict(MIXED, LOW, "not_less", 0.3).verdict == HELD  # all of a + 0.3 lie above all of b
    assert verdict(LOW, HIGH, "not_less", 3.0).verdict == REVERSED  # worse by 4, and so by more than 3
    assert verdict(LOW, HIGH, "not_less", 4.0).verdict == UNDECIDED
    # Worse than nothing, and yet within the margin: significantly less, and not by more than the margin.
    assert verdict((0.9, 1.0, 1.1, 1.2), HIGH, "not_less", 5.0).verdict == HELD


def test_equal_takes_both_tests() -> None:
    equal = verdict(MIXED, LOW, "equal", 0.5)
    assert (equal.verdict, equal.p) == (HELD, pytest.approx(1 / 70))
    assert verdict(HIGH, LOW, "equal", 0.5).verdict == REVERSED
    assert verdict(LOW, HIGH, "equal", 0.5).verdict == REVERSED
    assert verdict(MIXED, LOW, "equal", 0.05).verdict == UNDECIDED
    assert verdict(HIGH, LOW, "equal", 0.5).p_opposite == pytest.approx(2 / 70)  # either direction would do


def test_several_comparisons_hold_together_or_not() -> None:
    good, bad = Comparison(name="1", a=HIGH, b=LOW), Comparison(name="2", a=MIXED, b=LOW)
    worse = Comparison(name="3", a=LOW, b=HIGH)
    both = judge([good, good], "greater", 1.0)
    assert (both.verdict, both.p) == (HELD, pytest.approx(1 / 70))
    one = judge([good, bad], "greater", 1.0)
    assert one.verdict == UNDECIDED
    assert one.effect == pytest.approx(0.05)
    assert one.p == one.findings[1].p
    assert judge([good, worse], "greater", 1.0).p_opposite == pytest.approx(2 / 70)
    assert judge([good, worse], "greater", 1.0).verdict == REVERSED
    assert judge([good] * 3 + [worse], "greater", 1.0).verdict == UNDECIDED  # 4/70 is not significant


@pytest.mark.parametrize(("n", "can"), [(2, False), (3, True)])
def test_so_few_replicates_cannot_decide(n: int, can: bool) -> None:
    found = verdict(HIGH[:n], LOW[:n], "greater", 1.0)
    assert (found.verdict == HELD) == can
    if not can:
        assert found.reason == "so few replicates cannot bring p below 0.17"  # 1/6
        assert found.needed == 3


def test_what_is_not_finite_has_no_test() -> None:
    found = verdict((math.nan, *HIGH[1:]), LOW, "greater", 1.0)
    assert (found.verdict, found.p) == (UNDECIDED, None)
    assert "not finite" in found.reason


def test_pairs_count_from_five_replicates_on() -> None:
    # Spread between trainings far above the gain: in pairs it falls out, unpaired it hides the gain.
    trainings = (10.0, 14.0, 12.0, 18.0, 16.0)
    better = tuple(score + 0.3 for score in trainings)
    paired = verdict(better, trainings, "greater", 0.1, paired=True)
    assert (paired.verdict, paired.p, paired.findings[0].paired) == (HELD, pytest.approx(1 / 32), True)
    assert verdict(better, trainings, "greater", 0.1).verdict == UNDECIDED
    four = verdict(better[:4], trainings[:4], "greater", 0.1, paired=True)
    assert four.needed == 5  # where they will be paired
    assert (four.verdict, four.findings[0].paired, four.findings[0].p_smallest) == (
        UNDECIDED,
        False,
        pytest.approx(1 / 70),
    )


@pytest.mark.parametrize(
    ("collapsed", "expected"),
    # Of four: 4 or 3 against none have Fisher's 1/70 and 5/70; at a share of 3/4, none has 1/256, one 13/256 = 0.0508.
    [(4, HELD), (3, UNDECIDED), (1, UNDECIDED), (0, REVERSED)],
)
def test_collapses_are_counted(collapsed: int, expected: str) -> None:
    runs = tuple(float(number < collapsed) for number in range(4))
    found = judge_collapse(Comparison(name="deep against shallow", a=runs, b=(0.0,) * 4), 0.75)
    assert found.verdict == expected
    assert found.effect == collapsed / 4
    if collapsed == 0:
        assert found.p_opposite == pytest.approx(1 / 256)


def planned(combine: str, rows: tuple[str, ...], against: tuple[str, ...]) -> PlannedContrast:
    return PlannedContrast(
        sweep="s", measure="score", rows=rows, against=against, expect="greater", effect=1.0, combine=combine
    )


def test_sides_are_averaged_crossed_or_matched() -> None:
    values = {"A": (1.0, 2.0), "B": (3.0, 6.0), "C": (0.0, 1.0), "D": (10.0, 20.0)}
    (mean,) = comparisons(planned("mean", ("A", "B"), ("C",)), values)
    assert (mean.a, mean.b) == ((2.0, 4.0), (0.0, 1.0))
    crossed = comparisons(planned("each", ("A", "B"), ("C", "D")), values)
    assert [one.name for one in crossed] == ["A against C", "A against D", "B against C", "B against D"]
    matched = comparisons(planned("pairs", ("A", "B"), ("C", "D")), values)
    assert [(one.a, one.b) for one in matched] == [(values["A"], values["C"]), (values["B"], values["D"])]


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_rows_of_shared_trainings_pass_no_more_often_than_the_level(correlation: float) -> None:
    """The unpaired test of 4 against 4 scores of shared trainings is conservative, the more the more they share."""
    draws = np.random.default_rng(7)
    training, own = draws.standard_normal((4000, 1, 4)), draws.standard_normal((4000, 2, 4))
    scores = math.sqrt(correlation) * training + math.sqrt(1 - correlation) * own
    rate = float((permutation_p(scores[:, 0], scores[:, 1], "greater") <= ALPHA).mean())
    assert rate <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 4000)
    if correlation > 0.9:
        assert rate < 0.01
