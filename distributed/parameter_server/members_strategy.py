"""What strategies have in common whose processes are members that a coordinator looks after."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from distributed.coordinating import CoordinatingStrategy
from distributed.errors import DistributedError
from distributed.parameter_server.state_members import StateMembers

Coordinating = TypeVar("Coordinating", bound=StateMembers[Any])


class MembersStrategy(CoordinatingStrategy, Generic[Coordinating]):
    """Its members may be lost and may come; the coordinator, a thread of this process, goes on with those there are."""

    where = "the parameter server"
    """What errors are said to concern."""

    def __init__(self, options: Mapping[str, Any]):
        super().__init__(options)
        self._coordinator: Coordinating | None = None

    def synchronize(self) -> None:
        """Wait until all that was begun is applied, and no change of members is under way."""
        if self._begun:
            self._running().wait_until_rest(self._last)

    def journals(self) -> Mapping[str, bytes]:
        """Times of every process."""
        return self._running().journals()

    def report(self) -> Mapping[str, Any]:
        """What `RunFigures.of` makes of all processes' reports, losses and recoveries."""
        found = dict(self._running().report())
        return self._figures.of(found.pop("processes")) | found

    def _running(self) -> Coordinating:
        if self._coordinator is None:
            raise DistributedError("is not running", where=self.where)
        return self._coordinator

    def _hang_up(self, closing: ExitStack) -> None:
        if self._coordinator is not None:
            closing.callback(self._coordinator.close)
        self._coordinator = None
