"""Whether a training step can be captured as a CUDA graph, and what a replay of it takes.

An experiment, not a feature: docs/gpu.md says what would be built on its result. One batch, with masks that stay, is
trained on as usual and by replaying the captured forward and backward pass; gradients and times are compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from acceptance.families import strategy_of
from acceptance.outcome import NOT_ON_CPU, Outcome
from acceptance.setting import Setting
from acceptance.speed import shapes, timed_config

_WARM_UP = 3  # calls before a capture: libraries are loaded and memory is found then


class KeptMasks:
    """A slot's dropout masks, each drawn when it is first asked for and then handed out again and again.

    A captured graph would draw its masks from a generator whose seed it cannot change.
    """

    def __init__(self, dropout: Any):
        self._dropout, self._masks = dropout, {}  # type: ignore[var-annotated]

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """See `nmt.models.dropout.Dropout`."""
        if name not in self._masks:
            self._masks[name] = self._dropout.mask(name, shape, p, like)
        mask: Tensor | None = self._masks[name]
        return mask

    def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
        """See `nmt.models.dropout.Dropout`."""
        mask = self.mask(name, x.shape, p, x)
        return x if mask is None else x * mask


def capture(run: Callable[[], object]) -> Callable[[], object]:
    """What repeats the GPU's work of `run` with one launch; `run` must keep its tensors where they are.

    Raises RuntimeError where `run` does what a graph cannot hold, such as waiting for the GPU.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def check_graph(setting: Setting) -> Outcome:
    """Reported for every shape: captured or why not, equal gradients, and the time of a replay."""
    rows = []
    for shape, overrides in shapes(setting).items():
        step, gradient = _forward_and_backward(setting, overrides)
        step()
        expected = gradient.clone()
        plain = _milliseconds(setting, step)
        row: dict[str, Any] = {"shape": shape, "as usual, ms": plain}
        try:
            replay = capture(step) if setting.on_gpu else step
        except RuntimeError as error:
            rows.append(row | {"captured": f"no: {str(error).splitlines()[0]}", "replayed, ms": "-", "same bits": "-"})
            continue
        gradient.fill_(float("nan"))
        replay()
        setting.synchronize()
        replayed = _milliseconds(setting, replay) if setting.on_gpu else NOT_ON_CPU
        row |= {"captured": "yes" if setting.on_gpu else NOT_ON_CPU, "replayed, ms": replayed}
        rows.append(row | {"same bits": torch.equal(gradient, expected)})
    return Outcome(rows=rows, note="Forward and backward pass of one batch without the update, fp32, dropout on.")


def _forward_and_backward(setting: Setting, overrides: list[str]) -> tuple[Callable[[], None], Tensor]:
    """A function that makes the gradient of the first step's first slot, and the buffer that it fills."""
    config = timed_config(setting, overrides)
    strategy = strategy_of(setting, config)
    workload, flat = strategy.workload, strategy.flat
    slot = workload.slot(1, 0)
    slot = replace(slot, dropout=KeptMasks(slot.dropout))
    gradient: Tensor = flat.new_buffer()
    flat.collect_into(gradient)

    def run() -> None:
        gradient.zero_()
        carried: dict[str, Tensor] = {}
        for stage in strategy.stages:
            carried = stage(slot, carried)
        (carried["loss"] / slot.target_tokens).backward()

    return run, gradient


def _milliseconds(setting: Setting, run: Callable[[], object]) -> float:
    return 1000 * statistics.median(setting.seconds(run) for _ in range(setting.size(10, 2) if setting.on_gpu else 1))
