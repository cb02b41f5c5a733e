"""Control groups that give processes a share of a core, of either version; it takes the right to make them."""

from __future__ import annotations

import os
import time
from typing import Self

from sweeps.studies.limits import CGROUPS

PERIOD = 100_000  # microseconds, the kernel's own
SECONDS = 60.0


class CoreQuota:
    """A group whose processes have `share` of a core together, and come before all others until they have had it.

    So what they get does not depend on what else the machine does. Raises OSError where it cannot be made.
    """

    def __init__(self, name: str, share: float):
        first = CGROUPS / "cpu"
        is_second = not first.is_dir()
        self._path = (CGROUPS if is_second else first) / name
        quota = int(share * PERIOD)
        self._path.mkdir()
        try:
            if is_second:
                self._write("cpu.max", f"{quota} {PERIOD}")
                self._write("cpu.weight", 10_000)
            else:
                self._write("cpu.cfs_period_us", PERIOD)
                self._write("cpu.cfs_quota_us", quota)
                self._write("cpu.shares", 262_144)
        except OSError:
            self.__exit__()
            raise

    def add(self, process: int) -> None:
        """Put a process and all its threads into the group."""
        self._write("cgroup.procs", process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the group; its processes have ended, as the kernel knows a moment later."""
        limit = time.monotonic() + SECONDS
        while True:
            try:
                return self._path.rmdir()
            except OSError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.01)

    def _write(self, name: str, value: object) -> None:
        (self._path / name).write_text(str(value))


def refusal_of_quotas() -> str:
    """Why there can be no such group here, as a clause; empty where there can."""
    try:
        with CoreQuota(f"nmt-try-{os.getpid()}", 0.5):
            return ""
    except OSError as error:
        return f"this machine refuses control groups of processor time: {error.strerror}"
