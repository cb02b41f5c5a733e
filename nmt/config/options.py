"""What the options of our own components may be: type, range and choices of each entry of `model.<kind>.options`.

What an option means, and its default, stand at the component's constructor; its published value in the component's YAML
file. A component of another package checks its options itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Constraints = Mapping[str, Any]  # a type, and the constraints of `nmt.config.schema.key`

_PROBABILITY: Constraints = {"type": float, "minimum": 0.0, "below": 1.0}
_SIZE: Constraints = {"type": int, "minimum": 1}

_POSITIONS: Mapping[str, Constraints] = {
    "positions": {"type": str, "choices": ("memn2n", "sinusoidal", "learned", "none")},
    "combiner": {"type": str, "choices": ("add", "multiply")},
    "num_positions": _SIZE,
    "dropout": _PROBABILITY,
}
_TRANSFORMER: Mapping[str, Constraints] = {
    "heads": _SIZE,
    "feed_forward": _SIZE,
    "dropout": _PROBABILITY,
    "dropout_attention": _PROBABILITY,
    "dropout_relu": _PROBABILITY,
}

# (kind, name of the component) -> option -> constraints
OPTIONS: Mapping[tuple[str, str], Mapping[str, Constraints]] = {
    ("encoder", "convolutional"): {
        "kernel_size": _SIZE,
        "value_units": _SIZE,
        "value_layers": _SIZE,
        "value_kernel_size": _SIZE,
        **_POSITIONS,
    },
    ("encoder", "pooling"): {"pool_size": _SIZE, **_POSITIONS},
    ("encoder", "transformer"): _TRANSFORMER,
    ("decoder", "transformer"): _TRANSFORMER,
    ("attention", "multi_head"): {"heads": _SIZE, "dropout": _PROBABILITY},
}
