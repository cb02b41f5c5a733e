"""Trials of a search as trials of Ray Tune, stopped by its asynchronous successive halving.

Tune schedules and halves; it knows trials by number and score only. Proposals and what became of them are the search's
(`sweeps.tuning.trials`), and every run is in its directory: what Tune keeps is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nmt.runs import LocalRunStore
from nmt.training.observers import Record, SilentObserver
from sweeps.executors.placement import Bundle, Placement
from sweeps.executors.ray_tune import release
from sweeps.executors.shared_path import enter
from sweeps.tuning.space import Asha
from sweeps.tuning.trials import Trials, evaluations, read_trial, score_of
from sweeps.worker import WorkItem, run_work_item, summarise

STEPS, SCORE = "steps", "score"  # what a trial reports


class Proposals(Searcher):
    """Hands Tune the number of the next trial, and the search what Tune hears of it."""

    def __init__(self, trials: Trials):
        super().__init__(metric=SCORE, mode="max")
        self._trials = trials
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """The next trial's number, or that there are no more."""
        trial = self._trials.next()
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        return {"trial": trial.number}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass an evaluation on."""
        if SCORE in result:
            self._trials.reported(self._numbers[trial_id], int(result[STEPS]), float(result[SCORE]))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Pass the end on."""
        self._trials.over(self._numbers[trial_id])

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the tuner pickles it to be restored one day, which the search does itself

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the search does."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Halving(AsyncHyperBandScheduler):
    """Ray's ASHA, told of trials of earlier commands, and telling the search which ones it stops."""

    def __init__(self, trials: Trials, asha: Asha, max_steps: int):
        super().__init__(
            time_attr=STEPS,
            metric=SCORE,
            mode="max",
            max_t=max_steps,
            grace_period=min(asha.first_rung, max_steps),
            reduction_factor=asha.reduction,
            stop_last_trials=False,  # a run ends by itself, and is decoded afterwards
        )
        self._trials = trials
        for trial in trials.trials:
            if trials.is_over(trial) and trial.run_id:
                self._recall(f"earlier {trial.number}", evaluations(trials.store, trial.run_id, trials.metric))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for proposals

    def _recall(self, name: str, seen: list[tuple[int, float]]) -> None:
        """Fill the rungs with what a trial of an earlier command has scored: of a trial, ASHA asks its name only."""
        stand_in: Any = SimpleNamespace(trial_id=name)
        nobody: Any = None
        self.on_trial_add(nobody, stand_in)
        for step, score in seen:
            super().on_trial_result(nobody, stand_in, {STEPS: step, SCORE: score})
        self.on_trial_remove(nobody, stand_in)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide as ASHA does, and say so."""
        action = str(super().on_trial_result(tune_controller, trial, result))
        if action == TrialScheduler.STOP:
            self._trials.stopped(int(trial.config["trial"]), int(result[STEPS]), float(result[SCORE]))
        return action


class Reports(SilentObserver):
    """Tells Tune of each evaluation of a run once, and stops the run where Tune says so.

    The last evaluation is told after the run has ended: a run that has used its budget is finished, and not stopped.
    """

    def __init__(self, metric: str, max_steps: int):
        self.metric, self.max_steps, self._seen = metric, max_steps, 0

    def evaluated(self, record: Record) -> None:
        """An evaluation is recorded and its checkpoint written: a good moment to stop."""
        from nmt.training.trainer import Interrupted

        if record["step"] >= self.max_steps:
            return
        try:
            self.tell(int(record["step"]), score_of(record, self.metric))
        except SystemExit as stop:  # Tune's way to end a trial's thread
            raise Interrupted("the search: other trials did better") from stop

    def tell(self, step: int, score: float) -> None:
        """Report one evaluation, unless it was. Raises SystemExit where the trial is to stop."""
        if step > self._seen:
            self._seen = step
            tune.report({STEPS: step, SCORE: score})


def run_trial(parameters: Mapping[str, Any], directory: str, placement: Placement, start: str = ".") -> None:
    """One trial: train its run from where it stands. Raises RuntimeError, for Tune to try again, where that may help.

    What the run has scored before is told first, so that it can be stopped at once where others have overtaken it.
    Relative paths start from `start`.
    """
    enter(start)
    trial = read_trial(Path(directory), int(parameters["trial"]))
    training, validation = trial.config["training"], trial.config["validation"]
    store = LocalRunStore(trial.config["paths"]["runs"])
    reports = Reports(validation["metric"], training["max_steps"])
    for step, score in evaluations(store, trial.run_id, validation["metric"]):
        reports.tell(step, score)
    item = WorkItem(title=trial.label, run_ids=(trial.run_id,), configs=(trial.config,))
    release(store, item.run_ids)  # of an attempt that died with its node, the process may outlive it by a moment
    outcomes = run_work_item(placement.place(item), observer=reports)
    if any(outcome.retry for outcome in outcomes):
        raise RuntimeError(summarise(outcomes))
    if outcomes[0].state == "interrupted":
        raise SystemExit(0)  # as Tune asked; to report once more would wait for ever
    for step, score in evaluations(store, trial.run_id, validation["metric"]):
        reports.tell(step, score)


def fit(
    trials: Trials,
    scheduler: TrialScheduler,
    placement: Placement,
    bundles: Sequence[Bundle],
    retries: int,
    storage: Path,
) -> None:
    """Run the search until there are no more proposals, a trial on `bundles`. Ray must be connected."""
    given = {"directory": str(trials.directory), "placement": placement, "start": str(Path.cwd())}
    trainable = tune.with_parameters(run_trial, **given)
    tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([dict(bundle) for bundle in bundles])),
        tune_config=tune.TuneConfig(
            search_alg=Proposals(trials),
            scheduler=scheduler,
            num_samples=-1,  # until the search has no more
            max_concurrent_trials=placement.workers,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    ).fit()


def scheduler_of(trials: Trials, asha: Asha | None, max_steps: int) -> TrialScheduler:
    """What stops trials, of a budget of `max_steps`; without `asha`, nothing."""
    return Halving(trials, asha, max_steps) if asha else FIFOScheduler()
