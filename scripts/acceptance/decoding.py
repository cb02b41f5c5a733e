"""Beam search on the device: its outputs beside a CPU's, what the batch size changes, and its speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from acceptance.outcome import NOT_ON_CPU, Outcome
from acceptance.setting import Setting
from acceptance.training import BF16, checkpoint_of, trained
from nmt.config.schema import SearchConfig
from nmt.data.prepare import prepare
from nmt.evaluation.decode import decode
from nmt.training.checkpoint import load_model
from nmt.training.device import prepare_device
from nmt.training.workload import precision_context

LEAST_EQUAL = 0.98  # share of sentences; where two hypotheses are nearly as likely, rounding decides
Outputs = list[tuple[int, ...]]


def check_beam(setting: Setting) -> Outcome:
    """The trained model's outputs on the device are a CPU's; other batch sizes and beams are reported."""
    config = setting.config()
    prepare_device(config)
    path = checkpoint_of(trained(setting, "fp32"))
    sentences = prepare(config).test.source[: setting.size(500, 16)]
    search = replace(config.search, beam=5, batch_size=64)
    model, on_cpu = (load_model(path, device).model for device in (setting.device, "cpu"))
    there = _outputs(model, sentences, search, setting.device)
    here = _outputs(on_cpu, sentences, search, "cpu")
    few = sentences[: setting.size(100, 8)]
    others = {
        f"outputs of batches of {size} that are those of batches of 64": _equal(
            _outputs(model, few, replace(search, batch_size=size), setting.device), there
        )
        for size in (7, 1)
    }
    equal = _equal(there, here)
    return Outcome(
        demands={f"at least {LEAST_EQUAL:g} of the outputs are a CPU's, token by token": equal >= LEAST_EQUAL},
        figures={"sentences": len(sentences), "outputs that are a CPU's": equal, **others},
    )


def check_beam_speed(setting: Setting) -> Outcome:
    """Sentences a second of the trained models, and the memory that decoding takes."""
    rows: list[dict[str, Any]] = []
    for precision, overrides in (("fp32", ()), ("bf16", (BF16,))):
        config = setting.config(*overrides)
        prepare_device(config)
        sentences = prepare(config).test.source[: setting.size(500, 16)]
        model = load_model(checkpoint_of(trained(setting, precision, *overrides)), setting.device).model
        for beam in (1, 10):
            for batch_size in (64, 256)[: setting.size(2, 1)]:
                search = replace(config.search, beam=beam, batch_size=batch_size)
                rows.append(
                    {"precision": precision, "beam": beam, "batch": batch_size}
                    | _speed(setting, config, model, sentences, search)
                )
    return Outcome(rows=rows, note="The model of the built-in task, 128 units; warmed up once, then the best of two.")


def _speed(setting: Setting, config: Any, model: Any, sentences: Sequence[np.ndarray], search: SearchConfig) -> Any:
    with precision_context(config, setting.device):
        _outputs(model, sentences[:64], search, setting.device)
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        found: list[Outputs] = []
        seconds = min(
            setting.seconds(lambda: found.append(_outputs(model, sentences, search, setting.device))) for _ in range(2)
        )
    return {
        "sentences/s": len(sentences) / seconds,
        "output tokens/s": sum(map(len, found[0])) / seconds,
        "peak memory, MB": torch.cuda.max_memory_allocated() / 1e6 if setting.on_gpu else NOT_ON_CPU,
    }


def _outputs(model: Any, sentences: Sequence[np.ndarray], search: SearchConfig, device: str) -> Outputs:
    return [found[0].tokens for found in decode(model, sentences, search, device)]


def _equal(mine: Outputs, theirs: Outputs) -> float:
    """Share of sentences with equal outputs; the first ones, where one list is shorter."""
    pairs = list(zip(mine, theirs, strict=False))
    return sum(one == other for one, other in pairs) / len(pairs)
