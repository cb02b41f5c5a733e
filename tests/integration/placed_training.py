"""Stands in for `nmt.train.train` where placement is tested: writes down where it runs, and waits for its companions.

The run's label says how many: a run of `meets 4` ends when four of them are alive at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import ray
from finished_runs import finish

from nmt.config import RunConfig
from nmt.config.identity import run_id
from nmt.runs import LocalRunStore, RunStatus

PATIENCE_SECONDS = 300.0  # each of them is a process that loads torch, on cores that others want too
PLACE = "place.json"


def train(config: RunConfig, *, timing: str) -> SimpleNamespace:
    """The signature of `nmt.train.train`, as far as executors use it."""
    store, name = LocalRunStore(config.paths.runs), run_id(config)
    with store.claim(name):
        node = ray.get_runtime_context().get_node_id()
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        place = {"node": node, "gpus": gpus, "directory": str(Path.cwd()), "pid": os.getpid(), "timing": timing}
        store.write_json(name, PLACE, place)
        store.set_status(name, RunStatus(state="running", max_steps=100))
        meet(store.root, int(config.label.removeprefix("meets ")))
        finish(config, 10.0 + config.seed, timing=timing)
    return SimpleNamespace(state="finished")


def meet(root: Path, companions: int) -> None:
    """Wait until so many processes are here. Raises TimeoutError where they do not come."""
    end = time.monotonic() + PATIENCE_SECONDS
    while len(list(root.glob(f"*/s*/{PLACE}"))) < companions:
        if time.monotonic() > end:
            raise TimeoutError(f"{companions} runs were never alive at once")
        time.sleep(0.05)
