"""Sorting the `key=value` words of a sweep's command line: where it runs, in how many replicates, what it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nmt.errors import UserError

PLACES = ("executor", "paths", "tracking", "device", "threads")  # where a sweep runs: of one command, not of the sweep


def split_places(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that only say where runs happen, and the others."""
    here = [word for word in words if is_place(word)]
    return here, [word for word in words if not is_place(word)]


def is_place(word: str) -> bool:
    """Whether a key or `key=value` word only says where runs happen."""
    return re.split(r"[./=]", word)[0] in PLACES


def take(words: Sequence[str], key: str) -> tuple[str, list[str]]:
    """The value that the last `key=...` of `words` gives, empty without one; and the other words."""
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == key]
    return (values or [""])[-1], [word for word in words if word.partition("=")[0] != key]


def read_replicates(text: str) -> int | None:
    """The number that `replicates=` gives; None where it is not given. Raises UserError for less than one."""
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"'{text}' is not a number of replicates", where="replicates", allowed=[">= 1"])
    return int(text)
