"""Names of a run's checkpoints. Without torch, so that whoever only counts steps need not load it.

A checkpoint is a file. One that was written by several processes has a directory of the same name beside it, where its
tensors are: that one is written first, so the checkpoint is there when the file is.
"""

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


def directory_of(checkpoint: str) -> str:
    """The directory that may belong to a checkpoint's file, both relative to the run directory."""
    return checkpoint.removesuffix(".pt") + ".parts"


def drop_checkpoint(store: RunStore, run_id: str, step: int) -> None:
    """Remove a step's checkpoint; whoever is killed meanwhile leaves a directory that is none."""
    store.delete(run_id, checkpoint_name(step))
    store.delete(run_id, directory_of(checkpoint_name(step)))


def drop_unfinished(store: RunStore, run_id: str) -> None:
    """Remove directories that were to become checkpoints."""
    directory = store.directory(run_id) / "checkpoints"
    for path in sorted(directory.glob("*.parts")):
        if not path.with_suffix(".pt").exists():
            store.delete(run_id, f"checkpoints/{path.name}")
