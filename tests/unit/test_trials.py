"""The trials of a search on disk: proposed, stopped, ended, ranked, and taken up again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nmt.config import RunConfig, compose
from nmt.config.identity import run_id
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus
from sweeps.tuning.samplers import Assignments, RandomSampler, Result
from sweeps.tuning.space import Choice, SearchSpec
from sweeps.tuning.trials import WORST, Trials, evaluations, read_trial, score_of, table_of

SIZES = ("4", "8", "16", "32", "64")


def spec(trials: int = 5, sizes: tuple[str, ...] = SIZES) -> SearchSpec:
    return SearchSpec(name="s", title="A search", space={"batch.size": Choice(values=sizes)}, trials=trials)


class Recorder(RandomSampler):
    """Proposes sizes in their order, and keeps what it was told."""

    def __init__(self, spec: SearchSpec):
        super().__init__(spec)
        self.told: list[list[Result]] = []

    def propose(self, number: int, attempt: int, results: list[Result]) -> Assignments:  # type: ignore[override]
        self.told.append(list(results))
        sizes = self.spec.space["batch.size"].all()
        return (("batch.size", sizes[(number + attempt - 1) % len(sizes)]),)


def composed(assignments: Assignments) -> RunConfig:
    (_, size), *_ = assignments
    return compose(["scale=smoke", f"batch.size={size}"])


def trials_of(isolated_runs: Path, said: list[str] | None = None, *, metric: str = "bleu", count: int = 5) -> Trials:
    store = LocalRunStore(isolated_runs)
    directory = store.root / ".sweeps" / "s.trials"
    lines = [] if said is None else said
    return Trials(directory, store, metric, spec(count), Recorder(spec(count)), composed, lines.append)


def evaluated(trials: Trials, number: int, scores: dict[int, float], state: str, metric: str = "bleu") -> None:
    """Write what the run of a trial has measured at steps, and how it stands."""
    name = trials.trials[number - 1].run_id
    for step, score in scores.items():
        record = {"kind": "evaluation", "step": step, "seconds": 1.0, f"val/decode/{metric}": score}
        trials.store.append_line(name, "metrics.jsonl", json.dumps(record))
    trials.store.set_status(name, RunStatus(state=state, step=max(scores, default=0)))


def test_proposals_are_runs_of_their_configurations(isolated_runs: Path) -> None:
    trials = trials_of(isolated_runs)
    first, second = trials.next(), trials.next()
    assert first is not None
    assert second is not None
    assert (first.number, first.label) == (1, "size=4")
    assert second.run_id == run_id(compose(["scale=smoke", "batch.size=8"]))
    found = read_trial(trials.directory, 2)
    assert dataclasses.replace(found, config={}) == dataclasses.replace(second, config={})
    assert found.config["batch"]["size"] == 8


def test_there_are_as_many_trials_as_asked_for_or_as_the_space_holds(isolated_runs: Path) -> None:
    trials = trials_of(isolated_runs, count=3)
    assert [trial.number for trial in iter(trials.next, None)] == [1, 2, 3]
    trials = trials_of(isolated_runs, count=99)
    for number in (1, 2, 3):
        evaluated(trials, number, {3: 1.0}, "finished")
    trials = trials_of(isolated_runs, count=99)
    assert [trial.number for trial in iter(trials.next, None)] == [4, 5]


def test_the_next_command_takes_up_what_is_not_over(isolated_runs: Path) -> None:
    trials = trials_of(isolated_runs, count=4)
    list(iter(trials.next, None))
    evaluated(trials, 1, {3: 1.0, 6: 2.0}, "finished")
    evaluated(trials, 2, {3: 0.5}, "interrupted")
    trials.stopped(2, 3, 0.5)
    evaluated(trials, 3, {3: 1.5}, "interrupted")  # a crash, or Ctrl-C
    again = trials_of(isolated_runs)
    assert [trial.number for trial in iter(again.next, None)] == [3, 4, 5]
    (told,) = again.sampler.told  # type: ignore[attr-defined]
    assert [(one.step, one.score, one.stopped) for one in told] == [
        (6, 2.0, False),
        (3, 0.5, True),
        (3, 1.5, False),
        (0, None, False),
    ]


def test_what_was_seen_before_is_not_said_again(isolated_runs: Path) -> None:
    said: list[str] = []
    trials = trials_of(isolated_runs, said)
    trials.next()
    trials.reported(1, 3, 1.25)
    trials.reported(1, 3, 1.25)
    trials.stopped(1, 6, 0.75)
    trials.over(1)
    assert said == [
        "trial 1  size=4  step 3  validation bleu 1.25",
        "trial 1  size=4  step 6  validation bleu 0.75",
        "trial 1  size=4  stopped at step 6: others did better there",
    ]
    assert read_trial(trials.directory, 1).stopped_at == 6
    trials.next()
    told = trials.sampler.told[-1]  # type: ignore[attr-defined]
    assert [(one.step, one.score, one.stopped) for one in told] == [(6, 0.75, True)]


def test_a_run_that_has_ended_was_not_stopped(isolated_runs: Path) -> None:
    trials = trials_of(isolated_runs)
    trials.next()
    evaluated(trials, 1, {6: 1.0}, "finished")
    trials.stopped(1, 6, 1.0)
    assert read_trial(trials.directory, 1).stopped_at == 0


def test_the_best_are_ended_runs_then_those_that_got_furthest(isolated_runs: Path) -> None:
    trials = trials_of(isolated_runs)
    list(iter(trials.next, None))
    evaluated(trials, 1, {3: 9.0}, "interrupted")
    trials.stopped(1, 3, 9.0)
    evaluated(trials, 2, {3: 1.0, 6: 4.0}, "finished")
    evaluated(trials, 3, {3: 5.0, 6: 3.0}, "finished")  # its best checkpoint counts
    evaluated(trials, 4, {3: 8.0}, "diverged")
    evaluated(trials, 5, {3: 1.0, 6: 2.0}, "interrupted")
    results = trials.results()
    assert [(one.trial.number, one.state, one.step, one.best) for one in results] == [
        (3, "finished", 6, 5.0),
        (2, "finished", 6, 4.0),
        (5, "interrupted", 6, 2.0),
        (1, "stopped", 3, 9.0),
        (4, "diverged", 3, 8.0),
    ]
    assert [one.trial.number for one in trials.best(9)] == [3, 2, 5, 1]
    assert [one.trial.number for one in trials.best(1)] == [3]
    assert trials.best(0) == []
    record = table_of(results, "bleu")[0]
    assert (record["rank"], record["batch.size"], record["val_bleu"]) == (1, "16", 5.0)


def test_an_error_rate_is_the_better_the_lower(isolated_runs: Path) -> None:
    trials = trials_of(isolated_runs, metric="ter")
    list(iter(trials.next, None))
    evaluated(trials, 1, {3: 90.0, 6: 80.0}, "finished", "ter")
    evaluated(trials, 2, {3: 70.0, 6: 75.0}, "finished", "ter")
    assert [(one.trial.number, one.best) for one in trials.best(2)] == [(2, 70.0), (1, 80.0)]
    assert evaluations(trials.store, trials.trials[0].run_id, "ter") == [(3, -90.0), (6, -80.0)]


def test_a_score_that_is_no_number_is_the_worst() -> None:
    for record in ({}, {"val/decode/bleu": float("nan")}, {"val/decode/bleu": float("inf")}):
        assert score_of(record, "bleu") == WORST
    assert score_of({"val/decode/bleu": 3}, "bleu") == 3.0


def test_a_proposal_that_is_no_configuration_is_listed_and_the_search_goes_on(isolated_runs: Path) -> None:
    said: list[str] = []
    trials = trials_of(isolated_runs, said, count=2)

    def refusing(assignments: Assignments) -> RunConfig:
        if assignments[0][1] == "4":
            raise UserError("does not fit", where="batch.size")
        return composed(assignments)

    trials.compose = refusing
    assert [trial.number for trial in iter(trials.next, None)] == [2]
    assert said == ["trial 1  size=4  is refused: batch.size: does not fit"]
    last = trials.results()[-1]
    assert (last.state, last.trial.refused) == ("refused", "batch.size: does not fit")
    assert trials.best(5) == []
    with pytest.raises(UserError, match="there is no such trial"):
        read_trial(trials.directory, 3)


def test_a_damaged_trial_is_set_aside_and_another_takes_its_place(isolated_runs: Path) -> None:
    list(iter(trials_of(isolated_runs, count=3).next, None))
    path = isolated_runs / ".sweeps" / "s.trials" / "0002.json"
    path.write_text("{", encoding="utf-8")
    again = trials_of(isolated_runs, count=3)
    assert [trial.number for trial in iter(again.next, None)] == [1, 3, 4]
    assert (path.parent / "quarantine").is_dir()
