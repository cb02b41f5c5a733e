"""Tracking with MLflow: while runs train, what they write to their directories is mirrored into a tracking store.

Training never opens MLflow. The process that holds the store's lock (a sweep's driver, a lone `nmt train`, `nmt sync`)
reads the run directories and writes. A process without it trains all the same; a tracker that meets an error says so
once, and tries again now and then. What was missed meanwhile is mirrored when that succeeds, or by `nmt sync` later:
the directories hold everything.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from nmt.config import train_id
from nmt.config.identity import run_id
from nmt.config.schema import RunConfig
from nmt.errors import UserError
from nmt.passwords import without_password
from nmt.runs import LocalRunStore, RunStore
from nmt.training.tracker import Tracker
from sweeps.tracking.mirror import ConfigurationGroup, ExperimentMirror
from sweeps.tracking.mirrored_configuration import with_factors
from sweeps.tracking.mirrored_search import SearchMirror
from sweeps.tracking.names import lone_experiment, search_experiment, sweep_experiment
from sweeps.tracking.reaping import reap
from sweeps.tracking.registered_model import RegisteredModel, register_best
from sweeps.tracking.store import StoreLock, artifact_root, open_client, require_mlflow, resolve_uri
from sweeps.tracking.store_errors import reason, store_error

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LATER = "the run directories hold everything, and `nmt sync` brings MLflow up to date"

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0  # seconds after an error before the store is tried again
PATIENCE = 20  # a pause is at least so many times as long as the attempt before it: a store costs training 5 % at most

log = logging.getLogger("nmt.tracking")


class Mirror(Protocol):
    """What a tracker keeps equal to run directories."""

    damaged: dict[str, str]

    def update(self) -> None:
        """Write what is new."""


AnyMirror = TypeVar("AnyMirror", bound=Mirror)


class StoreTracker(Generic[AnyMirror]):
    """A `Tracker` that keeps a part of MLflow equal to run directories.

    Takes the store's lock and creates the store where it can; where another process has the lock, tries again at each
    `poll`. No method raises.

    Parameters
    ----------
    uri: absolute, of `resolve_uri`.
    lock: of the same store.
    open_mirror: makes the mirror, with the store's client.
    """

    def __init__(
        self, store: RunStore, uri: str, lock: StoreLock, open_mirror: Callable[[MlflowClient, Path | None], AnyMirror]
    ):
        self.store, self.uri = store, uri
        self._lock, self._open_mirror = lock, open_mirror
        self._mirror: AnyMirror | None = None
        self._waiting = self._told = False
        self._pause, self._not_before = FIRST_PAUSE, 0.0
        self._attempt(lambda mirror: None)

    def poll(self) -> None:
        """Mirror what the runs have written since the last call."""
        self._attempt(lambda mirror: mirror.update())

    def close(self) -> None:
        """Mirror the rest and how each run ended, then let other processes write."""
        self._not_before = 0.0  # a store that has failed gets a last chance
        self.poll()
        if self._mirror is not None and self._mirror.damaged:
            for name, error in self._mirror.damaged.items():
                log.warning("MLflow does not show all of run %s: %s", name, error)
        self._mirror, self._not_before = None, math.inf
        self._lock.release()

    def _attempt(self, action: Callable[[AnyMirror], None]) -> None:
        began = time.monotonic()
        if began < self._not_before:
            return
        try:
            if self._connected() and self._mirror is not None:
                action(self._mirror)
                if self._told:
                    log.warning("MLflow at %s: up to date again", without_password(self.uri))
                self._told, self._pause = False, FIRST_PAUSE
        # Whatever a store, a network or a disk may raise, a training must not end for want of a view.
        except Exception as error:
            if not self._told:
                log.warning("%s; training goes on, %s", _line(error, self.uri), LATER)
            log.debug("the error in full", exc_info=True)
            self._told, self._mirror = True, None
            self._lock.release()
            now = time.monotonic()
            self._not_before = now + max(self._pause, PATIENCE * (now - began))
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _connected(self) -> bool:
        if self._mirror is not None:
            return True
        if not self._lock.acquire():
            if not self._waiting:
                log.warning(
                    "MLflow at %s: %s is writing to it; %s", without_password(self.uri), self._lock.holder(), LATER
                )
                self._waiting = True
            return False
        client = open_client(self.uri)
        reap(client, self.store)  # before the mirror reads statuses
        self._mirror = self._open_mirror(client, artifact_root(self.uri, self.store.directory("")))
        return True


class MlflowTracker(StoreTracker[ExperimentMirror]):
    """The tracker of one experiment of configurations and replicates.

    Parameters
    ----------
    groups: the experiment's configurations.
    """

    def __init__(
        self, store: RunStore, uri: str, experiment: str, groups: Sequence[ConfigurationGroup], lock: StoreLock
    ):
        self.experiment, self.groups = experiment, groups

        def open_mirror(client: MlflowClient, artifacts: Path | None) -> ExperimentMirror:
            return ExperimentMirror(client, store, experiment, groups, artifacts)

        super().__init__(store, uri, lock, open_mirror)

    def attach(self, path: Path, label: str | None = None) -> None:
        """Store a file of the report with the configuration called `label`, or with every one.

        A Markdown file for all of them also becomes the experiment's description.
        """
        self._attempt(lambda mirror: mirror.attach(path, label))

    def register_best(self) -> RegisteredModel | None:
        """Put the sweep's best run into MLflow's model registry.

        None where there is none yet, or it could not be done, which is said.
        """
        self.poll()  # runs are mirrored before the best of them is registered
        if self._mirror is None:
            return None
        try:
            return register_best(self._mirror.client, self.store, self.experiment, self.groups)
        except Exception as error:  # as in `_attempt`
            why = error if isinstance(error, UserError) else reason(error)
            log.warning("no model of %s in MLflow's registry: %s; %s", self.experiment, why, LATER)
            log.debug("the error in full", exc_info=True)
            return None


def _line(error: Exception, uri: str) -> str:
    return f"MLflow at {error if isinstance(error, UserError) else store_error(error, uri)}"


def open_for_run(config: RunConfig, store: LocalRunStore) -> Tracker:
    """The tracker of a lone `nmt train`: experiment `train@<scale>`, with every replicate of the configuration.

    Raises UserError where MLflow is not installed or `tracking.uri` makes no sense.
    """
    name = train_id(config)
    run_ids = [other for other in store.list_runs() if other.startswith(f"{name}/")]
    if run_id(config) not in run_ids:
        run_ids.append(run_id(config))
    group = ConfigurationGroup.of(config.label or name, name, run_ids, config)
    return _open(store, config.tracking.uri, lone_experiment(config.scale.name), [group])


def open_for_sweep(
    name: str, scale: str, groups: Sequence[ConfigurationGroup], store: LocalRunStore, uri: str = ""
) -> MlflowTracker:
    """The tracker of a sweep: experiment `<name>@<scale>`.

    `uri` is `tracking.uri`. Raises UserError where MLflow is not installed or the URI makes no sense.
    """
    return _open(store, uri, sweep_experiment(name, scale), with_factors(groups))


def open_for_search(space: str, scale: str, directory: Path, store: LocalRunStore, uri: str = "") -> Tracker:
    """The tracker of a search whose trials are kept in `directory`: experiment `<space>-search@<scale>`.

    `uri` is `tracking.uri`. Raises UserError where MLflow is not installed or the URI makes no sense.
    """
    require_mlflow()
    absolute = resolve_uri(uri, store.root)

    def open_mirror(client: MlflowClient, artifacts: Path | None) -> SearchMirror:
        return SearchMirror(client, store, directory, search_experiment(space, scale), artifacts)

    return StoreTracker(store, absolute, StoreLock(absolute, store.root), open_mirror)


def _open(store: LocalRunStore, uri: str, experiment: str, groups: Sequence[ConfigurationGroup]) -> MlflowTracker:
    require_mlflow()
    absolute = resolve_uri(uri, store.root)
    return MlflowTracker(store, absolute, experiment, groups, StoreLock(absolute, store.root))


__all__ = ["ConfigurationGroup", "MlflowTracker", "open_for_run", "open_for_sweep"]
