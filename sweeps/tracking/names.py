"""What our runs in MLflow are called and marked with: tags, statuses, and how one is made."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking.mirrored_run import MirroredRun

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

KIND, CONFIGURATION, RUN_ID, STATE = "nmt.kind", "nmt.configuration", "nmt.run_id", "nmt.state"
MEMBERS, DIRECTORY, PARENT = "nmt.replicates", "nmt.directory", "mlflow.parentRunId"
FACTOR = "factor."  # begins metrics that are numbers to sort by; with a slash they would be the first section of charts
STATUS = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "diverged": "FINISHED",  # it counts in the statistics; the tag nmt.state tells it from a finished one
    "finished": "FINISHED",
    "stopped": "KILLED",  # by a search, because other trials did better
    "removed": "KILLED",  # its directory is not there any more
}
OVER = ("KILLED", "FAILED", "FINISHED")


def sweep_experiment(name: str, scale: str) -> str:
    """Name of a sweep's experiment."""
    return f"{name}@{scale}"


def search_experiment(space: str, scale: str) -> str:
    """Name of the experiment of a search's trials."""
    return f"{space}-search@{scale}"


def lone_experiment(scale: str) -> str:
    """Name of the experiment of runs that no sweep asked for."""
    return f"train@{scale}"


def create_run(
    client: MlflowClient, experiment_id: str, start: float, name: str, tags: dict[str, str], command: str
) -> MirroredRun:
    """A new run that began at `start`, Unix time in seconds; MLflow shows `command` as its source."""
    source = {"mlflow.user": _user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    run = client.create_run(experiment_id, int(start * 1000), tags | source, name)
    return MirroredRun(client, client.get_run(run.info.run_id))


def begin_of(directory: Path) -> float:
    """Unix time in seconds at which a run began; now where it has not."""
    try:
        return (directory / "config.yaml").stat().st_mtime
    except OSError:
        return time.time()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in the container
        return "unknown"
