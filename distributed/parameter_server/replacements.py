"""Processes that were asked for and are not ready yet: what becomes of a lost worker's place."""

from __future__ import annotations

import time
from collections.abc import Callable

from distributed.launchers.choose import Launcher

VAIN_REPLACEMENTS = 3  # in a row that ended before they were ready, before no other is started


class Replacements:
    """Asks a launcher for processes, and notices which of them never come.

    A process that dies before it has connected is nobody's link; only who started it can tell, and not even that one
    where a cluster has no room for it.

    Parameters
    ----------
    launcher: starts them.
    now: a clock.
    """

    def __init__(self, launcher: Launcher, now: Callable[[], float] = time.monotonic):
        self._launcher, self._now = launcher, now
        self._since: dict[str, float] = {}  # by name, those who are on their way
        self.in_vain = 0
        """How many in a row have ended before they were ready."""

    @property
    def patience(self) -> float:
        """Seconds that a process may take to be ready."""
        return self._launcher.patience

    @property
    def pending(self) -> bool:
        """Whether one is on its way whose end would be noticed."""
        return bool(self._since)

    @property
    def given_up(self) -> bool:
        """Whether so many were in vain that another would be, too."""
        return self.in_vain >= VAIN_REPLACEMENTS

    def start(self, role: str, instead_of: str = "") -> None:
        """Have one started; see `Launcher.start`."""
        name = self._launcher.start(role, instead_of)
        if name:
            self._since[name] = self._now()

    def came(self, name: str) -> None:
        """One is ready."""
        self._since.pop(name, None)
        self.in_vain = 0

    def went(self, name: str) -> bool:
        """One has connected and ended before it was ready; False where that is known already."""
        if name and self._since.pop(name, None) is None:
            return False
        self.in_vain += 1
        return True

    def failed(self) -> dict[str, str]:
        """By name, what became of those that have ended or stayed away since the last call: each is in vain."""
        if not self._since:
            return {}
        now, ended = self._now(), self._launcher.ended()
        found = {name: ended[name] for name in self._since if name in ended}
        for name, since in self._since.items():
            if name not in found and now - since > self.patience:
                found[name] = f"has not come for {self.patience:g} s"
        for name in found:
            del self._since[name]
        self.in_vain += len(found)
        return found
