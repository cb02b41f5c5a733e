"""A database server as tracking store (PostgreSQL above all): reached once before MLflow is let at it.

MLflow would try a server that is away for minutes, with a page of text at each try; and processes that find the same
empty database create its tables at the same time, which ends badly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

CONNECT_SECONDS = 10
LOCK_SECONDS = 60  # creating the tables takes a few
TABLES_LOCK = 0x6E6D74  # a number that means us: PostgreSQL's advisory locks have no names


def prepare(uri: str) -> None:
    """Make sure that the server answers and that its database has MLflow's tables.

    Raises ModuleNotFoundError where the driver's package is missing, and what the driver or MLflow raise otherwise.
    """
    from mlflow.tracking import MlflowClient
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    postgres = uri.startswith("postgresql")
    options: dict[str, Any] = {"connect_args": {"connect_timeout": CONNECT_SECONDS}} if postgres else {}
    engine = create_engine(uri, poolclass=NullPool, **options)
    with engine.connect() as connection:
        if postgres:
            _lock_tables(connection)
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


def _lock_tables(connection: Connection) -> None:
    """Let one process at a time look for the tables and create them; the end of the connection lets go."""
    from sqlalchemy import text

    connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
    connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": TABLES_LOCK})
