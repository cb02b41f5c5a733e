"""Where a process can be reached."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.errors import DistributedError


@dataclass(frozen=True)
class Addresses:
    """Where a listener listens.

    host, port: for TCP.
    unix: the name of its abstract Unix socket; None where it offers no shared memory.
    machine: `machine_identity()` of the listener's process.
    """

    host: str
    port: int
    unix: str | None = None
    machine: str = ""

    @property
    def shared(self) -> bool:
        """Whether this process can share memory with the listener."""
        return self.unix is not None and self.machine == machine_identity()

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a control message."""
        return {"host": self.host, "port": self.port, "unix": self.unix, "machine": self.machine}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Addresses:
        """What `as_dict` made."""
        return cls(fields["host"], fields["port"], fields["unix"], fields["machine"])

    @classmethod
    def parse(cls, text: str, where: str = "address") -> Addresses:
        """A TCP address as a person writes it: `HOST:PORT`, `[IPV6]:PORT`."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise DistributedError(f"'{text}' is no address", where=where, allowed=["HOST:PORT", "[IPV6]:PORT"])
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


def own_address(peer: Addresses) -> str:
    """The address of this host on the way to a peer: where whoever reaches the peer reaches this host, too.

    Raises DistributedError where there is no way.
    """
    try:
        family, *_, address = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # of a datagram socket: looks the route up, and sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise DistributedError(f"there is no way there: {error.strerror or error}", where=str(peer)) from None


def machine_identity() -> str:
    """What two processes have in common exactly when they can reach each other's abstract Unix sockets.

    The kernel's boot and the network namespace. Where either cannot be read, something that nobody else has.
    """
    try:
        return f"{kernel_boot()}/{Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        return f"process {os.getpid()}"


def kernel_boot() -> str:
    """What all processes under one kernel have in common, until it starts again. Raises OSError where it is hidden."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
