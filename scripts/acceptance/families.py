"""The families of models that are looked at, and strategies that train them in this process."""

from __future__ import annotations

from typing import Any

from acceptance.setting import Setting
from nmt import registry
from nmt.config.schema import RunConfig
from nmt.training.device import prepare_device
from nmt.training.workload import workload_spec

RECURRENT: list[str] = []
TRANSFORMER = ["experiment=transformer", "model.encoder.layers=2", "model.decoder.layers=2", "schedule=inverse_sqrt"]
CONVOLUTIONAL = ["experiment=convolutional", "model.decoder.layers=2"]
SMALL = {"recurrent": RECURRENT, "Transformer": TRANSFORMER, "convolutional": CONVOLUTIONAL}


def recurrent(units: int) -> list[str]:
    """The benchmark's shape: two bidirectional layers of `units` joined, two decoder layers, all of `units`."""
    half = units // 2
    return [
        "model/attention=multiplicative",
        f"model.embedding.units={units}",
        f"model.encoder.units={half}",
        "model.encoder.layers=2",
        f"model.decoder.units={units}",
        "model.decoder.layers=2",
        f"model.attention.units={units}",
    ]


def strategy_of(setting: Setting, config: RunConfig, device: str | None = None) -> Any:
    """A strategy that holds the run's model with its first parameters; `device` instead of the setting's."""
    prepare_device(config)
    strategy = registry.lookup("strategy", "single", "distribution.name")()
    strategy.start(workload_spec(config, device or setting.device))
    return strategy
