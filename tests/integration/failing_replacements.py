"""Stands in for `nmt.train.train` in a trial: actors that are to take a lost one's place fail before they connect.

What the launcher says of their ends goes into `replacements.txt` beside the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.launchers.ray_actors import RayLauncher
from nmt import train as training
from nmt.config import RunConfig


def train(config: RunConfig, *, timing: str) -> Any:
    """The signature of `nmt.train.train`, as far as executors use it."""
    start, ended = RayLauncher.start, RayLauncher.ended
    told: set[Any] = set()

    def failing_start(launcher: RayLauncher, role: str, instead_of: str = "") -> str:
        if instead_of:
            launcher._threads["worker"] = 0  # torch refuses to compute with none
        return start(launcher, role, instead_of)

    def told_ends(launcher: RayLauncher) -> Mapping[str, str]:
        found = ended(launcher)
        for name, how in found.items():
            work = launcher._actors[int(name.removeprefix("bundle "))][1]
            if launcher._threads["worker"] == 0 and work not in told:
                told.add(work)
                with (Path(config.paths.runs) / "replacements.txt").open("a") as file:
                    file.write(f"{name} {how}\n")
        return found

    RayLauncher.start, RayLauncher.ended = failing_start, told_ends  # type: ignore[method-assign]
    return training.train(config, timing=timing)
