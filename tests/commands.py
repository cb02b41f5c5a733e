"""Commands as a user types them, in the test's own process or in one of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence

Command = Callable[..., tuple[int, str, str]]  # words and stdin to exit code, stdout and stderr
SECONDS = 120.0  # far more than any end takes


def in_a_session(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command whose processes a terminal would reach all at once; what it says on stderr can be read."""
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def stop_at_a_step(
    process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT, codes: Sequence[int] = (75,)
) -> None:
    """Signal a training, in a session of its own, that has told of a step; it has to end with one of the exit codes."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    os.killpg(process.pid, number)  # as a terminal does: to all of them
    assert process.wait(SECONDS) in codes, process.stderr.read()
