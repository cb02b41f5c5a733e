"""Processes of this machine, forked from one that has torch loaded already, so that each is there at once."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterable, Mapping
from multiprocessing.forkserver import ensure_running
from typing import Any

from distributed.launchers.choose import tls_files
from distributed.links.token import Token

PRELOADED = [
    "distributed.launchers.own_session",
    "torch",
    "distributed.agent",
    "distributed.ddp.worker",
    "distributed.parameter_server.server",
    "distributed.parameter_server.worker",
    "distributed.ring.engine_worker",
    "distributed.ring.worker",
    "distributed.ring_rotate.worker",
    "distributed.ring_tmp.worker",
]
_PR_SET_PDEATHSIG = 1


def start_fork_server(modules: Iterable[str] = ()) -> None:
    """Start the process that others are forked from, unless it runs already; it loads `modules`, too.

    What it has loaded, they need not: a second or two of each core that they would all want at once.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *modules])
    ensure_running()


class ProcessLauncher:
    """Starts agents as processes of this machine.

    Parameters
    ----------
    options: section `distribution`, with `threads`; see `distributed.strategy`. A server has one thread.
    address: of the coordinator.
    token, run: the run's.
    """

    patience = 600.0

    def __init__(self, options: Mapping[str, Any], address: str, token: Token, run: str):
        self._arguments = (address, token.reveal(), run, options["heartbeat_seconds"], tls_files(options))
        self._threads = {"worker": options["threads"], "server": 1}
        self._context = multiprocessing.get_context("forkserver")
        self._processes: dict[str, Any] = {}

    def start(self, role: str, instead_of: str = "") -> str:
        """Start a process that wants to be a `worker` or a `server`; returns its name."""
        lost = self._processes.get(instead_of)
        if lost is not None and lost.is_alive():  # it stands still, or hangs
            lost.kill()
        start_fork_server()
        name = f"agent {len(self._processes)} ({role})"
        process = self._context.Process(
            target=_serve, args=(*self._arguments, role, self._threads[role], name), daemon=True, name=name
        )
        process.start()
        self._processes[name] = process
        return name

    def ended(self) -> dict[str, str]:
        """By name, how each that has ended did."""
        return {
            name: f"ended with exit code {process.exitcode}"
            for name, process in self._processes.items()
            if process.exitcode is not None
        }

    def close(self, seconds: float = 5.0) -> None:
        """Wait for all of them to end, and kill those that do not."""
        for process in self._processes.values():
            process.join(seconds if process.is_alive() else 0)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes.clear()


def _serve(
    address: str,
    token: str,
    run: str,
    beat_seconds: float,
    tls: tuple[str, str],
    role: str,
    threads: int,
    name: str,
) -> None:
    # Killed with the process that forked it, which ends with the coordinator: also where it stands still.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    started_by = multiprocessing.parent_process()
    if started_by is None or not started_by.is_alive():
        return  # it ended before this was said
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the coordinator decides
    import torch

    from distributed.agent import serve
    from distributed.errors import DistributedError

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with contextlib.suppress(DistributedError):  # the coordinator knows more of it, and tells
        serve(address, Token(token.encode()), run, role, beat_seconds, name, patience=0.0, tls=tls)
