"""Processes that somebody else starts: on named hosts, under a scheduler, or by hand (`python -m distributed.launch`).

The coordinator says on the log what to start and waits. Whoever knows the run's token may come, then or later: a worker
that comes while the run is under way takes a share from its next step on, where the strategy can grow.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.launchers.choose import process_counts, tls_files
from distributed.links.token import ENVIRONMENT, FILE_ENVIRONMENT, Token

WAIT_SECONDS = 24 * 3600.0  # schedulers have queues
TOKEN_FILE = "link_token"

log = logging.getLogger(__name__)


def token_of_environment() -> Token | None:
    """The token that this process was started with, if any."""
    if os.environ.get(ENVIRONMENT) or os.environ.get(FILE_ENVIRONMENT):
        return Token.from_environment()
    return None


class ExternalLauncher:
    """Says what is to be started, and leaves it to others.

    Without a token in the environment, the run's is in a file of its directory as long as the run goes, readable by its
    owner alone.

    Parameters
    ----------
    options: section `distribution`; see `distributed.strategy`.
    address: of the coordinator.
    token, run: the run's.
    """

    patience = WAIT_SECONDS

    def __init__(self, options: Mapping[str, Any], address: str, token: Token, run: str):
        self._run, self._missing = run, process_counts(options)
        self._file: Path | None = None
        environment = ""
        if token_of_environment() is None:
            self._file = Path(options["run_directory"]).absolute() / TOKEN_FILE
            _write_secret(self._file, token.reveal())
            environment = f"{FILE_ENVIRONMENT}={shlex.quote(str(self._file))} "
        self._command = f"{environment}python -m distributed.launch coordinator={address} run={run}"
        for key, file in zip(("tls_certificate", "tls_key"), tls_files(options), strict=True):
            if file:
                self._command += f" {key}={shlex.quote(file)}"
        if options["heartbeat_seconds"] < 1.0:
            self._command += f" heartbeat_seconds={options['heartbeat_seconds']:g}"
        counts = [f"{count} {role}{'' if count == 1 else 's'}" for role, count in self._missing.items() if count]
        log.warning(
            "run %s waits for %s; start each of these %d processes with: %s",
            run,
            " and ".join(counts),
            sum(self._missing.values()),
            self._command,
        )

    def start(self, role: str, instead_of: str = "") -> str:
        """Say that one more is wanted, unless it is one of those that were asked for to begin with."""
        if self._missing[role]:
            self._missing[role] -= 1
            return ""
        lost = f"{role} {instead_of}" if instead_of else f"a {role}"
        log.warning("run %s: %s is lost; another may come: %s role=%s", self._run, lost, self._command, role)
        return ""

    def ended(self) -> Mapping[str, str]:
        """None that is known here: whoever started a process sees how it ends."""
        return {}

    def close(self) -> None:
        """Forget the token; the processes end with their links to the coordinator."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
