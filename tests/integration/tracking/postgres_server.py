"""A PostgreSQL server of one's own for the length of a test session, on loopback, with a password."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, PASSWORD = "ann", "pa/ss:word"
PATIENCE = ("-t", "300")  # seconds for a start or a stop, on a loaded machine
SETTINGS = {  # nothing of it needs to survive
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}


def binaries() -> Path | None:
    """The folder of the server's programs: distributions keep them off the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb")
    return versions[-1].parent if versions else Path(found).resolve().parent if found else None


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int

    def uri(self, database: str, password: str = "pa%2Fss%3Aword") -> str:
        """The address of a database, with its password."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def bare_uri(self, database: str) -> str:
        """The same without the password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Carry out a statement."""
        import psycopg

        with psycopg.connect(self.uri(database), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def serving(programs: Path) -> Iterator[Server]:
    """A server with an empty cluster, stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="nmt-postgres-"))  # tmp_path may not be entered by another user
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        somebody: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("nobody")
            somebody = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        data, log = folder / "data", folder / "log"

        def call(program: str, *words: str) -> None:
            done = subprocess.run(
                [programs / program, *words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                **somebody,
            )
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log.read_text() if log.exists() else ''}"

        call("initdb", "-D", str(data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync",
             "--locale=C", "-E", "UTF8")  # fmt: skip
        options = " ".join(f"-c {name}={value or repr(value)}" for name, value in SETTINGS.items())
        with socket.socket() as taken:  # so nobody else is given the port; Linux lets the server have it too
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            # Its output goes to a file: a pipe that the server inherits would never be at its end.
            call("pg_ctl", "-D", str(data), "-l", str(log), "-w", *PATIENCE, "-o", f"-p {port} {options}", "start")
        try:
            yield Server(port)
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", *PATIENCE, "stop")
    finally:
        shutil.rmtree(folder)
