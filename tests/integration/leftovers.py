"""What a run has of a machine: processes, listening ports, abstract sockets and shared memory, found through /proc.

Processes can be known by a mark in their environment, which they inherit whatever session or group they are in.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARK = "NMT_TEST_MARK"
SECONDS = 30.0  # far more than any end takes
_LISTENS = "0A"


@dataclass
class Possessions:
    """What the processes with a mark have at a moment.

    ports: listening TCP sockets, by inode. names: abstract Unix sockets. memory: inodes of anonymous shared memory.
    files: what of /dev/shm they have open or mapped.
    """

    processes: set[int] = field(default_factory=set)
    ports: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    memory: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def processes(mark: str) -> set[int]:
    """Processes that live and have the mark; a zombie has no environment any more."""
    found: set[int] = set()
    if not mark:
        return found
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def possessions(of: set[int]) -> Possessions:
    """All that these processes have now."""
    found = Possessions(of)
    listening, unix = listening_ports(), abstract_names()
    for process in found.processes:
        for inode in sockets_of(process):
            if inode in listening:
                found.ports[inode] = listening[inode]
            if inode in unix:
                found.names.add(unix[inode])
        for inode, path in _mapped(process):
            if path.startswith("/memfd:seq2seq-studies"):
                found.memory.add(inode)
            elif path.startswith("/dev/shm/"):
                found.files.add(path.removesuffix(" (deleted)"))
    return found


def left_over(before: Possessions, mark: str = "") -> Possessions:
    """What is still there of what a run had, on the whole machine, and all that processes with its mark have.

    Processes are given time to end.
    """
    wait_for_ends(before.processes | processes(mark))
    left = possessions({one for one in before.processes if lives(one)} | processes(mark))
    everybody = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
    left.ports |= {inode: port for inode, port in listening_ports().items() if inode in before.ports}
    left.names |= before.names & set(abstract_names().values())
    left.memory |= before.memory & {inode for process in everybody for inode, _ in _mapped(process)}
    left.files |= {path for path in before.files if Path(path).exists()}
    return left


def lives(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_ends(found: set[int]) -> None:
    """Until these processes have ended, whoever's children they are."""
    end = time.monotonic() + SECONDS
    for process in found:
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        try:
            select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        finally:
            os.close(descriptor)


def standing_still() -> list[int]:
    """Processes that were started here and are stopped."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state = status.read_text().rpartition(")")[2].split()[0]
            if state == "T" and _ancestors(int(status.parent.name)) & {os.getpid()}:
                found.append(int(status.parent.name))
        except (OSError, ValueError):
            continue
    return found


def _ancestors(process: int) -> set[int]:
    found = set()
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(process)
    return found


def wait_for_end(process: int, seconds: float = SECONDS) -> None:
    """Until a process that need not be a child has ended."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"process {process} goes on"
    finally:
        os.close(descriptor)


def listening_ports() -> dict[str, str]:
    """All listening TCP sockets of this network namespace: the address, by inode."""
    found = {}
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[3] == _LISTENS:
                found[words[9]] = words[1]
    return found


def abstract_names() -> dict[str, str]:
    """All abstract Unix sockets: the name, by inode."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {words[6]: words[7] for words in lines if len(words) > 7 and words[7].startswith("@")}


def sockets_of(process: int) -> Iterator[str]:
    """Inodes of the sockets that it has open."""
    for path in Path(f"/proc/{process}/fd").glob("*"):
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _mapped(process: int) -> Iterator[tuple[str, str]]:
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split(maxsplit=5)
        if len(words) > 5 and words[5].startswith("/"):
            yield words[4], words[5]
