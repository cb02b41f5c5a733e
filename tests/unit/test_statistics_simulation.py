"""Sizes and coverages by simulation: exact tests never reject too often, the others as they are known to."""

from __future__ import annotations

import pytest

from sweeps.statistics.simulation import (
    DISTRIBUTIONS,
    Rate,
    exact_size,
    family_error,
    paired_size,
    resampling_coverage,
    stratified_size,
    welch_coverage,
    welch_size,
)


def at_most(found: Rate, level: float) -> bool:
    return found.value <= level + 3 * found.error


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("sizes", [(4, 4), (3, 5)])
def test_exact_tests_keep_to_their_level_whatever_the_distribution(sizes: tuple[int, int], distribution: str) -> None:
    for alternative in ("two-sided", "greater"):
        assert at_most(exact_size(*sizes, distribution, alternative, 4000), 0.05)


def test_the_size_of_exact_tests_is_the_largest_p_they_can_have_below_the_level() -> None:
    found = exact_size(4, 4, experiments=10_000)
    assert found.value == pytest.approx(2 / 70, abs=4 * found.error)  # the next p is 4/70
    one_sided = exact_size(4, 4, alternative="greater", experiments=10_000)
    assert one_sided.value == pytest.approx(3 / 70, abs=4 * one_sided.error)
    assert exact_size(3, 3, experiments=100).value == 0.0  # cannot reach the level at all


def test_welch_is_near_its_level_and_conservative_at_few_replicates() -> None:
    assert 0.035 < welch_size(4, 4).value < 0.05
    assert 0.04 < welch_size(4, 4, 3.0).value < 0.065
    for sizes in ((4, 4), (3, 6)):  # an interval holds zero exactly where the test does not reject
        assert welch_coverage(*sizes).value == pytest.approx(1 - welch_size(*sizes).value, abs=1e-12)


def test_holm_keeps_the_error_of_the_family() -> None:
    assert at_most(family_error((4,) * 8, 4), 0.05)
    assert family_error((4,), 4).value == pytest.approx(welch_size(4, 4).value, abs=0.01)
    assert family_error((2, 2), 2).value < 0.05


def test_tests_of_systems_take_the_training_for_a_difference() -> None:
    assert at_most(stratified_size(4, 4, 0.0, 200), 0.05)
    assert stratified_size(4, 4, 3.0, 200).value > 0.35
    assert at_most(paired_size("randomisation", 0.0, 100), 0.05)
    assert paired_size("randomisation", 3.0, 100).value > 0.3


def test_sacrebleus_bootstrap_is_one_sided_in_effect() -> None:
    found = paired_size("bootstrap", 0.0, 100)
    assert found.value == pytest.approx(0.10, abs=3 * found.error)


def test_coverage_of_resampling_falls_where_replicates_vary() -> None:
    assert resampling_coverage(4, 4, 0.0, 100).value > 0.95
    assert resampling_coverage(4, 4, 4.0, 300).value < 0.94


def test_a_rate_knows_how_well_it_is_known() -> None:
    assert Rate(value=0.05, experiments=1900).error == pytest.approx(0.005)
    assert str(Rate(value=0.05, experiments=1900)) == "0.050 ± 0.005"
