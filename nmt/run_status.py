"""Where a run stands: the content of status.json, and what the other files tell where that is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.lease_file import read_lease
from nmt.records import FORMAT_VERSION, read_record

STATES = ("queued", "running", "interrupted", "failed", "diverged", "finished")
_KINDS = {"str": str, "int": int, "float": (int, float), "dict[str, float]": dict}


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run stands.

    `heartbeat` is the Unix time of the last sign of life in seconds; `attempts` is the number of the attempt that
    trained last; `error` is the last failure in one line; `latest` holds the latest validation metrics by name.
    """

    state: str = "queued"
    pid: int = 0
    host: str = ""
    heartbeat: float = 0.0
    attempts: int = 0
    error: str = ""
    step: int = 0
    max_steps: int = 0
    tokens_per_second: float = 0.0
    latest: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def status_of(data: Mapping[str, Any]) -> RunStatus:
    """The status that the object of a status.json tells; keys that are not known are left out."""
    return RunStatus(**{one.name: data[one.name] for one in dataclasses.fields(RunStatus) if one.name in data})


def is_status(data: Mapping[str, Any]) -> bool:
    """Whether the object of a status.json has a known state, and values of the right types."""
    types = {one.name: _KINDS[str(one.type)] for one in dataclasses.fields(RunStatus)}
    right = all(isinstance(value, types[name]) for name, value in data.items() if name in types)  # type: ignore[arg-type]
    return right and data.get("state") in STATES


def status_without_file(directory: Path) -> RunStatus:
    """What a run directory without status.json tells: an end, checkpoints to go on from, or nothing yet."""
    lease = read_lease(directory)
    attempts = lease.attempt if lease else 0
    result = read_record(directory, "result.json") or {}
    if result.get("state") in STATES:
        steps = result.get("steps")
        steps = steps if isinstance(steps, int) else 0
        return RunStatus(state=str(result["state"]), attempts=attempts, step=steps, max_steps=steps)
    if any(directory.glob("checkpoints/step-*.pt")):
        return RunStatus(state="interrupted", attempts=attempts)
    return RunStatus()
