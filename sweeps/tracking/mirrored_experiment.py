"""An experiment of MLflow: opened, searched, and with the columns that its table shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking.names import CONFIGURATION, RUN_ID
from sweeps.tracking.store import VIEW

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

NAME = "attributes.`Run Name`"


def open_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> Experiment:
    """The experiment of this name, created where it is not there; `artifacts` is where a new one's are kept."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if artifacts is None else (artifacts / name).absolute().as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return client.get_experiment(client.create_experiment(name, location, kind))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found


def show_columns(client: MlflowClient, experiment: Experiment, widths: Mapping[str, int]) -> None:
    """Choose the columns of the experiment's table, with their widths in pixels.

    MLflow hides every metric until somebody picks it. The tag is what its "Share" button writes.
    """
    columns = [name for name in widths if name != NAME]  # the name is always shown
    # Any other order than by time would take the replicates out of their configurations.
    order = {"orderByKey": "attributes.start_time", "orderByAsc": True}
    view = {"selectedColumns": columns, "columnOrder": list(widths), "columnWidths": dict(widths), **order}
    key, value = f"mlflow.sharedViewState.{VIEW}", json.dumps(view)
    if experiment.tags.get(key) != value:
        client.set_experiment_tag(experiment.experiment_id, key, value)


def known_runs(client: MlflowClient, experiment_id: str) -> dict[tuple[str, str], Run]:
    """Runs of the experiment that are ours, by configuration and run id (empty for the configuration itself)."""
    known: dict[tuple[str, str], Run] = {}
    for run in search_all(client, [experiment_id]):
        if CONFIGURATION in run.data.tags:
            known[run.data.tags[CONFIGURATION], run.data.tags.get(RUN_ID, "")] = run  # the oldest of twins wins
    return known


def search_all(client: MlflowClient, experiments: list[str], condition: str = "") -> Iterator[Run]:
    """Every run of these experiments that meets a condition, the newest first."""
    token: str | None = None
    while True:
        page = client.search_runs(experiments, condition, order_by=["attributes.start_time DESC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return
