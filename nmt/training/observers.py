"""Who watches a run: progress on a console, a tracker, nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nmt.config.schema import RunConfig
from nmt.training.state import RunState
from nmt.training.tracker import Tracker

Record = dict[str, Any]


class Observer(Protocol):
    """Somebody who watches a run. Called between steps, outside the training clock."""

    def working(self, stage: str, done: int, total: int) -> None:
        """Something beside training is under way: preparing data, decoding the test split."""

    def started(self, state: RunState, config: RunConfig) -> None:
        """Training begins, or goes on from `state.step`."""

    def trained(self, step: int, record: Record | None) -> None:
        """A step is done; `record` is its line of metrics.jsonl where one was written."""

    def evaluated(self, record: Record) -> None:
        """An evaluation is recorded and its checkpoint written."""

    def ended(self) -> None:
        """Training is over or interrupted; also called after an error."""


class SilentObserver:
    """Shows nothing: for runs whose progress somebody else reads from status.json."""

    def working(self, stage: str, done: int, total: int) -> None:
        """Do nothing."""

    def started(self, state: RunState, config: RunConfig) -> None:
        """Do nothing."""

    def trained(self, step: int, record: Record | None) -> None:
        """Do nothing."""

    def evaluated(self, record: Record) -> None:
        """Do nothing."""

    def ended(self) -> None:
        """Do nothing."""


class TrackerObserver(SilentObserver):
    """Lets a tracker look at the run directory after each evaluation."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def evaluated(self, record: Record) -> None:
        """Mirror what was written."""
        self._tracker.poll()


class Observers:
    """Several observers as one, told in order."""

    def __init__(self, observers: Sequence[Observer]):
        self._observers = observers

    def working(self, stage: str, done: int, total: int) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.working(stage, done, total)

    def started(self, state: RunState, config: RunConfig) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.started(state, config)

    def trained(self, step: int, record: Record | None) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.trained(step, record)

    def evaluated(self, record: Record) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.evaluated(record)

    def ended(self) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.ended()
