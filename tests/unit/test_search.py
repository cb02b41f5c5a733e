"""`nmt sweep search_space=...` up to the point where something starts: what is asked, what is refused, what follows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus
from sweeps.plan import make_plan
from sweeps.sweep import main
from sweeps.tuning.search import Search, finalists_sweep, make_search
from sweeps.tuning.space import Asha

LINE = "optimizer.learning_rate=log:1e-4..1e-2;batch.size=8,16"
WORDS = ["experiment=baseline", "scale=smoke"]


def search(*words: str, text: str = LINE, **options: object) -> Search:
    given = {"trials": None, "finalists": None, "sampler": None} | options
    return make_search(text, [*WORDS, *words], **given)  # type: ignore[arg-type]


def test_the_command_line_lies_over_the_file() -> None:
    found = make_search("rate_and_dropout", ["replicates=2", "training.max_steps=900"], 5, 1, "random")
    assert (found.spec.trials, found.spec.finalists, found.spec.sampler, found.spec.replicates) == (5, 1, "random", 2)
    assert found.config.training.max_steps == 900
    assert found.config.validation.every_steps == 100  # the file's own
    assert found.asha == Asha(first_rung=100, reduction=3)
    plain = make_search("rate_and_dropout", [], None, None, None).spec
    assert (plain.trials, plain.finalists, plain.replicates, plain.experiment) == (16, 3, 4, "baseline")


def test_in_line_the_first_rung_is_an_evaluation_a_ninth_into_the_budget() -> None:
    assert search("training.max_steps=900", "validation.every_steps=50").asha == Asha(first_rung=100)
    assert search("training.max_steps=900", "validation.every_steps=200").asha == Asha(first_rung=200)


def test_another_question_has_other_trials_and_more_of_the_same_do_not() -> None:
    directory = search().trials_directory
    assert directory.parent.name == ".sweeps"
    assert search("executor.workers=1", "replicates=9", trials=99, finalists=7).trials_directory == directory
    others = [search("batch.pool=9"), search("seed=2"), search(sampler="tpe"), search(text=LINE.replace("16", "32"))]
    assert len({directory, *(one.trials_directory for one in others)}) == 5


@pytest.mark.parametrize(
    ("text", "words", "complaint"),
    [
        (LINE, [], "experiment: is needed with an inline search space"),
        (LINE, [*WORDS, "batch.size=4"], "search_space: 'batch.size=4' stands beside a dimension"),
        (LINE, [*WORDS, "executor=inline"], "executor=inline: trials are stopped by Ray Tune's scheduler"),
        (LINE, [*WORDS, "replicates=0"], "replicates: '0' is not a number of replicates"),
        (LINE, ["experiment=basline"], "experiment: unknown option 'basline'"),
        (LINE, [*WORDS, "training.max_stps=4"], "training.max_stps: unknown key; did you mean training.max_steps"),
        ("rate_and_dropout", ["training.max_steps=100"], "asha.first_rung: no trial could be stopped: first rung 100"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_starts(
    text: str, words: list[str], complaint: str, isolated_runs: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        make_search(text, words, None, None, None)
    assert not isolated_runs.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["trials=3", "sweep=quickstart"], "trials=3: does not go with the rest of the command; give search_space=..."),
        ([f"search_space={LINE}", "sweep=quickstart"], "sweep=quickstart: does not go with"),
        ([f"search_space={LINE}", "grid=batch.size=1"], "grid=.*does not go with"),
        ([f"search_space={LINE}", "trials=0"], "trials: 0 is out of range"),
        ([f"search_space={LINE}", "sampler=tpa"], "sampler: 'tpa' is not a choice; allowed: random, tpe"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        main([*words, *WORDS])


def test_a_dry_run_shows_the_space_and_starts_nothing(isolated_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search_space=rate_and_dropout", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "0.0003 to 0.03, logarithmic" in out
    assert "0 to 0.4, step 0.1" in out
    assert "16 trials, sampler=random, the best 1/3 go on at steps 100, 300; 3 finalists" in out
    assert "at most 6,400 steps in trials, then 3 finalists in replicates; nothing was started" in out
    assert not isolated_runs.exists()


@pytest.mark.parametrize("word", ["dry_run=true", "dry_run=false"])
def test_what_is_not_installed_is_the_only_thing_that_is_said(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="needs optuna"):
        main(["search_space=rate_and_dropout", "sampler=tpe", word])
    assert capsys.readouterr().out == ""


def test_finalists_are_rows_with_seeds_that_no_trial_had() -> None:
    found = search("seed=5", "replicates=2")
    trials = found.trials(lambda line: None)
    store = LocalRunStore(found.config.paths.runs)
    for score in (1.0, 3.0, 2.0):
        trial = trials.next()
        assert trial is not None
        assert trial.run_id.endswith("/s5")
        record = {"kind": "evaluation", "step": 6, "seconds": 1.0, "val/decode/bleu": score}
        store.append_line(trial.run_id, "metrics.jsonl", json.dumps(record))
        store.set_status(trial.run_id, RunStatus(state="finished", step=6))
    sweep = finalists_sweep(found, trials.best(2))
    assert sweep.name == f"{found.spec.name}-finalists"
    best, second = trials.trials[1], trials.trials[2]
    assert [row.label for row in sweep.rows] == [best.label, second.label]
    plan = make_plan(sweep, list(found.here))
    ids = [trial.run_id.replace("/s5", f"/s{seed}") for seed in (6, 7) for trial in (best, second)]
    assert [run.run_id for run in plan.runs] == ids
