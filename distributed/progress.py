"""What a thread is at, noted by itself, so that somebody else can see that it hangs.

A process in which one thread hangs goes on sending signs of life. So the threads that play its role note each piece of
work that they begin, and each wait for others, at a microsecond a note; the coordinator asks for the notes now and then
and judges them (`distributed.parameter_server.watchdog`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

DEBUGGERS = ("bdb", "pdb", "_pydevd")
"""How the modules begin whose code a thread runs while somebody looks at it."""

FRAMES_SHOWN = 4


class Progress:
    """The notes of one thread, which alone writes them; any thread may ask for a `pulse`.

    name: which of its process's threads it is.
    """

    def __init__(self, name: str):
        self.name = name
        self._what, self._step, self._works = "nothing", 0, False
        self._moves, self._longest = 0, 0.0
        self._finished: dict[str, int] = {}  # pieces of work, by what they are called
        self._since, self._thread = time.monotonic(), 0
        self.explain: Callable[[], str] = str
        """Says more of what it waits for; called by whoever asks for a pulse, at any moment."""

    def work(self, what: str, step: int = 0) -> None:
        """A piece of work begins, and the one before is done: as long as it lasts, others may be waiting for it."""
        self._note(what, step, True)

    def wait(self, what: str, step: int = 0) -> None:
        """It waits for others: from now on they owe something, and this thread does not."""
        self._note(what, step, False)

    def pulse(self) -> dict[str, Any]:
        """Plain data: what it is at, how far it has come, and where in the code it is.

        moves: notes so far; it has not stirred if there are no more of them.
        finished: pieces of work that are done and were called the same.
        longest: seconds of the longest piece of work that is done.
        traced: whether somebody looks at it with a debugger.
        """
        frame = sys._current_frames().get(self._thread)
        return {
            "name": self.name,
            "what": self._what_exactly(),
            "works": self._works,
            "moves": self._moves,
            "finished": self._finished.get(self._what, 0),
            "longest": self._longest,
            "traced": _is_traced(frame),
            "where": " < ".join(_places(frame)),
        }

    def _what_exactly(self) -> str:
        what = f"{self._what} of step {self._step}" if self._step else self._what
        more = ""
        if not self._works:
            with contextlib.suppress(RuntimeError, LookupError):  # the thread changes what is looked at
                more = self.explain()
        return f"{what} ({more})" if more else what

    def _note(self, what: str, step: int, works: bool) -> None:
        now = time.monotonic()
        if self._works:
            self._finished[self._what] = self._finished.get(self._what, 0) + 1
            self._longest = max(self._longest, now - self._since)
        self._thread = threading.get_ident()
        self._what, self._step, self._works, self._since = what, step, works, now
        self._moves += 1


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _places(frame: FrameType | None) -> list[str]:
    """The innermost calls of a thread."""
    return [
        f"{one.f_code.co_name} ({Path(one.f_code.co_filename).name}:{one.f_lineno})"
        for one, _ in zip(_stack(frame), range(FRAMES_SHOWN), strict=False)
    ]


def _is_traced(frame: FrameType | None) -> bool:
    if any(str(one.f_globals.get("__name__", "")).startswith(DEBUGGERS) for one in _stack(frame)):
        return True
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1]) != 0  # gdb, strace
    return False
