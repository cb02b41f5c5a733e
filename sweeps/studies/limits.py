"""Limits that the kernel keeps: the memory of a process, and networks of hosts. It takes the right to set them.

Memory is limited by a control group, of either version; who outgrows it is killed by the kernel. Hosts are network
namespaces on a bridge, each with one cable to it whose rate is limited both ways (`tbf`). Where a machine does not let
us, `refusal_of_memory` and `refusal_of_hosts` say why.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NETWORK = "10.213.9"
CLONE_NEWNET = 0x40000000
BURST, LATENCY = "256kb", "50ms"  # of a cable: bytes that may go at once, and how long what is too much may wait


class MemoryGroup:
    """A control group with a limit of memory. Raises OSError where it cannot be made.

    name: a file name that no other group has; limit: bytes.
    """

    def __init__(self, name: str, limit: int):
        first = CGROUPS / "memory"
        self._is_second = not first.is_dir()
        self._path = (CGROUPS if self._is_second else first) / name
        self._path.mkdir()
        try:
            self._write("memory.max" if self._is_second else "memory.limit_in_bytes", limit)
            with suppress(OSError):  # a kernel without swap has no such file
                self._write("memory.swap.max" if self._is_second else "memory.memsw.limit_in_bytes", limit)
        except OSError:
            self.close()
            raise

    def _write(self, name: str, value: int) -> None:
        (self._path / name).write_text(str(value))

    def enter(self) -> None:
        """Put the calling process into the group; what it had before counts elsewhere."""
        self._write("cgroup.procs", os.getpid())

    @property
    def peak_bytes(self) -> int:
        """The most that the group held; 0 where the kernel does not say."""
        try:
            return int((self._path / ("memory.peak" if self._is_second else "memory.max_usage_in_bytes")).read_text())
        except OSError:
            return 0

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for it."""
        with suppress(OSError):
            lines = (self._path / ("memory.events" if self._is_second else "memory.oom_control")).read_text()
            return sum(int(line.split()[1]) for line in lines.splitlines() if line.startswith("oom_kill "))
        return 0

    def close(self) -> None:
        """Remove the group; its processes have ended."""
        with suppress(OSError):
            self._path.rmdir()


def refusal_of_memory() -> str:
    """Why memory cannot be limited here, as a clause; empty where it can."""
    try:
        group = MemoryGroup(f"nmt-try-{os.getpid()}", 1 << 30)
    except OSError as error:
        return f"this machine refuses control groups of memory: {error.strerror}"
    group.close()
    return ""


def refusal_of_hosts() -> str:
    """Why hosts with limited cables cannot be made here, as a clause; empty where they can."""
    script = (
        "ip link add switch type bridge && ip link add cable type veth peer name wire && "
        f"tc qdisc add dev cable root tbf rate 1mbit burst {BURST} latency {LATENCY}"
    )
    try:
        tried = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True)
    except OSError as error:
        return f"this machine has no {error.filename}"
    said = tried.stderr.strip().splitlines()
    why = said[-1] if said else "no reason given"
    return f"this machine refuses network namespaces or tbf: {why}" if tried.returncode else ""


def leave_network() -> None:
    """Give the calling process a network of its own, with nothing in it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def address_of(number: int) -> str:
    """Of host `number`, from 1."""
    return f"{NETWORK}.{number}"


def lay_switch(process: int) -> None:
    """A bridge in a process's network."""
    _in(process, "ip link add switch type bridge")
    _in(process, "ip link set switch up")


def lay_cable(switch: int, process: int, number: int, mbit: float) -> None:
    """A cable from the switch to a process's network, which is then host `number`; both ends send at `mbit`."""
    _in(switch, f"ip link add port{number} type veth peer name wire netns {process}")
    _in(switch, f"ip link set port{number} master switch up")
    _in(process, f"ip address add {address_of(number)}/24 dev wire")
    _in(process, "ip link set wire up")
    _in(process, "ip link set lo up")
    for where, device in ((switch, f"port{number}"), (process, "wire")):
        _in(where, f"tc qdisc add dev {device} root tbf rate {mbit:g}mbit burst {BURST} latency {LATENCY}")


def _in(process: int, command: str) -> None:
    subprocess.run(["nsenter", "-t", str(process), "-n", *command.split()], check=True, capture_output=True)
