"""Ray in a process of its own, so that the sweep outlives whatever becomes of the cluster.

A driver whose cluster is gone hangs in calls that no signal interrupts; after a minute Ray ends its process, with exit
code 1 and without a word to Python (measured with ray 2.60). Here the sweep's process follows the one that drives Ray:
it hears its lines, watches that the cluster's head answers, stops it, and says in one line what happened.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from nmt.errors import UserError
from sweeps.executors.children import cause_of_death, leave_terminal

POLL_SECONDS = 0.5
START_SECONDS = 120.0  # for a cluster of one's own to come up, or for a named one to answer
LOOK_SECONDS = 2.0  # between looks whether the head answers, and the longest that a look waits
LOST_SECONDS = 20.0  # without an answer for so long, the cluster is gone; Ray itself gives up after 60
STARTS = 3  # attempts to bring up a cluster of one's own
STOP_SECONDS = 30.0  # for trials to leave their runs in order, and for a cluster of one's own to go down


class ClusterLostError(UserError):
    """The machines that ran a sweep are gone. What they have written is there, and the same command goes on."""


class LateStartError(UserError):
    """Ray has given up a cluster of the sweep's own before that was up: where all cores are taken it needs longer."""


class Line:
    """What the process that drives Ray tells the sweep's."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def say(self, text: str) -> None:
        """A line for the person."""
        self._connection.send(("say", text))

    def connected(self, head: str) -> None:
        """The cluster is there; its head listens at `host:port`."""
        self._connection.send(("connected", head))


def with_ray(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    log: Path,
    on_poll: Callable[[], None],
    say: Callable[[str], None],
) -> Any:
    """`work(line, *arguments)` in a process of its own that may use Ray; its result.

    What it prints goes into `log`. Raises what it raises: a UserError as it is, anything else as a RuntimeError with
    the traceback. Raises KeyboardInterrupt after SIGINT or SIGTERM, and ClusterLostError where the cluster vanishes or
    the process dies. After a LateStartError another process tries again.
    """
    for _ in range(STARTS - 1):
        with suppress(LateStartError):
            return _with_ray(work, arguments, log, on_poll, say)
    return _with_ray(work, arguments, log, on_poll, say)


def _with_ray(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    log: Path,
    on_poll: Callable[[], None],
    say: Callable[[str], None],
) -> Any:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(work, arguments, sender, log), name="ray", daemon=True)
    with terminate_as_interrupt(), receiver:
        process.start()
        sender.close()
        try:
            return _follow(process, receiver, log, on_poll, say)
        except KeyboardInterrupt:
            process.terminate()
            process.join(STOP_SECONDS)  # a second signal ends the wait
            raise
        finally:
            process.kill()
            process.join()


def _follow(
    process: SpawnProcess, receiver: Connection, log: Path, on_poll: Callable[[], None], say: Callable[[str], None]
) -> Any:
    head: Head | None = None
    deadline = time.monotonic() + START_SECONDS
    while True:
        patience = POLL_SECONDS
        while receiver.poll(patience):
            patience = 0.0  # what has come already, and then a look around
            try:
                kind, content = receiver.recv()
            except EOFError:
                process.join()
                raise _gone(f"the process that drove Ray died ({cause_of_death(process.exitcode)})", log) from None
            if kind == "result":
                on_poll()
                return content
            if kind == "error":
                raise content
            if kind == "connected":
                head = Head(content)
            elif kind == "say":
                say(content)
        on_poll()
        if head is None and time.monotonic() > deadline:
            raise UserError(f"Ray did not come up within {START_SECONDS:.0f} s", where="executor.address")
        if head is not None and head.is_lost():
            raise _gone(f"the cluster is gone: its head at {head.address} has not answered for {LOST_SECONDS:.0f} s")


class Head:
    """The process that holds a cluster's state, seen from outside: whether it takes connections."""

    def __init__(self, address: str):
        self.address = address
        self._looked = self._seen = time.monotonic()

    def is_lost(self) -> bool:
        """Whether it has not answered for `LOST_SECONDS`; looks every `LOOK_SECONDS`."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        answered = answers(self.address, LOOK_SECONDS)
        self._looked = time.monotonic()
        if answered:
            self._seen = self._looked
        return self._looked - self._seen > LOST_SECONDS


def answers(address: str, seconds: float) -> bool:
    """Whether something takes connections at `host:port`, within so many seconds."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is, a KeyboardInterrupt, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child_main(work: Callable[..., Any], arguments: tuple[Any, ...], connection: Connection, log: Path) -> None:
    with connection, terminate_as_interrupt():
        try:
            leave_terminal(log, end_within=STOP_SECONDS)
            answer = ("result", work(Line(connection), *arguments))
        except UserError as error:
            answer = ("error", error)
        except KeyboardInterrupt:
            return
        except Exception:
            answer = ("error", RuntimeError(f"in the process that drives Ray:\n{traceback.format_exc()}"))
        connection.send(answer)
    os._exit(0)  # Ray's threads may hang in what is left of a cluster


def _gone(what: str, log: Path | None = None) -> ClusterLostError:
    last = _last_line(log) if log else ""
    return ClusterLostError(
        f"{what}{f': {last}' if last else ''}",
        where="executor=ray_tune",
        hint="nothing that was checkpointed is lost: the same command resumes, once nodes that are left let go of runs",
    )


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[-300:]
