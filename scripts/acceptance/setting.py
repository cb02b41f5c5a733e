"""Where the checks run, how large they are, and the configurations that they share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nmt.config import compose

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
TASK = [
    "data=toy_translation",
    "tokenizer=toy_words",
    "scale=local",
    "experiment=t5_add_512",
    "deterministic=true",
    "tracking=none",
    "seed=1",
]
_TINY = [
    "scale=smoke",
    "data.options={train_size: 200, validation_size: 8, test_size: 16}",
    "training.log_every_steps=1",
]


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    device: `cuda`, or `cpu` for a rehearsal, in which every check runs.
    tiny: seconds instead of minutes; models then learn nothing, and no score is demanded.
    work: a directory for runs and prepared data.
    threads: CPU threads.
    deadline: when the checks should be over, on the clock of `time.monotonic`.
    """

    device: str
    tiny: bool
    work: Path
    threads: int
    deadline: float

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to look at."""
        return self.device == "cuda"

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, a few at least."""
        return max(5.0, self.deadline - time.monotonic())

    def size(self, full: int, tiny: int) -> int:
        """A number of things to do."""
        return tiny if self.tiny else full

    def words(self, *overrides: str) -> list[str]:
        """What `nmt train` is called with for the built-in task, laid over by `overrides`."""
        places = [f"device={self.device}", f"threads={self.threads}", f"paths.cache={self.work / 'prepared'}"]
        return [*TASK, *(_TINY if self.tiny else []), *places, *overrides]

    def config(self, *overrides: str) -> RunConfig:
        """The configuration that these words make."""
        return compose(self.words(*overrides))

    def synchronize(self) -> None:
        """Wait for all that the device was asked for."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """How long `run` takes, with what it asks of the device."""
        self.synchronize()
        begin = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - begin


def without_dropout(config: Any) -> Any:
    """`config` with every dropout probability zero, in sections and in components' options.

    Masks are drawn on the device, so those of a CPU and of a GPU differ.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return dataclasses.replace(config, **without_dropout(fields))
    if isinstance(config, dict):
        return {key: 0.0 if _is_probability(key, value) else without_dropout(value) for key, value in config.items()}
    return config


def _is_probability(key: str, value: Any) -> bool:
    """Whether a key is a probability of dropping: `seeds.dropout`, a whole number, is the seed of its masks."""
    return key.startswith("dropout") and isinstance(value, float)
