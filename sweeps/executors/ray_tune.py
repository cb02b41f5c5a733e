"""Work items as trials of Ray Tune, on a local cluster or a named one: `executor=ray_tune`.

Tune schedules, supervises and retries; it holds no truth. What a trial did is in the run directories, so Tune's own
storage is thrown away at the end, and restoring is the plan's business (`sweeps.plan`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nmt.config.schema import ExecutorConfig
from nmt.runs import LocalRunStore, RunStore
from sweeps.executors.needs import check_needs, needs_and_has
from sweeps.executors.placement import Placement, bundles_of, no_line, place, process_needs
from sweeps.executors.ray_cluster import Cluster, connected
from sweeps.executors.ray_process import Line, with_ray
from sweeps.executors.shared_path import check_nodes, enter
from sweeps.folder import FOLDER
from sweeps.worker import WorkItem, record_failure, run_work_item, summarise

PREFIX = "ray-"  # of the folders of `ray_files`
RELEASE_SECONDS = 10.0  # the longest wait for a process that dies a moment after its node or cluster


class RayTuneExecutor:
    """Runs items as trials of one Tune experiment.

    Actors of runs of one process are reused, so that a replicate costs about a second; a run of several processes has a
    placement group of its own, with fresh actors.
    """

    def __init__(self, config: ExecutorConfig, store: RunStore):
        self.config, self.store = config, store

    def execute(
        self, items: Sequence[WorkItem], on_poll: Callable[[], None], say: Callable[[str], None] = no_line
    ) -> None:
        """Run all items; see `sweeps.executors.placement.Executor`.

        Raises UserError where ray is not installed, a cluster cannot be reached, no node could ever hold a run, or the
        nodes do not share the directory of runs; ClusterLostError where the cluster vanishes.
        """
        if not items:
            return
        try:
            with ray_files(runs_of(items[0])) as folder:
                errors = with_ray(
                    run_items, (self.config, list(items), folder / "tune"), log=folder / "log", on_poll=on_poll, say=say
                )
            self._record(items, errors)
        finally:
            release(self.store, [name for item in items for name in item.run_ids])
        on_poll()

    def _record(self, items: Sequence[WorkItem], errors: Mapping[str, str]) -> None:
        """Put down the death of processes that could not do it themselves, and of those that Ray never started."""
        for item in items:
            reason = errors.get(item.run_ids[0])
            for run_id in dict.fromkeys(item.run_ids):
                state = self.store.status(run_id).state
                if (reason and state != "failed") or state in ("queued", "interrupted"):
                    record_failure(self.store, run_id, f"the process died: {reason or 'Ray gave no reason'}")


def run_items(line: Line, config: ExecutorConfig, items: Sequence[WorkItem], storage: Path) -> dict[str, str]:
    """In the process that drives Ray: run the items; the errors of trials that ended with one, by first run id."""
    with connected(config.address, line) as cluster:
        placement = checked_placement(config, items, cluster, line)
        return _fit(config, [placement.place(item) for item in items], placement, storage)


def checked_placement(
    config: ExecutorConfig, items: Sequence[WorkItem], cluster: Cluster, line: Line, most: int = 0
) -> Placement:
    """How the items go on the cluster, once it is sure that they can, and the person has been told what they need.

    `most` is the number of runs where the items only stand for them.
    """
    placement = place(config, list(items) * max(1, most), cluster.nodes, alone=cluster.own)
    check_needs(config, items, placement, cluster.nodes)
    for text in needs_and_has(config, items, placement, cluster.nodes, cluster.free):
        line.say(text)
    if not cluster.own:
        check_nodes(cluster, runs_of(items[0]))
    return placement


def _fit(config: ExecutorConfig, items: Sequence[WorkItem], placement: Placement, storage: Path) -> dict[str, str]:
    from ray import tune

    names = [item.run_ids[0] for item in items]
    process = process_needs(config, placement.threads)
    bundles = {name: bundles_of(item, process, placement.core_share) for name, item in zip(names, items, strict=True)}
    # Every trial is handed all items; each in a text of its own, so that a trial unpacks only what it trains.
    packed = {name: item.pack() for name, item in zip(names, items, strict=True)}
    trainable = tune.with_parameters(run_trial, items=packed, directory=str(Path.cwd()))
    results = tune.Tuner(
        tune.with_resources(trainable, lambda parameters: tune.PlacementGroupFactory(bundles[parameters["run"]])),
        # Only names go through Tune's parameter space: it would interpret what a configuration contains.
        param_space={"run": tune.grid_search(names)},
        tune_config=tune.TuneConfig(
            reuse_actors=all(len(each) == 1 for each in bundles.values()),  # a gang's bundles go with its trial
            max_concurrent_trials=placement.workers,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.retries),
        ),
    ).fit()
    return {
        str(result.config["run"]): str(result.error).strip().splitlines()[-1].partition(". ")[0]
        for result in (results[number] for number in range(len(results)))
        if result.error is not None and result.config
    }


def run_trial(parameters: Mapping[str, str], items: Mapping[str, str], directory: str = ".") -> None:
    """One trial: train the runs of one packed item. Raises RuntimeError, for Tune to try again, where that may help.

    `directory` is what relative paths start from.
    """
    enter(directory)
    item = WorkItem.unpack(items[parameters["run"]])
    if item.run_ids:  # of an attempt that died with its node, the process may outlive it by a moment
        release(LocalRunStore(runs_of(item)), item.run_ids)
    outcomes = run_work_item(item)
    if any(outcome.retry for outcome in outcomes):
        raise RuntimeError(summarise(outcomes))


def runs_of(item: WorkItem) -> str:
    """The item's directory of runs, as its configuration says it."""
    return str(item.configs[0]["paths"]["runs"])


@contextmanager
def ray_files(runs: str) -> Iterator[Path]:
    """A folder for what Tune and the process that drives Ray write, beside the runs, since all nodes must reach it.

    What killed sweeps have left of theirs is removed.
    """
    parent = Path(os.path.abspath(Path(runs).expanduser())) / FOLDER  # noqa: PTH100  nodes may link it elsewhere
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), _locked(leftover):
            shutil.rmtree(leftover)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as folder,
        _locked(Path(folder)),
    ):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, for as long as this process lives. Raises BlockingIOError where another does."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def release(store: RunStore, run_ids: Sequence[str]) -> None:
    """Wait until nobody holds the runs: workers die a moment after their cluster, and till then none can be resumed."""
    end = time.monotonic() + RELEASE_SECONDS
    while time.monotonic() < end and any(store.is_claimed(run_id) for run_id in run_ids):
        time.sleep(0.1)
