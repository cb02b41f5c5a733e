"""What a probed step is written down as: norms by group of parameters, and the loss of training sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distributed.strategy import StepStats
from nmt.config.schema import RunConfig
from nmt.data.prepare import EncodedText, PreparedData
from nmt.models.parameters import module_of
from nmt.training.workload import precision_context

TRAINING_LOSS = "train/teacher_forced/log_perplexity"


def probe_metrics(stats: StepStats) -> dict[str, float]:
    """The numbers of a step's line of kind `probe`; every one is a 2-norm.

    probe/gradient/<module>, probe/update/<module>: over a module's parameters (those of `parameters_by_module`), the
        gradient before clipping and the change that the update made; <module> `all` is the whole model.
    probe/state_gradient/decoder.<layer>: of the objective's gradient with respect to the layer's outputs, over all time
        steps and sentences of the step.
    """
    probe = stats.probe
    assert probe is not None
    found: dict[str, float] = {}
    for what, norms in (("gradient", probe.gradients), ("update", probe.updates)):
        found[f"probe/{what}/all"] = _joined(norms.values())
        groups: dict[str, list[float]] = {}
        for name, norm in norms.items():
            groups.setdefault(module_of(name), []).append(norm)
        found |= {f"probe/{what}/{module}": _joined(values) for module, values in groups.items()}
    return found | {f"probe/state_gradient/{name}": norm for name, norm in probe.inner.items()}


def _joined(norms: Any) -> float:
    squares = [norm * norm for norm in norms]
    return math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.nan


class TrainingSample:
    """`training.probe.sentences` training sentences, spread evenly over the corpus, the same for every seed."""

    def __init__(self, config: RunConfig, prepared: PreparedData, device: str):
        self.config, self.device = config, device
        train = prepared.train
        count = min(config.training.probe.sentences, len(train))
        numbers = np.linspace(0, len(train) - 1, count).round().astype(int).tolist()
        self._text = EncodedText([train.source[n] for n in numbers], [train.target[n] for n in numbers])

    def __call__(self, model: torch.nn.Module) -> Mapping[str, float]:
        """`train/teacher_forced/log_perplexity`: like that of the validation split, without dropout or smoothing."""
        from nmt.evaluation.decode import teacher_forced

        model_: Any = model
        with precision_context(self.config, self.device):
            return {TRAINING_LOSS: teacher_forced(model_, self._text, self.device).log_perplexity}


def training_sample(config: RunConfig, prepared: PreparedData, device: str) -> TrainingSample | None:
    """The sentences to score at evaluations; None where nothing is probed."""
    probe = config.training.probe
    return TrainingSample(config, prepared, device) if probe.every_steps and probe.sentences else None
