"""Who trains a run: one attempt at a time, held by a lock under one kernel and by a lease across machines.

Two files of a run directory say it.

`lock`   is locked (`flock`) as long as the attempt's process lives; the kernel lets go of it when the process dies.
         Among the processes of one kernel that is certain and needs no waiting; a holder that stands still (SIGSTOP,
         Ctrl-Z) can lose the run all the same, when its lease has expired.
`lease`  says which attempt is the current one and where it runs. A thread of the process touches it every
         `RENEW_SECONDS`; one that nobody has touched for `LEASE_SECONDS` has expired, and the run may be taken over.

Whoever publishes something of a run (a file under its name, a line) does so with `lease` locked, after reading there
that its attempt is still the current one. A process that was stopped, and wakes when another attempt has taken over,
therefore changes nothing. Both times of an expiry are the file system's, so the clocks of machines need not agree.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nmt.errors import UserError
from nmt.lease_file import (
    LEASE,
    Lease,
    LeaseFile,
    LeaseLostError,
    RunBusyError,
    busy,
    kernel,
    lock_patiently,
    read_lease,
    run_of,
)

LEASE_SECONDS = 60.0  # without a sign of life for so long, an attempt may be taken over
RENEW_SECONDS = 15.0  # between signs of life
POLL_SECONDS = 0.5  # between looks at another machine's lease
LOCK_SECONDS = 0.25  # a reader holds `lock` for microseconds: only a lock that stays is a holder's
LOCK = "lock"


class Attempt:
    """The right of this process to train a run, until `release` or until another attempt has taken over.

    Make one with `take`. `predecessor` is the attempt before, where it ended without a word: its process died, or was
    stopped and has lost its lease (`taken_over`).
    """

    def __init__(
        self, directory: Path, lease: Lease, lock: IO[str], predecessor: Lease | None, taken_over: bool
    ) -> None:
        self.directory, self.number = directory, lease.attempt
        self.predecessor, self.taken_over = predecessor, taken_over
        self._lease, self._lock = lease, lock
        self._over = threading.Event()
        self._lost: LeaseLostError | None = None
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()

    @classmethod
    def take(cls, directory: Path, after: int) -> Attempt:
        """Begin the next attempt at the run in `directory`; its number is above `after` and every earlier one.

        Raises RunBusyError where another process holds the run, OSError where the disk refuses.
        """
        with LeaseFile(directory, create=True) as file:
            before = file.read()
            expired = before is not None and _now(directory) - before.heartbeat > LEASE_SECONDS
            lock, taken_over = _take_lock(directory, before, expired)
            number = max(after, before.attempt if before else 0) + 1
            lease = Lease(attempt=number, pid=os.getpid(), host=socket.gethostname(), kernel=kernel())
            file.write(lease)
        predecessor = before if before is not None and not before.released else None
        return cls(directory, lease, lock, predecessor, taken_over)

    @contextmanager
    def publication(self) -> Iterator[None]:
        """Hold off every other attempt while something short is published. Raises LeaseLostError where one came first.

        A process that stops inside keeps others from claiming the run, so data is written before and only renamed here.
        """
        self.check()
        try:
            with LeaseFile(self.directory, patience=LEASE_SECONDS) as file:
                self._verify(file.read())
                yield
        except FileNotFoundError as error:
            if (self.directory / LEASE).exists():
                raise
            self._lost = LeaseLostError("its directory was removed", where=run_of(self.directory))
            raise self._lost from error

    def check(self) -> None:
        """Raise LeaseLostError where it is known that the run was taken over; asks no disk, so it costs nothing."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """End the attempt; does nothing to a run that was taken over."""
        self._over.set()
        self._heart.join(timeout=1.0)
        try:
            with LeaseFile(self.directory) as file:
                self._verify(file.read())
                file.write(dataclasses.replace(self._lease, released=True))
        except (RunBusyError, OSError):
            pass  # taken over, removed, or a disk that is away: the lock's release says the same
        self._lock.close()

    def _verify(self, current: Lease | None) -> None:
        if current is None or current.attempt != self.number or current.released:
            if current is None or current.attempt == self.number:
                became = "was given up as dead"
            else:
                became = f"the run was taken over by attempt {current.attempt}, {current.holder}"
            self._lost = LeaseLostError(
                f"attempt {self.number} was stopped for too long and {became}",
                where=run_of(self.directory),
                hint="nothing of it was written since; this process ends",
            )
            raise self._lost

    def _beat(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                with self.publication():
                    os.utime(self.directory / LEASE)  # without a time given, the file system's own
            except LeaseLostError:
                return
            except (UserError, OSError):
                continue  # a disk that is away for a moment; a publication will tell if it stays away


@contextmanager
def unheld(directory: Path) -> Iterator[Lease | None]:
    """Keep everyone from claiming a run that nobody holds, for what a bystander has to put down about it.

    Yields the newest attempt where it ended without a word, else None; leaving marks it as released. Raises
    RunBusyError where a living process holds the run.
    """
    with LeaseFile(directory, create=True) as file:
        lease = file.read()
        if is_held(directory, _now(directory)):
            raise busy(directory, lease)
        dead = lease if lease is not None and not lease.released else None
        yield dead
        if dead is not None:
            file.write(dataclasses.replace(dead, released=True))


def is_held(directory: Path, now: float | None = None) -> bool:
    """Whether a process holds the run: one that lives under this kernel, or one elsewhere with a lease not expired.

    `now` is the file system's time, where the caller needs to be certain; without it this machine's clock will do.
    """
    try:
        with (directory / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # never claimed
    lease = read_lease(directory)
    if lease is None or lease.released or lease.kernel == kernel():
        return False
    return (time.time() if now is None else now) - lease.heartbeat <= LEASE_SECONDS


def outlives_holder(directory: Path) -> bool:
    """Wait until it is known whether the process on another machine that holds a run is alive; whether it is not.

    Returns at its next sign of life, or when it lets go or its lease expires; at once for a holder under this kernel,
    whose lock has said already that it lives.
    """
    lease = read_lease(directory)
    if lease is None or lease.kernel == kernel():
        return False
    seen = lease.heartbeat
    while not lease.released and _now(directory) - seen <= LEASE_SECONDS:
        time.sleep(POLL_SECONDS)
        lease = read_lease(directory)
        if lease is None or (lease.heartbeat != seen and not lease.released):
            return False
    return True


def _take_lock(directory: Path, before: Lease | None, expired: bool) -> tuple[IO[str], bool]:
    """The lock, and whether it was taken from a living holder. Called with the mutex in hand."""
    lock = (directory / LOCK).open("a")
    if lock_patiently(lock, LOCK_SECONDS, directory / LOCK):
        if before is None or before.released or expired or before.kernel == kernel():
            return lock, False
        lock.close()  # a machine whose locks may not reach this one, with a lease that runs
        raise busy(directory, before)
    lock.close()
    if before is None or not expired or (before.kernel == kernel() and _is_at_work(before.pid)):
        raise busy(directory, before)
    # The holder stands still. Its lock stays with the old file, which has no name any more.
    fresh = directory / f".{LOCK}.{os.getpid()}.tmp"
    lock = fresh.open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    fresh.replace(directory / LOCK)
    return lock, True


def _is_at_work(pid: int) -> bool:
    """Whether a process of this kernel is known to run, only too busy for a sign of life.

    A library that computes for minutes may keep Python's other threads waiting. SIGSTOP and Ctrl-Z show in the state.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # not Linux, or a container that numbers its processes by itself
    return stat.rpartition(")")[2].split()[0] not in "Tt"


def _now(directory: Path) -> float:
    """Unix time by the clock of the file system, which also dates the signs of life."""
    probe = directory / f".now.{os.getpid()}.tmp"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()
