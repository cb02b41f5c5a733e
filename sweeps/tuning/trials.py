"""The trials of a search: what was proposed, kept on disk, and what the runs say of it.

`<runs>/.sweeps/<search>.trials/0001.json` holds a proposal: its values, its run id and configuration, and the step at
which the search stopped it, if it did. Scores are not kept there: they are in the runs' metrics.jsonl. So a search that
was interrupted goes on from what lies on disk, and a stopped trial is an ordinary interrupted run, which `nmt train` or
a sweep may finish.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, to_dict
from nmt.config.identity import run_id as run_id_of
from nmt.errors import UserError
from nmt.evaluation.catalogue import key, rank
from nmt.records import read_record
from nmt.runs import LocalRunStore, RunStore
from sweeps.ad_hoc import row_label
from sweeps.tracking.curves import CurveReader
from sweeps.tuning.samplers import Assignments, Result, Sampler, new_proposal, text_of
from sweeps.tuning.space import SearchSpec

WORST = -1e9  # what a score that is no number ranks as
ENDED = ("finished", "diverged")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One proposal.

    `stopped_at` is the step at which the search stopped it, 0 where it did not; `refused` says why it is no
    configuration, empty where it is one.
    """

    number: int
    assignments: Assignments
    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    stopped_at: int = 0
    refused: str = ""

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return row_label(self.assignments)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial stands: `stopped`, `refused`, or its run's state; its last evaluation's step and its best score.

    `best` is in the metric's own units; None before the first evaluation.
    """

    trial: Trial
    state: str
    step: int = 0
    best: float | None = None


def read_trial(directory: Path, number: int) -> Trial:
    """A trial as a process that trains it finds it. Raises UserError where it is not there."""
    data = read_record(directory, _file(number))
    if data is None:
        raise UserError("there is no such trial", where=str(directory / _file(number)))
    return _trial(data)


def evaluations(store: RunStore, run_id: str, metric: str) -> list[tuple[int, float]]:
    """Steps and scores of a run's evaluations so far, in order; higher is better whatever the metric."""
    points = CurveReader(store.directory(run_id) / "metrics.jsonl").read()
    return [(point.step, score_of(point.metrics, metric)) for point in points if point.kind == "evaluation"]


def score_of(record: Any, metric: str) -> float:
    """What an evaluation says of a model: a number that grows with quality, also where the metric is an error rate."""
    value = rank(metric, float(record.get(key("val", metric), math.nan)))
    return value if math.isfinite(value) else WORST


