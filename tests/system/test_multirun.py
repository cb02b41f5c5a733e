"""`nmt train -m` as it is typed: which jobs there are, what becomes of them, and what is refused before they start."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from nmt import multirun
from nmt.config.schema import RunConfig
from nmt.errors import UserError
from nmt.multirun import expand
from nmt.runs import LocalRunStore
from nmt.train import RunOutcome

Command = Callable[..., tuple[int, str, str]]
TINY = [
    "data=toy_reverse", "data.options={train_size: 100, validation_size: 8, test_size: 8}", "scale=smoke",
    "tokenizer.vocab_size=24", "search=greedy", "threads=1", "device=cpu", "tracking=none",
]  # fmt: skip


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NMT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def words_of(*words: str) -> list[list[str]]:
    return [list(job.varied) for job in expand(words)]


def test_every_combination_is_a_job_and_the_last_key_varies_fastest() -> None:
    assert words_of("experiment=baseline,t2_lstm", "scale=smoke", "seed=1,2") == [
        ["experiment=baseline", "seed=1"],
        ["experiment=baseline", "seed=2"],
        ["experiment=t2_lstm", "seed=1"],
        ["experiment=t2_lstm", "seed=2"],
    ]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("experiment=glob(t2_*)", ["t2_gru", "t2_lstm", "t2_vanilla_dec"]),
        ("experiment=glob(t3_enc_*,exclude=*_res*)", ["t3_enc_2", "t3_enc_4", "t3_enc_8"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("optimizer.learning_rate=choice(0.001,0.0005)", ["0.001", "0.0005"]),
        ("data.options.train_size=60,80", ["60", "80"]),
        ("training.checkpoint_every_steps=sort(30,20,10)", ["10", "20", "30"]),
    ],
)
def test_hydras_own_ways_to_list_values(word: str, values: list[str]) -> None:
    key = word.partition("=")[0]
    assert words_of(word) == [[f"{key}={value}"] for value in values]


def test_jobs_have_the_run_ids_that_single_commands_have(nmt: Command) -> None:
    for job in expand(["experiment=baseline,t2_lstm", "seed=3,4", *TINY]):
        code, out, _ = nmt("train", *job.varied, *TINY, "dry_run=true")
        assert code == 0
        assert out.endswith(f"# run {job.run_id}\n")


def test_jobs_are_trained_one_after_the_other_and_skipped_when_they_are_there(nmt: Command, runs: Path) -> None:
    command = ["train", "-m", "experiment=baseline,t2_lstm", *TINY]
    code, out, err = nmt(*command)
    assert code == 0
    assert out.splitlines()[-3] == "2 jobs: 2 finished"
    found = LocalRunStore(runs).list_runs()
    assert sorted(line.split()[1] for line in out.splitlines()[-2:]) == found
    assert [line.split()[0:4:2] for line in out.splitlines()[-2:]] == [["1/2", "finished"], ["2/2", "finished"]]
    assert "bleu" in out.splitlines()[-1]
    assert err.index("1/2 experiment=baseline") < err.index("2/2 experiment=t2_lstm")
    results = [(runs / run_id / "result.json").stat().st_mtime_ns for run_id in found]

    code, out, err = nmt("train", "--multirun", "experiment=baseline,t2_lstm,t2_gru", *TINY)
    assert code == 0
    assert err.count("already trained; nothing was done") == 3  # t2_gru is the baseline by another name
    assert out.splitlines()[-1].split("  ")[3] == "experiment=t2_gru (the run of job 1)"
    assert [(runs / run_id / "result.json").stat().st_mtime_ns for run_id in found] == results


def fake_training(monkeypatch: pytest.MonkeyPatch, **fates: str | Exception) -> list[str]:
    """Train nothing: the job of each experiment ends in its state, or with its error. Returns who was called."""
    called: list[str] = []

    def train(config: RunConfig) -> RunOutcome:
        called.append(config.label)
        fate = fates.get(f"seed_{config.seed}", "finished")
        if isinstance(fate, Exception):
            raise fate
        return RunOutcome("0" * 12 + f"/s{config.seed}", fate, "ln(V) exceeded" if fate == "diverged" else "")

    monkeypatch.setattr(multirun, "train_in_foreground", train)
    return called


def states(out: str) -> list[str]:
    return [line.split()[2] for line in out.splitlines() if line[:1].isdigit() and "/" in line.split()[0]]


def test_a_failed_job_does_not_stop_the_rest(nmt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    full, wrong = UserError("is full", where="disk"), RuntimeError("first line\nsecond")
    called = fake_training(monkeypatch, seed_1=full, seed_2=wrong, seed_4="diverged")
    code, out, err = nmt("train", "-m", "seed=range(1,5)", *TINY)
    assert (code, len(called)) == (1, 4)
    assert states(out) == ["failed", "failed", "finished", "diverged"]
    assert "4 jobs: 2 failed, 1 finished, 1 diverged" in out
    assert "disk: is full" in out
    assert out.count("first line") == 1
    assert "second" not in out
    assert "Traceback" in err  # of the error that is nobody's mistake
    assert "error: disk: is full" in err


def test_what_our_modules_warn_of_while_jobs_run_is_heard(
    nmt: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warns(config: RunConfig) -> RunOutcome:
        logging.getLogger("nmt.runs").warning("a file is damaged")
        return RunOutcome("r/s1", "finished")

    monkeypatch.setattr(multirun, "train_in_foreground", warns)
    nmt("train", "-m", *TINY, "seed=1,2")
    assert caplog.messages == ["a file is damaged"] * 2


def test_exit_codes(nmt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_training(monkeypatch, seed_2="diverged")
    assert nmt("train", "-m", "seed=1,2,3", *TINY)[0] == 3
    assert nmt("train", "-m", "seed=1,3", *TINY)[0] == 0


def test_an_interrupted_job_ends_the_command_resumably(nmt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_training(monkeypatch, seed_2="interrupted")
    code, out, _ = nmt("train", "-m", "seed=1,2,3", *TINY)
    assert (code, len(called)) == (75, 2)
    assert states(out) == ["finished", "interrupted", "queued"]
    assert "the same command goes on" in out


def test_a_dry_run_lists_jobs_and_starts_nothing(nmt: Command, runs: Path) -> None:
    code, out, _ = nmt("train", "-m", "experiment=t2_lstm,t2_gru", "seed=1,2", *TINY, "dry_run=true")
    assert code == 0
    assert states(out) == ["queued"] * 4
    assert not runs.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "experiment=baseline,t2_lstm"], ["experiment: 'baseline,t2_lstm'", "nmt train -m", "grid="]),
        (["train", "seed=range(1,3)"], ["seed: 'range(1,3)' means several values", "nmt train -m"]),
        (["train", "data.train.source=a.en,b.en"], ["a list is written data.train.source='[a.en,b.en]'"]),
        (["train", "hydra/launcher=ray_tune"], ["hydra/launcher", "nmt train -m"]),
        (["train", "label=(a"], ["label=(a: cannot be read as key=value"]),
        (["train", "-m", "experimnt=a,b"], ["experimnt: unknown key", "did you mean experiment"]),
        (["train", "-m", "experiment=baseline,t2_lsmt"], ["job 2 of 2 (experiment=t2_lsmt)", "did you mean t2_lstm"]),
        (["train", "-m", "model.encoder.layers=1,0"], ["job 2 of 2 (model.encoder.layers=0)", ">= 1"]),
        (["train", "-m", "experiment=glob(nothing*)"], ["experiment=glob(nothing*): stands for no value"]),
        (["train", "-m", "seed=1,"], ["seed=1,: cannot be read as key=value"]),
        (["train", "-m", "optimizer.learning_rate=interval(0,1)"], ["INTERVAL_SWEEP", "search_space="]),
        (["train", "-m", "seed=1,2", "hydra/launcher=ray_tun"], ["hydra/launcher", "did you mean ray_tune"]),
        (["train", "-m", "seed=1,2", "hydra/sweeper=optuna"], ["hydra/sweeper", "search_space="]),
        (["train", "-m", "seed=1,2", "hydra.callbacks.x._target_=os.getcwd"], ["is not taken", "hydra/launcher"]),
        (["train", "-m", "seed=1,2", "hydra.launcher._target_=os.getcwd"], ["is not taken"]),
        (["train", "-m", "seed=1,2", "hydra.launcher.x={_target_: os.getcwd}"], ["is not taken"]),
        (["train", "-m", "seed=1,2", "+hydra.launcher.x=1"], ["'+' adds or removes keys"]),
        (["train", "-m", "seed=1,2", "hydra.launcher.nosuch=1"], ["hydra/launcher", "nosuch"]),
        (["train", "-m", "hydra/launcher=inline", "executor.workers=1,2"], ["executor: is one for all jobs"]),
        (["train", "-m", "hydra/launcher=inline", "seed=1,2", "executor.gpus_per_run=1"], ["executor.gpus_per_run"]),
        (["train", "-x", "seed=1,2"], ["-x: is not of the form key=value"]),
    ],
    ids=lambda value: " ".join(value) if len(value) and "train" in value[0] else "",
)  # fmt: skip
def test_mistakes_are_told_before_anything_starts(nmt: Command, runs: Path, words: list[str], parts: list[str]) -> None:
    code, out, err = nmt(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    for part in parts:
        assert part in err
    assert not runs.exists()


def test_jobs_that_two_seeds_tell_apart_are_replicates_of_one_row(runs: Path) -> None:
    from sweeps.handed_out import plan_of

    jobs = expand(["experiment=baseline,t2_lstm", "search=greedy,beam5", "seed=1,2", *TINY[:4], "tracking=none"])
    plan = plan_of(jobs)
    assert [(row.label, len(row.runs)) for row in plan.rows] == [
        ("experiment=baseline search=greedy", 2),
        ("experiment=baseline search=beam5", 2),
        ("experiment=t2_lstm search=greedy", 2),
        ("experiment=t2_lstm search=beam5", 2),
    ]
    items = plan.work_items()
    assert len(items) == 4  # a training each, decoded with both searches
    assert [[config["search"]["beam"] for config in item.configs] for item in items] == [[1, 5]] * 4
    assert [config["seed"] for item in items for config in item.configs] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert dataclasses.replace(jobs[0].config, seed=2) == jobs[1].config
