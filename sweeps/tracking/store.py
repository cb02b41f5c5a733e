"""The tracking store: which one is meant, who may write to it, and how to open it.

MLflow's own rules are not enough for several processes: its default store depends on the working directory, processes
that create an sqlite store together crash in its schema migration, and nothing stops two writers from mirroring the
same run twice. So there is one absolute URI and one lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import socket
import sqlite3
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from nmt.errors import UserError
from nmt.passwords import without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"
VIEW = "nmt"  # name of the selection of columns that links to the table ask for
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # would break the live table
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own 7 would hold up a training for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
LEVELS = {
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # prints a traceback of what it raises as well
    "alembic": logging.WARNING,
    "urllib3": logging.ERROR,
}


def default_uri(runs: Path) -> str:
    """The sqlite store in a directory of runs."""
    return _sqlite_uri("sqlite", runs.resolve() / DATABASE)


def resolve_uri(uri: str, runs: Path) -> str:
    """The absolute URI meant by `tracking.uri`; empty means the sqlite store in `runs`.

    Raises UserError for a kind of store that cannot be used.
    """
    if not uri:
        return default_uri(runs)
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.partition("+")[0] not in SCHEMES:
        hint = "write postgresql://" if scheme == "postgres" else None
        raise UserError(
            f"'{without_password(uri)}' is no tracking store",
            where="tracking.uri",
            allowed=["empty: an sqlite file in paths.runs", *(f"{scheme}://..." for scheme in SCHEMES)],
            hint=hint if separator else f"for a file write tracking.uri=sqlite:///{uri}",
        )
    if scheme.startswith("sqlite"):
        return _sqlite_uri(scheme, Path(unquote(rest.removeprefix("/"))).expanduser().resolve())
    return uri


def sqlite_path(uri: str) -> Path | None:
    """The database file of an sqlite URI, None for a server."""
    scheme, _, rest = uri.partition("://")
    return Path(unquote(rest.removeprefix("/"))) if scheme.startswith("sqlite") else None


def _sqlite_uri(scheme: str, database: Path) -> str:
    # Unquoted, SQLAlchemy would cut the path at a question mark and decode what follows a percent sign.
    return f"{scheme}:///{quote(str(database))}"


def artifact_root(uri: str, runs: Path) -> Path | None:
    """Where artifacts go: beside an sqlite file, and in the directory of runs for a database server.

    None leaves it to MLflow's own server.
    """
    if uri.startswith("http"):
        return None
    return (sqlite_path(uri) or runs.resolve() / DATABASE).with_name(ARTIFACTS)


def plain_words(argv: Sequence[str]) -> list[str]:
    """The command line with config keys by their short names: other verbs say `paths.runs` and `tracking.uri`."""
    keys = {"paths.runs": "runs", "tracking.uri": "uri"}
    return [f"{keys.get(name, name)}{rest}" for name, rest in (_split(word) for word in argv)]


def _split(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    return name, equals + value


def require_mlflow() -> None:
    """Raise UserError where MLflow is not installed; imports nothing."""
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "MLflow is not installed", where="tracking=mlflow", hint="tracking=none, or `pip install mlflow`"
        )


def open_client(uri: str) -> MlflowClient:
    """A client of the store; creates a database's tables. Call it with the store's lock in hand.

    Raises whatever MLflow, or a database's driver, raises where the store cannot be reached.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        for name, level in LEVELS.items():
            logging.getLogger(name).setLevel(level)
        database = sqlite_path(uri)
        if database is not None:
            _prepare_database(database)
        elif not uri.startswith("http"):
            from sweeps.tracking.database_server import prepare

            prepare(uri)
        return MlflowClient(tracking_uri=uri)


def _prepare_database(path: Path) -> None:
    """Make sure that the database is there with all its tables, and can be opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        from mlflow.tracking import MlflowClient

        # Creating the tables takes seconds. Stopped half-way, MLflow could never open the file again.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            MlflowClient(tracking_uri=_sqlite_uri("sqlite", temporary)).search_experiments(max_results=1)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    check_database(path)


def check_database(path: Path) -> None:
    """Raise sqlite3.Error where the file is no database or cannot be opened.

    MLflow would try again for two minutes, and complain on the terminal meanwhile.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("PRAGMA user_version").fetchone()


class StoreLock:
    """The right to write to a tracking store: `flock` on a file, which its holder's death releases.

    The file stands next to an sqlite store, and in the directory of runs for a server. Its name holds nothing secret.
    """

    def __init__(self, uri: str, runs: Path):
        database = sqlite_path(uri)
        server = f".mlflow-{hashlib.sha256(without_password(uri).encode()).hexdigest()[:8]}"
        self.path = runs / f"{server}.lock" if database is None else database.with_name(f"{database.name}.lock")
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take the lock if it is free; returns whether it is held now. Raises OSError where the disk refuses."""
        if self._file is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:
            file.close()
            raise
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        self._file = file
        return True

    def holder(self) -> str:
        """Who wrote himself into the lock last, in words."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {found['pid']} on {found['host']}"
        except (OSError, ValueError, KeyError):
            return "another process"

    def release(self) -> None:
        """Let go of the lock; the file stays, since removing it would let two holders in."""
        if self._file is not None:
            self._file.close()
            self._file = None
