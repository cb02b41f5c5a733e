"""What a run's seed decides: streams of randomness that follow it or are held, and hyperparameters drawn from it.

Replicates of a configuration differ in their seed. With `seeds.initialisation=101` all of them have the first values of
seed 101, so that only the other streams vary. With `seeds.jitter=0.1` each replicate has its own values of the
hyperparameters in `seeds.jittered`, up to 10 % off. Either is part of the configuration (of `train_id`), and what a
replicate got is a function of configuration and seed alone: run ids stay `<train_id>/s<seed>`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from nmt.config.schema import TRAIN, RunConfig

STREAMS = ("initialisation", "data", "dropout")  # fields of `SeedsConfig`
JITTERED_SECTIONS = ("model", "optimizer", "schedule", "loss")


def stream_seed(config: RunConfig, stream: str) -> int:
    """The seed of one of `STREAMS`: where it is held, else the run's own."""
    return getattr(config.seeds, stream) or config.seed


def jitterable(config: Any, prefix: str = "") -> dict[str, tuple[float, dataclasses.Field[Any]]]:
    """Value and schema field of each key that `seeds.jittered` may name.

    These are the fractional numbers that act inside a step. Whole numbers (widths, layers, steps) are not among them:
    a tenth of them more or less may be no change at all, or another number of parameters.
    """
    found: dict[str, tuple[float, dataclasses.Field[Any]]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("role", TRAIN) != TRAIN or (not prefix and field.name not in JITTERED_SECTIONS):
            continue
        if dataclasses.is_dataclass(value):
            found |= jitterable(value, f"{prefix}{field.name}.")
        elif isinstance(value, float):
            found[f"{prefix}{field.name}"] = (value, field)
    return found


def draws(config: RunConfig) -> dict[str, float]:
    """The run's own value of each key in `seeds.jittered`, uniform within ± `seeds.jitter` of the configured one."""
    values = jitterable(config) if config.seeds.jittered else {}
    return {
        name: values[name][0] * (1 + config.seeds.jitter * (2 * _uniform(f"{config.seed}/jitter/{name}") - 1))
        for name in config.seeds.jittered
    }


def drawn(config: RunConfig) -> RunConfig:
    """The configuration that the run trains with: its draws in place of the configured values, and nothing to draw."""
    if not config.seeds.jittered:
        return config
    changed: RunConfig = config
    for name, value in draws(config).items():
        changed = _replaced(changed, name.split("."), value)
    return dataclasses.replace(changed, seeds=dataclasses.replace(config.seeds, jitter=0.0, jittered=[]))


def _replaced(config: Any, path: list[str], value: float) -> Any:
    name, *inner = path
    return dataclasses.replace(config, **{name: _replaced(getattr(config, name), inner, value) if inner else value})


def _uniform(address: str) -> float:
    """A number in [0, 1) that is a function of the address: 53 bits of its BLAKE2b digest."""
    return (int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest(), "big") >> 11) * 2.0**-53
