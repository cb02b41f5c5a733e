"""What a tracking store's errors mean, in one line: what is wrong and what to do about it."""

from __future__ import annotations

import re

from nmt.errors import UserError
from nmt.passwords import without_password
from sweeps.tracking.store import sqlite_path

_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+)")
ADVICE = (
    (r"password authentication failed|no password supplied", "PGPASSWORD or ~/.pgpass may hold the password"),
    (r"lock timeout", "another process is creating its tables: try again"),
    (r'database "[^"]*" does not exist', "create it first: `createdb` does, or CREATE DATABASE"),
    (
        r"error code 40[13]\b",
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, say who you are",
    ),
    (
        r"refused|timed? ?out|resolve|not known|unreachable|No such file|starting up|shutting down",
        "is the server running, and the address right?",
    ),
)
PACKAGES = {
    "psycopg": "pip install '.[postgres]'",
    "psycopg2": "write postgresql+psycopg:// and pip install '.[postgres]', or pip install psycopg2-binary",
    "MySQLdb": "pip install mysqlclient, or write mysql+pymysql:// and pip install pymysql",
}
LATER_FILE = "it holds nothing that the runs do not: remove {path} and try again"


def store_error(error: BaseException, uri: str) -> UserError:
    """The error of a store as one for the person at the keyboard."""
    shown, database = without_password(uri), sqlite_path(uri)
    missing = _missing_package(error)
    if missing:
        return UserError(
            f"needs the Python package {missing}", where=shown, hint=PACKAGES.get(missing, f"pip install {missing}")
        )
    why = reason(error)
    schema = _SCHEMA.search(why)
    if schema:
        return _schema_error(schema.group(1), uri)
    hints = [hint for pattern, hint in ADVICE if re.search(pattern, why, re.IGNORECASE)]
    hint = LATER_FILE.format(path=database) if database else next(iter(hints), None)
    return UserError(f"cannot be used: {why}", where=shown, hint=hint)


def reason(error: BaseException) -> str:
    """Why a store failed, in one line: what lies at the bottom of the chain of errors, which MLflow wraps at length."""
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
    text = getattr(error, "strerror", None) or str(error).strip()
    first, *rest = [line.strip() for line in text.splitlines()] or [type(error).__name__]
    if first.endswith(":") and rest:  # "all attempts failed:", and then one line for each
        first = f"{first} {rest[-1].removeprefix('- ')}"
    return without_password(first)


def _missing_package(error: BaseException | None) -> str:
    """Top-level name of the package whose import failed somewhere in the chain; empty where none did."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return ""


def _schema_error(found: str, uri: str) -> UserError:
    """A database of another MLflow: `found` is the version of its tables, which a later MLflow's scripts know."""
    import mlflow

    shown, database = without_password(uri), sqlite_path(uri)
    if _is_known(found):
        upgrade = f"`mlflow db upgrade {shown}` does, after a backup"
        return UserError(
            f"has tables of an older MLflow (version {found}), which must be upgraded", where=shown, hint=upgrade
        )
    elsewhere = f"move {database} away and `nmt sync` makes it anew" if database else "name another tracking.uri"
    return UserError(
        f"has tables of a newer MLflow (version {found}) than this {mlflow.__version__}",
        where=shown,
        hint=f"update mlflow, or {elsewhere}",
    )


def _is_known(revision: str) -> bool:
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    try:
        return ScriptDirectory.from_config(_get_alembic_config("")).get_revision(revision) is not None
    except CommandError:
        return False
