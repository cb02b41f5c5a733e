"""What MLflow believes to run and does not: the runs of a driver that was killed, which nobody has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.errors import UserError
from nmt.runs import RunStore
from sweeps.tracking.mirrored_experiment import search_all
from sweeps.tracking.names import DIRECTORY, PARENT, RUN_ID, STATE, STATUS

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# Of several, the one that a configuration takes over from its replicates.
PRECEDENCE = ("RUNNING", "FAILED", "KILLED", "SCHEDULED", "FINISHED")
MOST_EXPERIMENTS = 1000  # a page of MLflow's


def reap(client: MlflowClient, store: RunStore) -> int:
    """Set the status of each run that MLflow shows as running to what its directory says; returns how many changed.

    Concerns every experiment, and only the runs of this store: another directory's are another driver's business. A run
    that a process is training, here or elsewhere, goes on.
    """
    ours = [run for run in _running(client) if _is_below(run, store.directory(""))]
    replicates = [run for run in ours if RUN_ID in run.data.tags]
    changed = sum(_settle_replicate(client, store, run) for run in replicates)
    return changed + sum(_settle_configuration(client, run) for run in ours if RUN_ID not in run.data.tags)


def _running(client: MlflowClient) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_experiments(max_results=MOST_EXPERIMENTS, page_token=token)
        if page:
            experiments = [experiment.experiment_id for experiment in page]
            yield from search_all(client, experiments, "attributes.status = 'RUNNING'")
        token = page.token
        if not token:
            return


def _is_below(run: Run, root: Path) -> bool:
    directory = run.data.tags.get(DIRECTORY)
    return directory is not None and Path(directory).is_relative_to(root)


def _settle_replicate(client: MlflowClient, store: RunStore, run: Run) -> bool:
    run_id = run.data.tags[RUN_ID]
    if not (store.directory(run_id) / "config.yaml").exists():
        return _set(client, run, "removed", None)
    try:
        status = store.status(run_id)
    except UserError:
        return False  # a later version wrote it, and knows what it is
    return _set(client, run, status.state, int(status.heartbeat * 1000) or None)


def _settle_configuration(client: MlflowClient, run: Run) -> bool:
    children = list(search_all(client, [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'"))
    statuses = {child.info.status for child in children} or {"SCHEDULED"}
    status = next(one for one in PRECEDENCE if one in statuses)
    if status == "RUNNING":
        return False
    client.set_tag(run.info.run_id, STATE, ", ".join(sorted({child.data.tags.get(STATE, "") for child in children})))
    if status == "SCHEDULED":
        client.update_run(run.info.run_id, status=status)
    else:
        ends = [child.info.end_time for child in children if child.info.end_time]
        client.set_terminated(run.info.run_id, status, max(ends, default=None))
    return True


def _set(client: MlflowClient, run: Run, state: str, when: int | None) -> bool:
    """Record a state of a run; whether that changed its status."""
    status = STATUS[state]
    if status == "RUNNING":
        return False
    client.set_tag(run.info.run_id, STATE, state)
    if status == "SCHEDULED":
        client.update_run(run.info.run_id, status=status)
    else:
        client.set_terminated(run.info.run_id, status, when)
    return True
