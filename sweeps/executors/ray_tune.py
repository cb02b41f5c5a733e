"""Work items as trials of Ray Tune, on a local cluster or a named one: `executor=ray_tune`.

Tune schedules, supervises and retries; it holds no truth. What a trial did is in the run directories, so Tune's own
storage is thrown away at the end, and restoring is the plan's business (`sweeps.plan`).
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from nmt.runs import RunStore
from sweeps.executors.placement import Placement, place
from sweeps.worker import WorkItem, record_failure, run_work_item, summarise

POLL_SECONDS = 0.5
RELEASE_SECONDS = 10.0  # the longest wait for the workers of a cluster that is going down
OBJECT_STORE_BYTES = 128 * 2**20  # work items are small; the default reserves a third of the memory
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a trial as on the command line
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own makes an interrupted sweep look like a finished one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class RayTuneExecutor:
    """Runs items as trials of one Tune experiment; actors are reused, so a replicate costs about a second."""

    def __init__(self, config: ExecutorConfig, store: RunStore):
        self.config, self.store = config, store

    def execute(self, items: Sequence[WorkItem], on_poll: Callable[[], None]) -> None:
        """Run all items; see `sweeps.executors.placement.Executor`.

        Raises UserError where ray is not installed, a cluster cannot be reached, or no node could ever hold a run.
        """
        if not items:
            return
        try:
            with (
                _quiet(),
                tempfile.TemporaryDirectory(prefix="nmt-sweep-") as storage,
                _cluster(self.config.address) as resources,
            ):
                placement = place(self.config, items, cores=int(resources.get("CPU", 1)))
                check_resources(self.config, placement, resources)
                with _polling(on_poll), _terminate_as_interrupt():
                    errors = self._fit([placement.place(item) for item in items], placement, storage)
                self._record(items, errors)
        finally:
            self._wait_for_release(items)
        on_poll()

    def _fit(self, items: Sequence[WorkItem], placement: Placement, storage: str) -> dict[str, str]:
        """Run the trials; the errors of those that ended with one, by the trial's first run id."""
        from ray import tune

        names = [item.run_ids[0] for item in items]
        needs = {"cpu": placement.threads, "gpu": self.config.gpus_per_run}
        trainable = tune.with_parameters(run_trial, items=dict(zip(names, items, strict=True)))
        results = tune.Tuner(
            tune.with_resources(trainable, needs),
            # Only names go through Tune's parameter space: it would interpret what a configuration contains.
            param_space={"run": tune.grid_search(names)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=placement.workers,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.config.retries),
            ),
        ).fit()
        return {
            str(result.config["run"]): str(result.error).strip().splitlines()[-1].partition(". ")[0]
            for result in (results[number] for number in range(len(results)))
            if result.error is not None and result.config
        }

    def _wait_for_release(self, items: Sequence[WorkItem]) -> None:
        """Workers die a moment after their cluster; until then their runs are still claimed, and cannot be resumed."""
        end = time.monotonic() + RELEASE_SECONDS
        while time.monotonic() < end and any(self.store.is_claimed(name) for item in items for name in item.run_ids):
            time.sleep(0.1)

    def _record(self, items: Sequence[WorkItem], errors: Mapping[str, str]) -> None:
        """Put down the death of processes that could not do it themselves."""
        for item in items:
            reason = errors.get(item.run_ids[0])
            for run_id in dict.fromkeys(item.run_ids) if reason else ():
                if self.store.status(run_id).state != "failed":
                    record_failure(self.store, run_id, f"the process died: {reason}")


def run_trial(parameters: Mapping[str, str], items: Mapping[str, WorkItem]) -> None:
    """One trial: train the runs of one item. Raises RuntimeError, for Tune to try again, where that may help."""
    outcomes = run_work_item(items[parameters["run"]])
    if any(outcome.retry for outcome in outcomes):
        raise RuntimeError(summarise(outcomes))


def check_resources(config: ExecutorConfig, placement: Placement, resources: Mapping[str, float]) -> None:
    """Raise UserError where a run needs more than the cluster has: Ray would wait for ever, without a word."""
    for name, needed, key in (
        ("CPU", placement.threads, "threads"),
        ("GPU", config.gpus_per_run, "executor.gpus_per_run"),
    ):
        has = resources.get(name, 0)
        if needed > has:
            raise UserError(
                f"a run needs {needed:g} {name}s and the cluster has {has:g}", where=key, hint=f"lower {key}"
            )


@contextmanager
def _cluster(address: str) -> Iterator[Mapping[str, float]]:
    """Connect to Ray, or use the connection that this process has; yields what the cluster has to give."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "needs ray, which is not installed",
            where="executor=ray_tune",
            hint="pip install 'ray[tune]', or executor=inline",
        ) from error
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **(local if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster: {str(error).splitlines()[0]}", where="executor.address", hint="executor.address=local"
        ) from error
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's and Tune's own prints off the screen; Ray's session directory has its logs.

    Whoever shows progress meanwhile holds on to the stream it writes to.
    """
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _polling(on_poll: Callable[[], None]) -> Iterator[None]:
    """Call `on_poll` in a thread of its own, since Tune keeps this one."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_SECONDS):
            on_poll()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is: a KeyboardInterrupt, after which the cluster is taken down and with it every run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