class Trials:
    """All trials of one search, those of earlier commands included.

    Parameters
    ----------
    directory: where they are kept.
    store: where their runs are.
    metric: `validation.metric`, by which they are judged.
    spec: what is searched; a finite space has no more trials than configurations.
    sampler: proposes them.
    compose: makes a configuration of a proposal.
    say: told what happens, a line at a time.
    """

    def __init__(
        self,
        directory: Path,
        store: LocalRunStore,
        metric: str,
        spec: SearchSpec,
        sampler: Sampler,
        compose: Callable[[Assignments], RunConfig],
        say: Callable[[str], None],
    ):
        self.directory, self.store, self.metric, self.spec = directory, store, metric, spec
        self.count = int(min(spec.trials, spec.size))
        self.sampler, self.compose, self.say = sampler, compose, say
        names = sorted(path.name for path in directory.glob("[0-9]*.json"))
        # A damaged file is set aside and named; the search then proposes one trial more.
        found = [_trial(data) for name in names if (data := read_record(directory, name)) is not None]
        self._by_number = {trial.number: trial for trial in found}
        self._scores = {trial.number: self._last_score(trial) for trial in self.trials if trial.run_id}
        self._waiting = [trial for trial in self.trials if not self.is_over(trial)]

    @property
    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return list(self._by_number.values())

    def next(self) -> Trial | None:
        """The next trial to train: one that is not over yet, else a new proposal; None when there are enough."""
        if self._waiting:
            return self._again(self._waiting.pop(0))
        while len(self._by_number) < self.count:
            trial = self._propose(max(self._by_number, default=0) + 1)
            if trial is None:
                self.count = len(self._by_number)
                self.say(f"no further configuration was found in the space: {self.count} trials")
                return None
            self._keep(trial)
            if trial.refused:
                self.say(f"trial {trial.number}  {trial.label}  is refused: {trial.refused}")
            else:
                return trial
        return None

    def is_over(self, trial: Trial) -> bool:
        """Whether nothing is left to train: it was refused or stopped, or its run has ended."""
        if trial.refused or trial.stopped_at:
            return True
        return self.store.status(trial.run_id).state in ENDED

    def reported(self, number: int, step: int, score: float) -> None:
        """An evaluation of a trial was seen; one that was seen before, by an earlier process, is no news."""
        if step <= self._scores.get(number, (0, None))[0]:
            return
        self._scores[number] = (step, score)
        trial = self._by_number[number]
        shown = rank(self.metric, score)
        self.say(f"trial {number}  {trial.label}  step {step}  validation {self.metric} {shown:.2f}")

    def stopped(self, number: int, step: int, score: float) -> None:
        """The search has stopped a trial at this evaluation; one that has ended meanwhile was not stopped."""
        self.reported(number, step, score)
        if self.store.status(self._by_number[number].run_id).state in ENDED:
            return
        trial = dataclasses.replace(self._by_number[number], stopped_at=step)
        self._keep(trial)
        self.say(f"trial {number}  {trial.label}  stopped at step {step}: others did better there")

    def over(self, number: int) -> None:
        """A trial's process is done with it."""
        trial = self._by_number[number]
        if not trial.stopped_at:
            status = self.store.status(trial.run_id)
            self.say(f"trial {number}  {trial.label}  {status.state}{f': {status.error}' if status.error else ''}")

    def results(self) -> list[TrialResult]:
        """Every trial as it stands, the best first.

        A run that has ended comes before one that has not: among these, what got further; then the better score. What
        diverged, failed or is no configuration comes last.
        """
        return sorted((self._result(trial) for trial in self.trials), key=self._order)

    def best(self, count: int) -> list[TrialResult]:
        """The `count` best trials that a person would go on with."""
        return [one for one in self.results() if one.best is not None and self._order(one)[0] < 2][:count]

    def _again(self, trial: Trial) -> Trial:
        """A trial of an earlier command, placed as the present one says."""
        trial = dataclasses.replace(trial, config=to_dict(self.compose(trial.assignments)))
        self._keep(trial)
        return trial

    def _propose(self, number: int) -> Trial | None:
        results = [
            Result(
                assignments=trial.assignments,
                step=self._scores.get(trial.number, (0, None))[0],
                score=self._scores.get(trial.number, (0, None))[1],
                stopped=bool(trial.stopped_at),
            )
            for trial in self.trials
            if not trial.refused
        ]
        known = [text_of(trial.assignments) for trial in self.trials]
        assignments = new_proposal(self.sampler, self.spec, number, results, known)
        if assignments is None:
            return None
        try:
            config = self.compose(assignments)
        except UserError as error:
            return Trial(number=number, assignments=assignments, refused=str(error))
        return Trial(number=number, assignments=assignments, run_id=run_id_of(config), config=to_dict(config))

    def _keep(self, trial: Trial) -> None:
        # The store writes below its own root, whole or not at all.
        folder = self.directory.relative_to(self.store.root).as_posix()
        self.store.write_json(folder, _file(trial.number), dataclasses.asdict(trial))
        self._by_number[trial.number] = trial
        if trial.run_id and trial.number not in self._scores:
            self._scores[trial.number] = self._last_score(trial)

    def _last_score(self, trial: Trial) -> tuple[int, float | None]:
        seen = evaluations(self.store, trial.run_id, self.metric)
        return seen[-1] if seen else (0, None)

    def _result(self, trial: Trial) -> TrialResult:
        if trial.refused:
            return TrialResult(trial=trial, state="refused")
        seen = evaluations(self.store, trial.run_id, self.metric)
        state = self.store.status(trial.run_id).state
        if trial.stopped_at and state not in ENDED:
            state = "stopped"
        if not seen:
            return TrialResult(trial=trial, state=state)
        best = rank(self.metric, max(score for _, score in seen))
        return TrialResult(trial=trial, state=state, step=seen[-1][0], best=best)

    def _order(self, one: TrialResult) -> tuple[int, int, float, int]:
        group = {"finished": 0, "diverged": 2, "failed": 3, "refused": 3}.get(one.state, 1)
        score = WORST if one.best is None else rank(self.metric, one.best)
        return group, -one.step if group == 1 else 0, -score, one.trial.number


def _trial(data: Mapping[str, Any]) -> Trial:
    assignments = tuple((key, value) for key, value in data["assignments"])
    names = ("number", "run_id", "config", "stopped_at", "refused")
    return Trial(assignments=assignments, **{name: data[name] for name in names})


def _file(number: int) -> str:
    return f"{number:04}.json"


def table_of(results: Sequence[TrialResult], metric: str) -> list[dict[str, object]]:
    """The results as records, for a CSV file."""
    return [
        {
            "rank": place,
            "trial": one.trial.number,
            **dict(one.trial.assignments),
            "state": one.state,
            "step": one.step,
            f"val_{metric}": one.best,
            "run": one.trial.run_id,
            "refused": one.trial.refused,
        }
        for place, one in enumerate(results, start=1)
    ]
