"""Runs apart: rows that compute the same training in different ways, and are each to be trained.

Strategies that have the same bits share a run id, and where they stand in one store a run is trained once. A sweep that
compares *how* a training is computed keeps the runs of each way in a store of their own below its runs:

    <runs>/apart/<distribution>-<digest>/<train_id>/s<seed>

The digest covers the section `distribution` and the injected failures of the trainer. So the same row of two sweeps is
one run, and rows that differ in nothing but their distribution never are. Such a run's id in a plan has the folder in
front; in its own store it is what it is everywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from nmt.config import RunConfig
from nmt.errors import UserError

FOLDER = "apart"
CACHE = ".prepared"  # of the runs that are not apart, where `paths.cache` says nothing


def folder_of(config: RunConfig) -> str:
    """The store of a row's runs, relative to `paths.runs`.

    Raises UserError where a tracker is configured, which would take runs of one id for the same.
    """
    if config.tracking.name != "none":
        raise UserError(
            f"'{config.tracking.name}' cannot tell runs apart that have one id",
            where="tracking",
            allowed=["none"],
            hint="tracking=none; the sweep's own report shows every run",
        )
    said = [dataclasses.asdict(config.distribution), list(config.faults)]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return f"{FOLDER}/{config.distribution.name}-{digest[:8]}"


def own_id(run_id: str) -> str:
    """A run's id in its own store: `<train_id>/s<seed>`."""
    return "/".join(run_id.split("/")[-2:])


def store_of(run_id: str) -> str:
    """The folder in front of a run's id, empty for a run that is not apart."""
    return run_id.removesuffix(own_id(run_id)).rstrip("/")


def placed(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """A configuration, as plain data, whose run lies in a folder of its runs; prepared text is shared by all."""
    if not folder:
        return config
    paths = config["paths"]
    root = Path(paths["runs"])
    own = {"runs": str(root / folder), "cache": paths["cache"] or str(root / CACHE)}
    return config | {"paths": paths | own}
