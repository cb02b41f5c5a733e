"""Training throughput beside the floor of the device's matrix products, and the memory that it takes."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import numpy as np
import torch

from acceptance.device import best_rate, precisions, products_in
from acceptance.families import TRANSFORMER, recurrent, strategy_of
from acceptance.outcome import NOT_ON_CPU, Outcome
from acceptance.setting import Setting
from nmt.config.schema import RunConfig
from nmt.profiling.operations import useful_operations

VOCABULARY, BATCH = 8000, 128
_DATA = [f"tokenizer.vocab_size={VOCABULARY}", f"batch.size={BATCH}"]
_WARM_UP = 3  # steps before the first timed one


def shapes(setting: Setting) -> dict[str, list[str]]:
    """The models that are timed, as overrides: the benchmark's recurrent ones, and a Transformer of six layers."""
    if setting.tiny:
        return {"recurrent 32": recurrent(32), "Transformer": TRANSFORMER}
    large = ["scale.dim_divisor=1", *TRANSFORMER, "model.encoder.layers=6", "model.decoder.layers=6"]
    return {f"recurrent {units}": recurrent(units) for units in (128, 256, 512)} | {"Transformer 512": large}


def timed_config(setting: Setting, overrides: list[str]) -> RunConfig:
    """A shape on sentences of the built-in task, with a vocabulary and batches of real size."""
    return setting.config(*([] if setting.tiny else _DATA), *overrides)


def check_speed(setting: Setting) -> Outcome:
    """Target tokens a second of every shape and precision, and what share of the floor they are."""
    rows = []
    for shape, overrides in shapes(setting).items():
        for precision in precisions(setting):
            rows.append({"shape": shape, "precision": precision} | _measure(setting, overrides, precision))
    return Outcome(
        rows=rows,
        note=f"Vocabulary {VOCABULARY:,} a side, {BATCH} sentences a batch, deterministic=true. The floor is the time "
        "of the products that the real tokens need (forward and twice as many backward) at the best rate of a square "
        "product in that precision. fp32 is true fp32; tf32 is no setting of `nmt`, and stands here for comparison.",
    )


def _measure(setting: Setting, overrides: list[str], precision: str) -> dict[str, Any]:
    words = [*overrides, f"training.precision={'bf16' if precision == 'bf16' else 'fp32'}"]
    config = timed_config(setting, words)
    strategy = strategy_of(setting, config)
    prepared = strategy.workload.prepared
    useful = useful_operations(config, (prepared.source_tokenizer.size, prepared.target_tokenizer.size))
    rounds, steps = (5, 4) if setting.on_gpu else (2, 1)
    with products_in(precision):
        for index in range(1, _WARM_UP + 1):
            strategy.step(index)
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        speeds, rates = [], []
        for number in range(rounds):
            first = _WARM_UP + 1 + number * steps
            indices = range(first, first + steps)
            seconds = setting.seconds(partial(_train, strategy, indices))
            source, target = _lengths(strategy.workload, indices)
            speeds.append(int(target.sum()) / seconds)
            rates.append(sum(useful.of(source, target).values()) / seconds)
    return {
        "target tokens/s": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "achieved / floor": statistics.median(rates) / best_rate(setting, precision),
        "peak memory, MB": torch.cuda.max_memory_allocated() / 1e6 if setting.on_gpu else NOT_ON_CPU,
    }


def _train(strategy: Any, indices: range) -> None:
    for index in indices:
        strategy.step(index)


def _lengths(workload: Any, indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Source and target tokens, with EOS, of the sentence pairs of some steps."""
    numbers = np.concatenate([slot for index in indices for slot in workload.sampler.slots(index)])
    train = workload.prepared.train
    return train.source_lengths[numbers] + 1, train.target_lengths[numbers] + 1
