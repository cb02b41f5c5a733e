"""The manners of a process that an executor starts: whose signals it hears, where it prints, with whom it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path


def leave_terminal(log: Path, end_within: float = 0.0) -> None:
    """Make this process the executor's: print into `log`, and stop (SIGTERM) when the executor's process dies.

    A terminal sends Ctrl-C to its whole process group. Out of the group, this process hears of it once: from its
    parent. (Twice would mean "stop at once".) With `end_within`, it is gone so many seconds after its parent, whatever
    it hangs in.
    """
    os.setpgid(0, 0)
    threading.Thread(target=_stop_with_parent, args=(end_within,), daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def cause_of_death(exitcode: int | None) -> str:
    """An exit code in words, a signal by its name."""
    if exitcode is not None and exitcode < 0:
        try:
            return f"killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"killed by signal {-exitcode}"
    return f"exit code {exitcode}"


def _stop_with_parent(end_within: float) -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    if end_within:
        threading.Event().wait(end_within)
        os._exit(1)
