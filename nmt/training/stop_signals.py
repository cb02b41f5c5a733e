"""Signals that ask a training to stop."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from typing import Any


class StopSignals(AbstractContextManager["StopSignals"]):
    """SIGINT and SIGTERM ask for a stop at the next step boundary; a second one stops the process at once.

    `requested` is the name of the signal, empty until one came.
    Outside the main thread, where Python allows no handlers, it never asks for anything.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = signal.Signals(number).name
