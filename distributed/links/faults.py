"""Injected failures at named points: `kill@server1.apply:5`, `delay@server0.reply:7:0.5`.

`action@role+id.phase:step[:seconds]`. Phases are words of the protocol that is disturbed.

    kill     the process sends itself SIGKILL when it reaches the phase of that step
    stop     likewise SIGSTOP: it stands still until somebody sends SIGCONT
    pause    SIGSTOP, and once it stands still for `seconds` another process sends it SIGCONT
    hang     the thread that reaches it waits for ever; the others go on, signs of life too
    delay    it sleeps for `seconds`
    drop     a frame of the phase and step is numbered but never written
    corrupt  one bit of a frame of the phase and step is flipped on the wire

Each fault happens once, and only to the first process in its place (incarnation 0): otherwise whatever takes over
would fail at the same point again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from distributed.errors import DistributedError

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
FRAME_ACTIONS = ("drop", "corrupt")
TIMED = ("delay", "pause")
ACTIONS = (*SIGNALS, "hang", *TIMED, *FRAME_ACTIONS)
_FORM = re.compile(
    r"(?P<action>[a-z]+)@(?P<role>[a-z]+)(?P<id>\d+)\.(?P<phase>\w+):(?P<step>\d+)(:(?P<seconds>[\d.]+))?"
)


@dataclass(frozen=True)
class Fault:
    """One injected failure; see the module."""

    action: str
    role: str
    id: int
    phase: str
    step: int
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str, where: str = "distribution.faults") -> Fault:
        """Read `action@role+id.phase:step[:seconds]`. Raises DistributedError."""
        match = _FORM.fullmatch(text)
        seconds = _seconds(match["seconds"]) if match else None
        if match is None or match["action"] not in ACTIONS or seconds is None:
            forms = [f"{action}@<role><id>.<phase>:<step>{':<seconds>' * (action in TIMED)}" for action in ACTIONS]
            raise DistributedError(f"'{text}' is not a fault", where=where, allowed=forms)
        if (match["action"] in TIMED) != (match["seconds"] is not None):
            raise DistributedError(
                f"'{text}' must {'' if match['action'] in TIMED else 'not '}say for how many seconds",
                where=where,
                allowed=[f"{action}@<role><id>.<phase>:<step>:<seconds>" for action in TIMED],
            )
        return cls(match["action"], match["role"], int(match["id"]), match["phase"], int(match["step"]), seconds)


def _seconds(text: str | None) -> float | None:
    """Seconds of a specification, 0 where it names none, None where they are no number."""
    try:
        return float(text or 0)
    except ValueError:
        return None


class Faults:
    """The faults of one process."""

    def __init__(self, faults: Sequence[Fault] = (), role: str = "", id: int = 0, incarnation: int = 0):
        own = [fault for fault in faults if (fault.role, fault.id) == (role, id) and incarnation == 0]
        self._armed = {(fault.action in FRAME_ACTIONS, fault.phase, fault.step): fault for fault in own}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._armed)

    def reach(self, phase: str, step: int) -> None:
        """Say that this process has reached `phase` of `step`; returns late or never where a fault is set there."""
        fault = self._take(False, phase, step)
        if fault is None:
            return
        if fault.action == "delay":
            time.sleep(fault.seconds)
        elif fault.action == "hang":
            threading.Event().wait()
        else:
            if fault.action == "pause":
                _wake_later(fault.seconds)
            # To this thread: a signal to the process may reach another first, and this one would go on for a moment.
            signal.pthread_kill(threading.get_ident(), SIGNALS.get(fault.action, signal.SIGSTOP))

    def of_frame(self, phase: str, step: int) -> str | None:
        """`drop` or `corrupt` where that is to happen to a frame; asked by links as they write it."""
        fault = self._take(True, phase, step)
        return None if fault is None else fault.action

    def _take(self, of_frame: bool, phase: str, step: int) -> Fault | None:
        if not self._armed:
            return None
        with self._lock:
            return self._armed.pop((of_frame, phase, step), None)


def _wake_later(seconds: float) -> None:
    """Have a process wake this one up, once it has stood still for some seconds; it ends with this one, too."""
    here = f"/proc/{os.getpid()}"
    script = (
        f"while [ -e {here} ] && ! grep -q '^State:.T' {here}/status; do sleep 0.02; done; "
        f"sleep {seconds}; kill -CONT {os.getpid()}"
    )
    quiet = subprocess.DEVNULL
    subprocess.Popen(["sh", "-c", script], stdin=quiet, stdout=quiet, stderr=quiet)
