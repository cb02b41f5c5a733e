"""What the trainer asked for of the steps that a node may begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Grants:
    """How far a node may go, with which factor of the learning rate, and which step is to be looked into."""

    def __init__(self) -> None:
        self.through = 0
        """The last step that may begin."""
        self._scales: dict[int, float] = {}
        self._probed = 0
        self._refused = 0  # the newest step that was not applied

    def take(self, message: Mapping[str, Any]) -> bool:
        """The coordinator's word `grant`; False where it was given before a step that nobody expected to fail."""
        if message["after"] < self._refused:
            return False
        self.through = message["through"]
        for step in range(message["after"] + 1, self.through + 1):
            self._scales[step] = message["rate_scale"]
        self._probed = message["probe"] or self._probed
        return True

    def refuse(self, step: int) -> None:
        """A step was not applied: what was granted beyond is not begun."""
        self.through = self._refused = step

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
