"""Injected failures at named points, for tests of resumption: `faults=[kill@checkpoint:40]`.

A fault is `kill@<point>:<step>` or `stop@<point>:<step>`: when the process reaches the point at that step, it sends
itself SIGKILL, or SIGSTOP, after which it stands still until somebody sends SIGCONT. With `:once` behind it, an attempt
that goes on from a checkpoint is spared. Points:
`slot` (in the middle of a step), `checkpoint` (data written, not yet under its name), `evaluation` (validation decoded,
nothing recorded), `recorded` (evaluation recorded, checkpoint not begun).
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence

from nmt.errors import UserError

POINTS = ("slot", "checkpoint", "evaluation", "recorded")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Faults:
    """The faults of one process."""

    def __init__(self, specifications: Sequence[str] = ()):
        self._signals: dict[tuple[str, int], signal.Signals] = {}
        self._once: list[tuple[str, int]] = []
        for text in specifications:
            match = re.fullmatch(r"(\w+)@(\w+):(\d+)(:once)?", text)
            if match is None or match[1] not in SIGNALS or match[2] not in POINTS:
                allowed = [f"{name}@{point}:<step>[:once]" for name in SIGNALS for point in POINTS]
                raise UserError(f"'{text}' is not a fault", where="faults", allowed=allowed)
            place = (match[2], int(match[3]))
            self._signals[place] = SIGNALS[match[1]]
            self._once += [place] if match[4] else []

    def resumed(self) -> None:
        """This attempt goes on from a checkpoint: what was to happen once does not."""
        for place in self._once:
            self._signals.pop(place, None)

    def reach(self, point: str, step: int) -> None:
        """Say that `point` of `step` is reached; returns late or never where a fault is set there."""
        if (point, step) in self._signals:
            # To this thread: a signal to the process may reach another first, and this one would go on for a moment.
            signal.pthread_kill(threading.get_ident(), self._signals[point, step])
