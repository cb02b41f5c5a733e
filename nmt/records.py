"""The JSON files of run directories: read with suspicion, and set aside where they are damaged."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nmt.errors import UserError

FORMAT_VERSION = 1
QUARANTINE = "quarantine"  # folder of a run directory for files that make no sense, each beside its reason
MACHINES = ("host", "pid", "node", "seen_by")  # keys that name machines and processes: of nobody's concern elsewhere

log = logging.getLogger("nmt.runs")

Sound = Callable[[dict[str, Any]], bool]


def read_record(directory: Path, name: str, sound: Sound = lambda data: True) -> dict[str, Any] | None:
    """The JSON object in a file of a run directory, None where it is absent or damaged.

    A damaged file (no JSON, no object, or an object that is not `sound`) moves to `quarantine/`, its reason beside it,
    and is named in the log. What it said is found out again, or trained again. On a disk that may not be written to it
    stays, and counts as absent all the same. Raises UserError for a file of a newer format and one that cannot be read.
    """
    path = directory / name
    data, damage = _read(path, sound)
    if damage:
        with suppress(OSError, UserError):
            damage += _set_aside(directory, name, damage, sound)
        log.warning("%s %s", path, damage)
    return data


def check_format(data: Any, path: Path) -> None:
    """Refuse data that a newer version wrote."""
    version = data.get("format_version", FORMAT_VERSION) if isinstance(data, dict) else None
    if version is None:
        raise UserError("does not hold a JSON object", where=str(path), hint="remove it to start over")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"was written in format {version}, and this version reads up to {FORMAT_VERSION}",
            where=str(path),
            hint="update this package, or choose another paths.runs",
        )


def _read(path: Path, sound: Sound) -> tuple[dict[str, Any] | None, str]:
    """A file's object, and in words what is wrong with it; neither where there is no file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None, ""
    except ValueError as error:
        return None, f"is damaged ({error})"
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), hint="check paths.runs") from error
    if not isinstance(data, dict):
        return None, "is damaged (it does not hold a JSON object)"
    check_format(data, path)
    return (data, "") if sound(data) else (None, "is damaged (its values make no sense)")


def _set_aside(directory: Path, name: str, damage: str, sound: Sound) -> str:
    """Move a damaged file out of the way, and say where it went."""
    folder = directory / QUARANTINE
    folder.mkdir(exist_ok=True)
    moved = folder / f"{name.replace('/', '_')}.{time.time_ns()}"
    (directory / name).replace(moved)
    if _read(moved, sound)[0] is not None:  # a writer has put a sound one in its place between reading and moving
        with suppress(FileExistsError):
            os.link(moved, directory / name)
        moved.unlink()
        return ", and was written anew meanwhile"
    moved.with_name(f"{moved.name}.reason").write_text(f"{name} {damage}\n", encoding="utf-8")
    return f"; set aside as {moved}"
