"""A search on a real cluster, with real tiny trainings: what is stopped, what is not, and that identity survives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nmt.config import from_dict
from nmt.runs import LocalRunStore
from nmt.train import train
from sweeps.sweep import main
from sweeps.tuning.trials import evaluations, read_trial

pytestmark = pytest.mark.ray

RATES = "1e-7,3e-2,1e-6,1e-2,1e-5"
SPACE = f"search_space=optimizer.learning_rate={RATES}"
WORDS = [
    "experiment=baseline",
    "scale=smoke",
    "search=greedy",
    "data.options.test_size=20",
    "training.max_steps=6",
    "validation.every_steps=2",
    "validation.metric=token_accuracy",  # at this size the only score that tells models apart
    "executor.workers=1",  # one after the other, so that the test can decide as ASHA does
    "threads=1",  # spinning threads wait for each other where the machine is busy
    "tracking=none",
]


def reports_of(root: Path) -> Path:
    (found,) = (root / "reports").glob("search-learning_rate")
    return found


@pytest.mark.exhaustive
def test_a_search_stops_what_falls_behind_and_trains_the_best_in_replicates(
    ray_cluster: str, isolated_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [SPACE, *WORDS, f"executor.address={ray_cluster}", "trials=4", "finalists=1", "replicates=2"]
    assert main(words) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    store = LocalRunStore(isolated_runs)
    (directory,) = isolated_runs.glob(".sweeps/search-learning_rate-*.trials")
    trials = [read_trial(directory, number) for number in (1, 2, 3, 4)]

    # The decisions are those of asynchronous successive halving at the only rung below the budget, step 2.
    rung: list[float] = []
    for trial in trials:
        at_rung = dict(evaluations(store, trial.run_id, "token_accuracy"))[2]
        stopped = bool(rung) and at_rung < np.percentile(rung, 100 * (1 - 1 / 3))
        rung.append(at_rung)
        assert trial.stopped_at == (2 if stopped else 0), said
        status = store.status(trial.run_id)
        assert (status.state, status.step) == (("interrupted", 2) if stopped else ("finished", 6))
        assert status.attempts == 1
        assert not store.is_claimed(trial.run_id)
    stopped_trials = [trial for trial in trials if trial.stopped_at]
    assert 0 < len(stopped_trials) < 4, said

    # The finalist has replicates of its own seeds, in the ordinary table.
    assert "with seeds from 2 on: every trial had seed 1" in said
    path = reports_of(isolated_runs) / "search-learning_rate-finalists.yaml"
    assert path.is_file()
    finalists = [run for run in store.list_runs() if not run.endswith("/s1")]
    assert [run.partition("/")[2] for run in finalists] == ["s2", "s3"]
    assert {store.status(run).state for run in finalists} == {"finished"}

    # Again, nothing happens; with one more trial, only that one is trained.
    attempts = {run: store.status(run).attempts for run in store.list_runs()}
    assert main(words) == 0
    assert "4 trials, 4 of them over" in capsys.readouterr().out
    assert {run: store.status(run).attempts for run in attempts} == attempts
    assert main([*words, "trials=5"]) == 0
    assert {run: store.status(run).attempts for run in attempts} == attempts
    assert len([run for run in store.list_runs() if run.endswith("/s1")]) == 5

    # A stopped trial is an interrupted run: continued, it ends with the same bits as one that nobody stopped.
    trial = stopped_trials[0]
    config = from_dict(trial.config)
    assert train(config).state == "finished"
    undisturbed = from_dict(trial.config | {"paths": trial.config["paths"] | {"runs": str(tmp_path / "undisturbed")}})
    assert train(undisturbed).state == "finished"
    results = [LocalRunStore(one.paths.runs).read_json(trial.run_id, "result.json") for one in (config, undisturbed)]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["best"] == results[1]["best"]
