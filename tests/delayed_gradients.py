"""One process that takes each gradient one update late: what a ring of stages with `schedule=async` is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distributed.single import SingleStrategy
from distributed.strategy import WorkloadSpec


class DelayedGradients(SingleStrategy):
    """`single`, but that step t computes at the parameters after t - 2 updates (the first ones, for steps 1 and 2).

    Where a step is left out, because a number in it is not finite, the parameters stay, and count as those after it.
    """

    def start(self, spec: WorkloadSpec) -> None:
        super().start(spec)
        self._previous = self.flat.values.clone()

    def state(self) -> dict[str, Any]:
        return super().state() | {"previous_parameters": self.flat.views(self._previous.clone())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        for name, view in self.flat.views(self._previous).items():
            view.copy_(state["previous_parameters"][name])

    def _gradient(self, index: int, tokens: Sequence[int], totals: Any, probe: bool) -> Tensor:
        newest = self.flat.values.clone()
        with torch.no_grad():
            self.flat.values.copy_(self._previous)
        gradient = super()._gradient(index, tokens, totals, probe)
        with torch.no_grad():
            self.flat.values.copy_(newest)
        self._previous = newest
        return gradient
