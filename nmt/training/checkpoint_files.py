"""Names of a run's checkpoints. Without torch, so that whoever only counts steps need not load it."""

from __future__ import annotations

import re

from nmt.runs import RunStore

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_name(step: int) -> str:
    """File name of a step's checkpoint, relative to the run directory."""
    return f"checkpoints/step-{step:08d}.pt"


def list_checkpoints(store: RunStore, run_id: str) -> list[int]:
    """Steps of the checkpoints that a run has, ascending."""
    directory = store.directory(run_id) / "checkpoints"
    matches = (_NAME.fullmatch(path.name) for path in directory.glob("step-*.pt"))
    return sorted(int(match[1]) for match in matches if match)
