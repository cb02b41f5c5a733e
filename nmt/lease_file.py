"""The file `lease` of a run directory: which attempt is the newest, and the lock under which that changes.

It is always overwritten in place and in one piece, never renamed, so that everyone locks the same file.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nmt.errors import UserError

MUTEX_SECONDS = 5.0  # how long to wait for a lock that is held for milliseconds
LEASE = "lease"
_LENGTH = 512  # bytes of a lease, always: overwritten in one piece, it is never half old and half new


class RunBusyError(UserError):
    """Another living process is training this run."""


class LeaseLostError(RunBusyError):
    """This process was stopped for longer than its lease, and another attempt has taken the run over."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The newest attempt at a run: its number, and the process that makes it.

    `kernel` is the machine's boot id: processes with the same one see each other's locks. `released` says that the
    attempt is over and said so. `heartbeat` is the Unix time of its last sign of life.
    """

    attempt: int
    pid: int
    host: str
    kernel: str
    released: bool = False
    heartbeat: float = 0.0

    @property
    def holder(self) -> str:
        """The process in words."""
        return f"process {self.pid} on {self.host}"


def kernel() -> str:
    """What processes share that see each other's locks: the kernel, by its boot id; else the host's name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


class LeaseFile:
    """`lease`, locked for as long as the context lasts: its content can be read and replaced.

    Parameters
    ----------
    create: make directory and file where they are missing; else entering raises FileNotFoundError.
    patience: seconds to wait for the lock; afterwards entering raises RunBusyError.
    """

    def __init__(self, directory: Path, *, create: bool = False, patience: float | None = None):
        self._directory, self._create = directory, create
        self._patience = MUTEX_SECONDS if patience is None else patience

    def __enter__(self) -> LeaseFile:
        path = self._directory / LEASE
        while True:
            if self._create:
                self._directory.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if self._create else 0)
            self._file = os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)
            if not lock_patiently(self._file, self._patience, path):
                break
            if _is_at(self._file, path):
                return self
            self._file.close()  # the run was moved away or removed while this process waited
        lease = self.read()
        self._file.close()
        last = f"; {lease.holder} was the last to train it" if lease else ""
        raise RunBusyError(
            f"a process that is stopped keeps it locked{last}",
            where=run_of(self._directory),
            hint="continue or kill that process (`fuser lease` in the run directory finds it)",
        )

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> Lease | None:
        """The newest attempt; None where there was none, or the file is damaged."""
        descriptor = self._file.fileno()
        return _parse(os.pread(descriptor, _LENGTH, 0), os.fstat(descriptor).st_mtime)

    def write(self, lease: Lease) -> None:
        """Replace the newest attempt; its heartbeat is now."""
        record = {name: value for name, value in dataclasses.asdict(lease).items() if name != "heartbeat"}
        os.pwrite(self._file.fileno(), json.dumps(record).encode().ljust(_LENGTH - 1) + b"\n", 0)


def read_lease(directory: Path) -> Lease | None:
    """The newest attempt at the run in `directory`; None where there was none, or the file is damaged."""
    try:
        with (directory / LEASE).open("rb") as file:
            return _parse(file.read(), os.fstat(file.fileno()).st_mtime)
    except OSError:
        return None


def lock_patiently(file: IO[str] | IO[bytes], patience: float, path: Path) -> bool:
    """Lock a file, for itself alone, within `patience` seconds; whether that was possible.

    Raises UserError, naming `path`, where the file system has no locks.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise UserError(
                "this file system has no locks", where=str(path), hint="choose another paths.runs"
            ) from error
        else:
            return True


def busy(directory: Path, lease: Lease | None) -> RunBusyError:
    """The error that says who holds the run in `directory`."""
    return RunBusyError(
        f"{lease.holder if lease else 'another process'} is training this run",
        where=run_of(directory),
        hint="wait for it, or stop it; the same command then resumes",
    )


def run_of(directory: Path) -> str:
    """The id of the run in `directory`."""
    return f"{directory.parent.name}/{directory.name}"


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _parse(data: bytes, heartbeat: float) -> Lease | None:
    try:
        record = json.loads(data)
        return Lease(
            attempt=int(record["attempt"]),
            pid=int(record["pid"]),
            host=str(record["host"]),
            kernel=str(record["kernel"]),
            released=bool(record["released"]),
            heartbeat=heartbeat,
        )
    except (ValueError, KeyError, TypeError):
        return None  # empty, or damaged by a machine that lost its power
