"""A search on a Ray cluster, as the sweep's process sees it: the trials run in the process that drives Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.config import to_dict
from sweeps.executors.placement import bundles_of, process_needs
from sweeps.executors.ray_cluster import connected
from sweeps.executors.ray_process import Line, with_ray
from sweeps.executors.ray_tune import checked_placement, ray_files, release
from sweeps.worker import WorkItem

if TYPE_CHECKING:
    from sweeps.tuning.search import Search


def execute(search: Search, say: Callable[[str], None], on_poll: Callable[[], None]) -> None:
    """Run the search until there are no more proposals; what became of the trials is in their files and runs.

    `say` is told what happens, a line at a time; `on_poll` is called a few times a second meanwhile. Raises
    KeyboardInterrupt after SIGINT or SIGTERM, once every run has stopped, UserError where no cluster can be reached or
    no node could hold a trial, and ClusterLostError where the cluster vanishes.
    """
    try:
        with ray_files(search.config.paths.runs) as folder:
            with_ray(run_trials, (search, folder / "tune"), log=folder / "log", on_poll=on_poll, say=say)
    finally:
        trials = search.trials(say).trials
        release(search.store, [trial.run_id for trial in trials if trial.run_id])


def run_trials(line: Line, search: Search, storage: Path) -> None:
    """In the process that drives Ray: propose, train and stop."""
    config = search.config.executor
    # It stands for all trials where needs are asked: they differ in what they vary, which is no placement.
    first = WorkItem(title=search.spec.name, run_ids=("",), configs=(to_dict(search.config),))
    trials = search.trials(line.say)
    with connected(config.address, line) as cluster:
        from sweeps.executors.tune_search import fit, scheduler_of

        placement = checked_placement(config, [first], cluster, line, most=trials.count)
        bundles = bundles_of(first, process_needs(config, placement.threads), placement.core_share)
        scheduler = scheduler_of(trials, search.asha, search.config.training.max_steps)
        fit(trials, scheduler, placement, bundles, config.retries, storage)
