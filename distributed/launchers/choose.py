"""Who starts a run's processes, and where they find its coordinator: the one place that reads `distribution.launcher`.

A launcher is chosen before the coordinator listens, because it decides which address others can reach, and built
afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from distributed.errors import DistributedError
from distributed.links.token import Token

LOOPBACK = "127.0.0.1"


class Launcher(Protocol):
    """Starts processes that find the coordinator by themselves (`distributed.agent.serve`)."""

    patience: float
    """Seconds that it may take until those that were asked for first are there."""

    def start(self, role: str, instead_of: str = "") -> str:
        """Have one started that wants to be a `worker` or a `server`; returns at once.

        instead_of: the name of the lost one whose place it takes, as it gave it (`distributed.agent.serve`). If it is
            still there, it is killed.

        Returns the name that the new one will give; empty where somebody else names it, or none was started.
        """

    def ended(self) -> Mapping[str, str]:
        """By name, how each process that has ended did (`ended with exit code 1`), as far as that is known here."""

    def close(self) -> None:
        """Wait, within bounds, for all of them to end; the coordinator has closed their links."""


def process_counts(options: Mapping[str, Any]) -> dict[str, int]:
    """How many processes of each role a run begins with, beside its coordinator."""
    name = options["name"]
    return {
        "worker": options["nodes"] * options["rings"] if name == "ring_tmp" else options["workers"],
        "server": options["servers"] if name == "parameter_server" else 0,
    }


def who_starts(options: Mapping[str, Any]) -> str:
    """`processes`, `ray` or `external`: as `distribution.launcher` says, or as the surroundings do."""
    name = str(options["launcher"])
    if name != "auto":
        return name
    if "ray" not in sys.modules:  # who is in a trial has loaded it
        return "processes"
    from distributed.launchers.ray_actors import has_bundles

    return "ray" if has_bundles() else "processes"


def where_to_listen(options: Mapping[str, Any]) -> tuple[str, int]:
    """The address at which this process listens, and the port for those who come (0: any).

    `distribution.bind=auto` is the loopback, or in a Ray trial this node's address as the cluster knows it.
    Raises DistributedError for what is no address.
    """
    bind = str(options["bind"])
    if bind == "auto" and who_starts(options) == "ray":
        from distributed.launchers.ray_actors import node_address

        return node_address(), 0
    if bind == "auto":
        return LOOPBACK, 0
    host, colon, port = bind.rpartition(":")
    if not colon or bind.endswith("]") or (":" in host and not bind.startswith("[")):  # an IPv6 address has colons, too
        return bind.removeprefix("[").removesuffix("]"), 0
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise DistributedError(
            f"'{bind}' is no address", where="distribution.bind", allowed=["auto", "ADDRESS", "ADDRESS:PORT"]
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def run_token(options: Mapping[str, Any]) -> Token:
    """The secret of a run's processes: a new one, but where somebody else starts them and has set one."""
    if who_starts(options) == "external":
        from distributed.launchers.external import token_of_environment

        return token_of_environment() or Token.generate()
    return Token.generate()


def prepare(options: Mapping[str, Any], modules: Iterable[str] = ()) -> None:
    """Begin with what takes long and needs no coordinator yet, while this process goes on.

    modules: what the processes will import, beside what all of them do.
    """
    if who_starts(options) == "processes":
        from distributed.launchers.processes import start_fork_server

        start_fork_server(modules)


def build_launcher(options: Mapping[str, Any], address: str, token: Token, run: str) -> Launcher:
    """The launcher of a run whose coordinator listens at `address`.

    Raises DistributedError where it cannot work here.
    """
    name = who_starts(options)
    if name == "ray":
        from distributed.launchers.ray_actors import RayLauncher

        return RayLauncher(options, address, token, run)
    if name == "external":
        from distributed.launchers.external import ExternalLauncher

        return ExternalLauncher(options, address, token, run)
    from distributed.launchers.processes import ProcessLauncher

    return ProcessLauncher(options, address, token, run)


def tls_files(options: Mapping[str, Any]) -> tuple[str, str]:
    """The files of the run's certificate and of its key, where its links use TLS, else empty."""
    return str(options["tls_certificate"]), str(options["tls_key"])
