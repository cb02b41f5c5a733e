"""Injected failures at named points, for tests of resumption: `faults=[kill@checkpoint:40]`.

A fault is `kill@<point>:<step>`; the process kills itself with SIGKILL when it reaches the point at that step. Points:
`slot` (in the middle of a step), `checkpoint` (data written, not yet under its name), `evaluation` (validation decoded,
nothing recorded), `recorded` (evaluation recorded, checkpoint not begun).
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence

from nmt.errors import UserError

POINTS = ("slot", "checkpoint", "evaluation", "recorded")


class Faults:
    """The faults of one process."""

    def __init__(self, specifications: Sequence[str] = ()):
        self._kills: set[tuple[str, int]] = set()
        for text in specifications:
            match = re.fullmatch(r"kill@(\w+):(\d+)", text)
            if match is None or match[1] not in POINTS:
                raise UserError(
                    f"'{text}' is not a fault", where="faults", allowed=[f"kill@{point}:<step>" for point in POINTS]
                )
            self._kills.add((match[1], int(match[2])))

    def reach(self, point: str, step: int) -> None:
        """Say that `point` of `step` is reached; does not return where a fault is set there."""
        if (point, step) in self._kills:
            os.kill(os.getpid(), signal.SIGKILL)
