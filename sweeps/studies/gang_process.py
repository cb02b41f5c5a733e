"""`python -m sweeps.studies.gang_process`: the processes of one run, each under limits of its own, forked from one.

Reads what is to be run as JSON from standard input, and writes how it ended as JSON to standard output; see
`sweeps.studies.gang`. This process loads what they need and then forks them, so that the memory that counts for a
member is what it needs beyond that, and starting one takes milliseconds.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweeps.studies.limits import MemoryGroup, address_of, lay_cable, lay_switch, leave_network

PORT = 7000  # of the coordinator, on a host of its own
PAUSE = 0.05  # seconds between looks at who has ended
PRELOAD = (
    "nmt.train", "nmt.training.fit", "nmt.training.workload", "nmt.models.decoding", "nmt.models.fine_stages",
    "sacrebleu.metrics", "distributed.launch", "distributed.agent", "distributed.parameter_server.worker",
    "distributed.parameter_server.server", "distributed.ring.worker", "distributed.ring_rotate.worker",
    "distributed.ring_tmp.worker",
    "torch.fx.experimental.symbolic_shapes", "torch._refs", "torch._decomp",  # torch loads them where it infers shapes
)  # fmt: skip


def main() -> int:
    """Run the gang that standard input describes."""
    asked = json.loads(sys.stdin.read())
    for name in (*PRELOAD, *asked["modules"]):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    print(json.dumps(Gang(asked).run()))
    return 0


class Gang:
    """Processes by number: the coordinator is 0, members follow, and the switch comes last where there are hosts."""

    def __init__(self, asked: dict[str, Any]):
        self.asked, self.log = asked, Path(asked["log"])
        self.roles: list[str] = asked["roles"]
        self.mbit: float = asked["mbit"]
        self.processes: dict[int, int] = {}  # number by process
        self.ended: dict[int, int] = {}  # wait status by number
        self.groups: dict[int, MemoryGroup] = {}
        self.doors: dict[int, socket.socket] = {}  # where a process waits for its network

    def run(self) -> dict[str, Any]:
        """Start all, wait for the coordinator or for the first member that dies, and end the others."""
        try:
            if self.asked["memory"]:
                name = f"nmt-{os.getpid()}-{time.time_ns()}"  # none that a gang of long ago may have left
                self.groups = {
                    number: MemoryGroup(f"{name}-{number}", self.asked["memory"])
                    for number, role in enumerate(self.roles, start=1)
                    if role == self.asked["limited"]
                }
            self._start()
            return self._wait()
        finally:
            for process in self.processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._reap(self.processes)
            for group in self.groups.values():
                group.close()

    def _start(self) -> None:
        switch = self._fork(len(self.roles) + 1, signal.pause) if self.mbit else 0
        address = f"{address_of(1)}:{PORT}" if self.mbit else f"127.0.0.1:{_free_port()}"
        if switch:
            lay_switch(switch)
        jobs: list[Callable[[], Any]] = [lambda: self._coordinate(address)]
        jobs += [lambda role=role: self._join(address, role) for role in self.roles]  # type: ignore[misc]
        for number, job in enumerate(jobs):
            process = self._fork(number, job)
            if switch:
                lay_cable(switch, process, number + 1, self.mbit)
            self._go_on(number)

    def _fork(self, number: int, job: Callable[[], Any]) -> int:
        """Fork a process that waits until its network is there; returns its id once it has one of its own."""
        here, there = socket.socketpair()
        process = os.fork()
        if process:
            there.close()
            self.processes[process] = number
            self.doors[number] = here
            here.recv(1)
            return process
        code = 1
        try:
            here.close()
            self._enter(number)
            there.send(b"1")
            if number <= len(self.roles):
                there.recv(1)
            code = int(job() or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def _enter(self, number: int) -> None:
        """What a new process does before anything else: its log, its group, its network."""
        descriptor = os.open(self.log.with_suffix(f".{number}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if number in self.groups:
            self.groups[number].enter()
        if self.mbit:
            leave_network()

    def _go_on(self, number: int) -> None:
        self.doors[number].send(b"1")

    def _coordinate(self, address: str) -> int:
        from nmt.config import from_dict
        from nmt.train import train

        config = dict(self.asked["config"])
        config["distribution"] = config["distribution"] | {"launcher": "external", "bind": address, "link": "tcp"}
        return 0 if train(from_dict(config), timing="shared").state == "finished" else 1

    def _join(self, address: str, role: str) -> int:
        from distributed.launch import main as join

        return join([f"coordinator={address}", f"run={self.asked['run']}", f"role={role}", "threads=1"])

    def _wait(self) -> dict[str, Any]:
        limit = time.monotonic() + self.asked["seconds"]
        members = set(range(1, len(self.roles) + 1))
        while time.monotonic() < limit:
            self._reap({}, os.WNOHANG)
            lost = any(self.ended[number] for number in members & self.ended.keys())
            if self.ended.get(0) == 0:
                return self._told("trained")
            if lost or 0 in self.ended:  # a coordinator may have ended of a member's end before this is looked at
                killed = any(group.kills for group in self.groups.values())
                return self._told("killed" if killed else "failed" if 0 in self.ended else "lost")
            time.sleep(PAUSE)
        return self._told("too slow")

    def _told(self, how: str) -> dict[str, Any]:
        peaks = [group.peak_bytes for group in self.groups.values()]
        return {"ended": how, "peak_bytes": max(peaks, default=0), "statuses": {**self.ended}}

    def _reap(self, waited: dict[int, int], options: int = 0) -> None:
        """Take note of processes that have ended: of those named, or of any."""
        for process in list(waited) or [-1]:
            with suppress(ChildProcessError):
                while True:
                    found, status = os.waitpid(process, options)
                    if found:
                        self.ended[self.processes.pop(found)] = status
                    if process != -1 or not found:
                        break


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
