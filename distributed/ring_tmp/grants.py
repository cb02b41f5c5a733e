"""What the trainer asked for of the steps that a node may begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Grants:
    """How far a node may go, with which factor of the learning rate, and which step is to be looked into.

    lag: steps behind one that was not applied that may have been begun by then, see `executor.LAGS`; what was granted
        of them is done by all nodes.
    """

    def __init__(self, lag: int = 0) -> None:
        self.through = 0
        """The last step that may begin."""
        self._lag = lag
        self._scales: dict[int, float] = {}
        self._probed = 0
        self._refused: list[int] = []  # steps that were not applied, and of which no grant that has come knows

    def take(self, message: Mapping[str, Any]) -> bool:
        """The coordinator's word `grant`; False where it was given before a step that nobody expected to fail, and lets
        nothing more begin."""
        after, through = message["after"], message["through"]
        self._refused = [step for step in self._refused if step > after]
        if self._refused:
            through = min(through, self._refused[0] + self._lag)
            if through <= self.through:
                return False
        self.through = through
        for step in range(after + 1, through + 1):
            self._scales[step] = message["rate_scale"]
        self._probed = message["probe"] or self._probed
        return True

    def refuse(self, step: int) -> None:
        """A step was not applied: what was granted beyond, and cannot have been begun, is not begun."""
        self.through = min(self.through, step + self._lag)
        self._refused.append(step)

    def scale(self, step: int) -> float:
        """The factor of a step's learning rate."""
        return self._scales.get(step, 1.0)

    def is_probed(self, step: int) -> bool:
        """Whether a step is to be looked into."""
        return step == self._probed

    def forget(self, step: int) -> None:
        """A step is applied, here and before it by all others."""
        for old in [one for one in self._scales if one < step]:
            del self._scales[old]
