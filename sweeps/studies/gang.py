"""A run whose processes are each under limits: how it ended, kept so that it is not run again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt import registry
from nmt.config import RunConfig, to_dict
from nmt.config.identity import run_id
from nmt.errors import UserError
from nmt.records import read_record
from nmt.runs import LocalRunStore
from sweeps.apart import CACHE

FOLDER = "gangs"
SECONDS = 300.0  # that a run may take
FORMAT_VERSION = 1


@dataclass(frozen=True)
class GangEnd:
    """How a run under limits ended.

    ended: `trained`; `killed`, by the kernel, because a member outgrew its memory; `lost`, a member died of something
        else; `failed`, the coordinator did; or `too slow`.
    peak_bytes: the most that a limited member held, without what all were forked from.
    directory: of the run.
    """

    ended: str
    peak_bytes: int
    directory: Path


def run_gang(config: RunConfig, *, memory: int = 0, limited: str = "worker", mbit: float = 0.0) -> GangEnd:
    """Train a configuration with its processes under limits, or say how that ended before.

    memory: bytes that each process of the role `limited` may hold; 0: no limit. mbit: rate of each process's cable to a
    switch, every one being a host of its own; 0: they share this one.

    Raises UserError where the gang itself cannot be started.
    """
    runs = Path(config.paths.runs).expanduser().resolve()
    said = {"config": to_dict(config) | {"paths": {}}, "memory": memory, "limited": limited, "mbit": mbit}
    folder = f"{FOLDER}/{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]}"
    paths = dataclasses.replace(config.paths, runs=str(runs / folder), cache=config.paths.cache or str(runs / CACHE))
    placed = dataclasses.replace(config, paths=paths)
    name = run_id(placed)
    directory = runs / folder / name
    known: Mapping[str, Any] | None = read_record(runs / folder, "gang.json")
    if known is None:
        known = _run(placed, name, runs / folder, memory, limited, mbit)
        LocalRunStore(runs).write_json(folder, "gang.json", {**known})
    return GangEnd(known["ended"], int(known["peak_bytes"]), directory)


def _run(config: RunConfig, name: str, folder: Path, memory: int, limited: str, mbit: float) -> Mapping[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that never came to its end
    folder.mkdir(parents=True)
    asked = {
        "config": to_dict(config), "run": name, "roles": roles_of(config), "memory": memory, "limited": limited,
        "mbit": mbit, "seconds": SECONDS, "log": str(folder / "process"), "modules": ["nmt.training.workload"],
    }  # fmt: skip
    environment = os.environ | {"S2S_LINK_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "sweeps.studies.gang_process"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
    )
    try:
        found: Mapping[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return found
    except (ValueError, IndexError):
        said = ended.stderr.strip().splitlines()
        raise UserError(said[-1] if said else "ended without a word", where="the processes under limits") from None


def roles_of(config: RunConfig) -> list[str]:
    """The roles of a run's processes beside its coordinator: servers, then workers, as they take their places."""
    count = registry.load("distributed.launchers.choose:process_counts")
    counts = count(dataclasses.asdict(config.distribution))
    return ["server"] * counts["server"] + ["worker"] * counts["worker"]
