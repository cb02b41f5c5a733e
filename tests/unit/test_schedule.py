"""Learning-rate schedules, by numbers."""

from __future__ import annotations

import math

import pytest

from nmt.config.schema import OptimizerConfig, ScheduleConfig
from nmt.training.schedule import learning_rate


def rate(step: int, **schedule: object) -> float:
    return learning_rate(OptimizerConfig(learning_rate=0.1), ScheduleConfig(**schedule), step)  # type: ignore[arg-type]


def test_constant_and_plateau_leave_the_rate_alone() -> None:
    assert rate(1) == rate(10**6) == rate(5, name="plateau", plateau_patience=1) == 0.1


def test_warmup_is_linear_then_flat() -> None:
    assert [rate(step, name="warmup", warmup_steps=4) for step in (1, 2, 4, 5)] == pytest.approx(
        [0.025, 0.05, 0.1, 0.1]
    )


def test_inverse_sqrt_peaks_at_the_end_of_the_warmup() -> None:
    assert rate(100, name="inverse_sqrt", warmup_steps=100) == pytest.approx(0.1)
    assert rate(400, name="inverse_sqrt", warmup_steps=100) == pytest.approx(0.05)
    assert rate(50, name="inverse_sqrt", warmup_steps=100) == pytest.approx(0.05)


def test_exponential_decay_counts_finished_updates_from_its_start_to_its_stop() -> None:
    keys = {"name": "exponential", "decay_start": 10, "decay_stop": 30, "decay_steps": 10, "decay_rate": 0.5}
    assert rate(10, **keys) == rate(11, **keys) == 0.1
    assert rate(16, **keys) == pytest.approx(0.1 * math.sqrt(0.5))
    assert rate(21, **keys) == pytest.approx(0.05)
    assert rate(31, **keys) == rate(1000, **keys) == pytest.approx(0.025)
    assert rate(30, **keys, staircase=True) == pytest.approx(0.05)


def test_other_tensorflow_decays() -> None:
    assert rate(11, name="natural_exponential", decay_steps=10, decay_rate=0.5) == pytest.approx(0.1 * math.exp(-0.5))
    assert rate(11, name="inverse_time", decay_steps=10, decay_rate=0.5) == pytest.approx(0.1 / 1.5)


def test_the_rate_never_falls_below_its_floor() -> None:
    assert rate(10**6, name="inverse_sqrt", warmup_steps=1, minimum_rate=0.02) == 0.02
