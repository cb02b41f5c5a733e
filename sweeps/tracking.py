"""Tracking with MLflow: while runs train, what they write to their directories is mirrored into a tracking store.

Training never opens MLflow. The process that holds the store's lock (a sweep's driver, a lone `nmt train`, `nmt sync`)
reads the run directories and writes. A process without it trains all the same; a tracker that meets an error says so
once and stays quiet. In both cases `nmt sync` brings the store up to date later: the directories hold everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from nmt.config import to_dict, train_id
from nmt.config.identity import run_id
from nmt.config.schema import RunConfig
from nmt.runs import LocalRunStore, RunStore
from nmt.training.tracker import Tracker
from sweeps.mirror import ConfigurationGroup, ExperimentMirror
from sweeps.tracking_store import StoreLock, artifact_root, open_client, reason, require_mlflow, resolve_uri

LATER = "the run directories hold everything, and `nmt sync` brings MLflow up to date"

log = logging.getLogger("nmt.tracking")


class MlflowTracker:
    """A `Tracker` that keeps one experiment of MLflow equal to run directories.

    Takes the store's lock and creates the store where it can; where another process has the lock, tries again at each
    `poll`. No method raises.

    Parameters
    ----------
    uri: absolute, of `resolve_uri`.
    groups: the experiment's configurations.
    lock: of the same store.
    """

    def __init__(
        self, store: RunStore, uri: str, experiment: str, groups: Sequence[ConfigurationGroup], lock: StoreLock
    ):
        self.store, self.uri, self.experiment, self.groups = store, uri, experiment, groups
        self._lock = lock
        self._mirror: ExperimentMirror | None = None
        self._waiting = self._quiet = False
        self._attempt(lambda mirror: None)

    def poll(self) -> None:
        """Mirror what the runs have written since the last call."""
        self._attempt(lambda mirror: mirror.update())

    def attach(self, path: Path, label: str | None = None) -> None:
        """Store a file of the report with the configuration called `label`, or with every one.

        A Markdown file for all of them also becomes the experiment's description.
        """
        self._attempt(lambda mirror: mirror.attach(path, label))

    def close(self) -> None:
        """Mirror the rest and how each run ended, then let other processes write."""
        self.poll()
        if self._mirror is not None and self._mirror.damaged:
            for name, error in self._mirror.damaged.items():
                log.warning("MLflow does not show run %s: %s", name, error)
        self._mirror, self._quiet = None, True
        self._lock.release()

    def _attempt(self, action: Callable[[ExperimentMirror], None]) -> None:
        if self._quiet:
            return
        try:
            if self._connected() and self._mirror is not None:
                action(self._mirror)
        # Whatever a store, a network or a disk may raise, a training must not end for want of a view.
        except Exception as error:
            log.warning("MLflow at %s: %s; training goes on, %s", self.uri, reason(error), LATER)
            log.debug("the error in full", exc_info=True)
            self._quiet, self._mirror = True, None
            self._lock.release()

    def _connected(self) -> bool:
        if self._mirror is not None:
            return True
        if not self._lock.acquire():
            if not self._waiting:
                log.warning("MLflow at %s: %s is writing to it; %s", self.uri, self._lock.holder(), LATER)
                self._waiting = True
            return False
        client = open_client(self.uri)
        self._mirror = ExperimentMirror(client, self.store, self.experiment, self.groups, artifact_root(self.uri))
        return True


def open_for_run(config: RunConfig, store: LocalRunStore) -> Tracker:
    """The tracker of a lone `nmt train`: experiment `train@<scale>`, with every replicate of the configuration.

    Raises UserError where MLflow is not installed or `tracking.uri` makes no sense.
    """
    name = train_id(config)
    run_ids = [other for other in store.list_runs() if other.startswith(f"{name}/")]
    if run_id(config) not in run_ids:
        run_ids.append(run_id(config))
    group = ConfigurationGroup(config.label or name, name, run_ids, to_dict(config))
    return _open(store, config.tracking.uri, lone_experiment(config.scale.name), [group])


def open_for_sweep(
    name: str, scale: str, groups: Sequence[ConfigurationGroup], store: LocalRunStore, uri: str = ""
) -> MlflowTracker:
    """The tracker of a sweep: experiment `<name>@<scale>`.

    `uri` is `tracking.uri`. Raises UserError where MLflow is not installed or the URI makes no sense.
    """
    return _open(store, uri, sweep_experiment(name, scale), groups)


def sweep_experiment(name: str, scale: str) -> str:
    """Name of a sweep's experiment."""
    return f"{name}@{scale}"


def lone_experiment(scale: str) -> str:
    """Name of the experiment of runs that no sweep asked for."""
    return f"train@{scale}"


def _open(store: LocalRunStore, uri: str, experiment: str, groups: Sequence[ConfigurationGroup]) -> MlflowTracker:
    require_mlflow()
    absolute = resolve_uri(uri, store.root)
    return MlflowTracker(store, absolute, experiment, groups, StoreLock(absolute, store.root))


__all__ = ["ConfigurationGroup", "MlflowTracker", "open_for_run", "open_for_sweep"]
