"""Passwords in addresses: a person may type one, and nothing that is written or printed repeats it."""

from __future__ import annotations

import re
from typing import Any

# As SQLAlchemy reads a database's address, in which a password may hold anything but `@`; in other addresses the
# part before the host holds no slash either.
_DATABASE = re.compile(r"\b((?:postgres\w*|mysql|mssql|mariadb|oracle)(?:\+\w+)?://[^:/@\s]*):[^@\n]*@")
_ADDRESS = re.compile(r"(://[^:/@\s]*):[^/@\s]*@")
_QUERY = re.compile(r"([?&][\w-]*(?:password|passwd|token|secret)[\w-]*=)[^&#\s]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """An address, or a text with addresses in it, without passwords: `postgresql://ann@host/runs`.

    What is left is an address still, which works where the password comes from elsewhere (`PGPASSWORD`, `~/.pgpass`,
    `MLFLOW_TRACKING_PASSWORD`).
    """
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1", _ADDRESS.sub(r"\1@", _DATABASE.sub(r"\1@", text)))


def without_passwords(data: Any) -> Any:
    """Plain nested data with `without_password` applied to each text."""
    if isinstance(data, str):
        return without_password(data)
    if isinstance(data, dict):
        return {name: without_passwords(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_passwords(value) for value in data]
    return data
