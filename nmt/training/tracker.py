"""What a training or a sweep asks of a tracker: to look at the run directories now and then, and to finish.

A tracker mirrors run directories somewhere else; it reads them and is never part of a run. So a tracker that fails,
lags or is absent changes nothing of a result.
"""

from __future__ import annotations

from typing import Protocol


class Tracker(Protocol):
    """A view of runs that is kept up to date from their directories. Neither method raises."""

    def poll(self) -> None:
        """Mirror what the runs have written since the last call; cheap where they have written nothing."""

    def close(self) -> None:
        """Mirror the rest, with how each run ended, and let go of whatever the tracker holds."""


class NoTracker:
    """`tracking=none`: run directories only."""

    def poll(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_nothing(config: object, store: object) -> Tracker:
    """The tracker of `tracking=none`, made like any other."""
    return NoTracker()
