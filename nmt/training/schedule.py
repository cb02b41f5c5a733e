"""Learning-rate schedules: pure functions of the step, named by `schedule.name`.

Each maps (ScheduleConfig, step counted from 1) to the factor by which `optimizer.learning_rate` is multiplied. What a
plateau schedule learns from validation is kept by the trainer and multiplied on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nmt import registry
from nmt.config.schema import OptimizerConfig, ScheduleConfig


def learning_rate(optimizer: OptimizerConfig, schedule: ScheduleConfig, step: int) -> float:
    """The scheduled learning rate of `step`, never below `schedule.minimum_rate`."""
    factor = registry.lookup("schedule", schedule.name, "schedule.name")(schedule, step)
    return max(schedule.minimum_rate, optimizer.learning_rate * factor)


def constant(schedule: ScheduleConfig, step: int) -> float:
    """Always 1."""
    return 1.0


def warmup(schedule: ScheduleConfig, step: int) -> float:
    """Linear from 0 to 1 over `warmup_steps`, then 1."""
    return min(1.0, step / schedule.warmup_steps)


def inverse_sqrt(schedule: ScheduleConfig, step: int) -> float:
    """Linear to 1 at `warmup_steps`, then its inverse square root (Vaswani et al. 2017, section 5.3; peak at 1)."""
    return min(step / schedule.warmup_steps, math.sqrt(schedule.warmup_steps / step))


def exponential(schedule: ScheduleConfig, step: int) -> float:
    """TensorFlow's exponential_decay: rate^(t / decay_steps), t the steps since `decay_start`."""
    return _after_start(schedule, step, lambda t: schedule.decay_rate**t)


def natural_exponential(schedule: ScheduleConfig, step: int) -> float:
    """TensorFlow's natural_exp_decay: exp(-rate t / decay_steps)."""
    return _after_start(schedule, step, lambda t: math.exp(-schedule.decay_rate * t))


def inverse_time(schedule: ScheduleConfig, step: int) -> float:
    """TensorFlow's inverse_time_decay: 1 / (1 + rate t / decay_steps)."""
    return _after_start(schedule, step, lambda t: 1.0 / (1.0 + schedule.decay_rate * t))


def _after_start(schedule: ScheduleConfig, step: int, decay: Callable[[float], float]) -> float:
    # TensorFlow counts finished updates, so the first update sees global step 0.
    finished = step - 1
    if finished < schedule.decay_start:
        return 1.0
    if schedule.decay_stop:
        finished = min(finished, schedule.decay_stop)
    periods = (finished - schedule.decay_start) / schedule.decay_steps
    return decay(math.floor(periods) if schedule.staircase else periods)
