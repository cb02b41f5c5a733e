"""A configuration as MLflow's parameters: flat names and texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nmt.config.distribution_rules import numerics_of
from nmt.config.identity import flatten
from nmt.config.schema import DECODE, PLACEMENT, TRAIN, RunConfig


def parameters_of(config: RunConfig) -> dict[str, str]:
    """The keys that make a result, flattened, as text: of training and decoding, not of where it happens.

    Of the distribution what its strategy says can change a result.
    """
    distribution = flatten({"distribution": numerics_of(config)})
    return dict(_flat(config, "")) | {name: str(value) for name, value in distribution.items()}


def numeric_factors(configurations: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """Of each configuration, the parameters that are numbers everywhere and differ somewhere.

    MLflow sorts parameters as text, 1024 before 128: what is to be sorted by must be a metric.
    """
    shared = [name for name in (configurations or [{}])[0] if all(name in one for one in configurations)]
    numbers = {name: [number_of(one[name]) for one in configurations] for name in shared}
    varied = [name for name, values in numbers.items() if None not in values and len(set(values)) > 1]
    return [{name: float(numbers[name][place] or 0.0) for name in varied} for place in range(len(configurations))]


def number_of(text: str) -> float | None:
    """The finite number that a text is, None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _flat(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(config):
        role = field.metadata.get("role", TRAIN)
        if role == PLACEMENT or field.name == "checksums":
            continue
        assert role in (TRAIN, DECODE)
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        elif isinstance(value, Mapping):
            yield from ((f"{prefix}{field.name}.{name}", str(inner)) for name, inner in value.items())
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            if text:
                yield f"{prefix}{field.name}", text
