"""What strategies have in common whose steps other processes compute, while this one coordinates them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from distributed.arithmetic import FlatParameters, norm
from distributed.launchers.choose import Launcher, prepare
from distributed.optimizers import build_optimizer
from distributed.run_figures import RunFigures
from distributed.state import from_state, to_state
from distributed.strategy import Probe, StepStats, WorkloadSpec

AHEAD = 4  # steps that may be begun before the trainer asks for them


class CoordinatingStrategy(ABC):
    """A model here, for evaluation and checkpoints, and its training elsewhere.

    The newest state is here until the processes have begun with it, and is fetched from them when it is asked for.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._options = options
        self._launcher: Launcher | None = None
        self._begun = False  # whether the processes have the state
        self._granted = 0  # the last step that they may begin
        self._last = 0  # the last step that was returned
        self._fresh = True  # whether this process has the parameters of `_last`
        self._updates = 0

    def _build(self, spec: WorkloadSpec) -> None:
        """Build the model here, and buffers for what processes will send."""
        prepare(self._options, [spec.module])
        self._workload = spec.build()
        self._figures = RunFigures(self._workload.device)
        self._model = self._workload.build_model()
        self._flat = FlatParameters(self._model)
        self._values = self._host_values()
        rule = build_optimizer(self._workload.optimizer)
        self._moments = {slot: torch.zeros_like(self._values) for slot in rule.slots}

    def _host_values(self) -> torch.Tensor:
        """Where the parameters arrive that processes send: in the model itself."""
        return self._flat.values

    # ------------------------------------------------------------------------------------------------- steps

    def _ask_for(self, index: int, horizon: int | None, ahead: int = AHEAD) -> int | None:
        """The trainer asks for a step: up to which step processes may go from now on, if that is to be told."""
        self._figures.step_asked()
        through = max(index, min(horizon or index, index + ahead))
        few = through - self._granted < AHEAD // 2 and through != horizon  # fewer messages, unless these are the last
        if through > self._granted and (index > self._granted or not few):
            self._granted = through
            return through
        return None

    def _returned(self, index: int, finite: bool, lag: int = 0) -> None:
        """Step `index` is done; one that was not finite was not applied, and behind it none begins.

        lag: but for so many, which had been begun by then if they were granted.
        """
        self._last, self._fresh = index, False
        if not finite:
            self._granted = min(self._granted, index + lag)
        self._figures.step_returned(ahead=self._granted > index)

    def halt(self) -> int:
        """The last step that was begun."""
        return max(self._granted, self._last)

    # ------------------------------------------------------------------------------------------------- the state

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU."""
        self._pull(whole=True)
        return to_state(self._flat, self._values, self._moments, self._updates)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` returned; the processes get it with the next step."""
        self._updates = from_state(state, self._flat, self._values, self._moments)
        self._begun, self._fresh = False, True

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        """The model of this process, with the processes' parameters."""
        self._pull(whole=False)
        with torch.inference_mode():
            yield self._model

    def _pull(self, whole: bool) -> None:
        """Get what the processes have, unless it is here already. whole: the optimizer's state too."""
        if not self._begun or (self._fresh and not whole):
            return
        with torch.inference_mode():
            self._fetch(whole)
        self._fresh = True

    @abstractmethod
    def _fetch(self, whole: bool) -> None:
        """Write the parameters after `_last` into `_values`; with `whole` the rest of the state to where it is kept."""

    # ------------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """Stop every process."""
        with ExitStack() as closing:  # the processes whatever becomes of their links
            if self._launcher is not None:
                closing.callback(self._launcher.close)
            self._launcher = None
            self._hang_up(closing)

    @abstractmethod
    def _hang_up(self, closing: ExitStack) -> None:
        """Have the links to the processes closed; safe to call twice."""


def step_stats(
    index: int,
    parts: Collection[Mapping[str, Any]],
    tokens: int,
    gradient_norm: float,
    rate: float,
    probe: Probe | None,
) -> StepStats:
    """What processes have said of the parts of a step, together.

    parts: each with the `losses` of its slots (sums over tokens) and its `source_tokens`.
    tokens: of the whole step, in the target language.
    """
    return StepStats(
        index=index,
        loss=math.fsum(loss for part in parts for loss in part["losses"]) / tokens,
        target_tokens=tokens,
        source_tokens=sum(part["source_tokens"] for part in parts),
        gradient_norm=gradient_norm,
        learning_rate=rate,
        probe=probe,
    )


def inner_norms(parts: Collection[Mapping[str, Any]]) -> dict[str, float]:
    """The norms of what slots were probed for (`Slot.inner_square_sums`): each part says the sums of its own."""
    sums: dict[str, list[float]] = {}
    for part in parts:
        for name, own in part["inner"].items():
            sums.setdefault(name, []).extend(own)
    return {name: norm(own) for name, own in sums.items()}
