"""A run done again from its own directory: equal to the bit, or the first record that differs is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmt.cli import main
from nmt.config import RunConfig, compose
from nmt.evaluate import evaluate_run
from nmt.events import read_events
from nmt.runs import LocalRunStore
from nmt.train import train
from nmt.training.console import ConsoleObserver

Rerun = Callable[..., tuple[int, str, str]]
WORDS = [
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 200, validation_size: 10, test_size: 10}",
    "scale=smoke",
    "data.max_sentences=0",
    "tracking=none",
    "device=cpu",
    "threads=1",
    "batch.size=16",
    "search=greedy",
    "training.log_every_steps=1",
    "training.max_steps=9",
    "validation.every_steps=3",
]


def configuration(runs: Path, *words: str) -> RunConfig:
    return compose([*WORDS, f"paths.runs={runs}", *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run, decoded in two ways."""
    runs = tmp_path_factory.mktemp("rerun") / "runs"
    config = configuration(runs)
    run_id = train(config).run_id
    evaluate_run(LocalRunStore(runs), run_id, compose(["search=beam5"]).search, config=config)
    return runs / run_id


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of its own, so that a test may falsify it."""
    copy = tmp_path / "original" / trained.parent.name / trained.name
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture
def rerun(capfd: pytest.CaptureFixture[str]) -> Rerun:
    def call(run: Path, *words: str) -> tuple[int, str, str]:
        code = main(["rerun", f"run={run}", *words])
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture(autouse=True)
def one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code all the time, though someone may be editing this checkout: other code starts a rerun anew."""
    monkeypatch.setattr("nmt.provenance.replay.describe_code", lambda: {"commit": "c" * 40})


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def falsify(run: Path, step: int, kind: str, **values: Any) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == kind and record.get("step") == step:
            record |= values
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def test_every_bit_comes_out_again_and_the_original_is_only_read(run: Path, rerun: Rerun, isolated_runs: Path) -> None:
    before = digests(run)
    code, out, err = rerun(run, "verify=true")
    assert (code, err.count("resuming")) == (0, 0)
    # Nine losses with their gradient norms, three evaluations, two decodings.
    assert "bit-equal over 9 steps: 18 × loss, 3 × parameters, 3 × optimizer state" in out
    assert "2 × hypotheses" in out
    assert digests(run) == before
    assert not any((isolated_runs / ".scratch").iterdir())  # nothing of use is left


def test_the_first_difference_ends_the_training_and_is_named(run: Path, rerun: Rerun, isolated_runs: Path) -> None:
    falsify(run, 5, "train", loss_hex="0x1.0p+0")
    code, out, _ = rerun(run, "verify=true")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "differs: loss at step 5; equal up to step 4"
    assert lines[1] == "  recorded  0x1.0p+0"
    assert lines[-1].startswith(f"the rerun is kept: nmt why a={run} b=")
    made = Path(lines[-1].rpartition("b=")[2])
    assert LocalRunStore(made.parents[1]).status(f"{made.parent.name}/{made.name}").step == 5
    assert rerun(run, "verify=true")[:2] == (code, out)  # from nothing, not from where it parted


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("evaluation", {"parameters_sha256": "0"}, "differs: parameters at step 6; equal up to step 5"),
        ("evaluation", {"val/decode/bleu": 99.0}, "differs: validation scores val/decode/bleu at step 6"),
    ],
)
def test_evaluations_count_too(run: Path, rerun: Rerun, kind: str, values: dict[str, Any], words: str) -> None:
    falsify(run, 6, kind, **values)
    code, out, _ = rerun(run, "verify=true")
    assert code == 1 and words in out


def test_hypotheses_count_too(run: Path, rerun: Rerun) -> None:
    (path, *_) = sorted((run / "decodes").glob("*.txt"))
    path.write_text("another\n" + path.read_text().partition("\n")[2])
    code, out, _ = rerun(run, "verify=true")
    assert code == 1 and "differs: hypotheses of beam" in out


def test_a_decoding_of_an_ensemble_is_not_made_again_and_said_so(run: Path, rerun: Rerun) -> None:
    (path, *_) = sorted((run / "decodes").glob("*.json"))
    record = json.loads(path.read_text()) | {"checkpoints": ["a", "b"], "ensemble": "prob", "decode_id": "0" * 12}
    (run / "decodes" / "000000000000.json").write_text(json.dumps(record))
    (run / "decodes" / "000000000000.txt").write_text("x\n")
    code, out, _ = rerun(run, "verify=true")
    assert code == 0 and "on record, and not made again: 1 × hypotheses, 17 × test scores" in out


def test_the_first_steps_alone_and_then_the_rest(run: Path, rerun: Rerun, isolated_runs: Path) -> None:
    falsify(run, 7, "train", loss_hex="0x1.0p+0")
    code, out, _ = rerun(run, "verify=true", "steps=4")
    assert code == 0 and "bit-equal over the first 4 steps: 8 × loss, 1 × parameters" in out
    code, out, err = rerun(run, "verify=true")
    assert code == 1 and "differs: loss at step 7; equal up to step 6" in out
    assert "resuming after step 4" in err


def test_an_interrupted_rerun_goes_on(run: Path, rerun: Rerun, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = ConsoleObserver.trained

    def interrupting(self: ConsoleObserver, step: int, record: dict[str, Any] | None) -> None:
        trained(self, step, record)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(ConsoleObserver, "trained", interrupting)
        code, out, err = rerun(run, "verify=true")
    assert (code, out) == (75, "") and "the same command goes on" in err
    code, out, err = rerun(run, "verify=true")
    assert code == 0 and "resuming after step 5" in err and "bit-equal over 9 steps: 18 × loss" in out


def test_an_archived_run_has_enough_on_record(run: Path, rerun: Rerun) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "tokenizers")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if '"train"' not in line))
    code, out, _ = rerun(run, "verify=true")
    assert code == 0 and "bit-equal over 9 steps: 3 × parameters, 3 × optimizer state" in out


def test_evaluations_by_the_clock_fall_where_they_fell(tmp_path: Path, rerun: Rerun) -> None:
    config = configuration(
        tmp_path / "clock", "validation.every_steps=0", "validation.every_minutes=0.001", "training.max_steps=20"
    )
    directory = tmp_path / "clock" / train(config).run_id
    code, out, _ = rerun(directory, "verify=true")
    assert code == 0 and "not made again" not in out, out
    evaluations = (directory / "metrics.jsonl").read_text().count('"evaluation"')
    assert f"{evaluations} × parameters" in out


def test_other_text_is_found_before_anything_is_trained(run: Path, rerun: Rerun, isolated_runs: Path) -> None:
    record = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    code, out, _ = rerun(run, "verify=true")
    assert code == 1 and out.startswith("differs: data: the prepared text has fingerprint")
    events = [event for path in isolated_runs.rglob("events.jsonl") for event in read_events(path)]
    assert not [event for event in events if event["kind"] == "checkpoint"]


def test_without_verify_a_run_is_trained_anew_elsewhere(run: Path, rerun: Rerun, tmp_path: Path) -> None:
    code, out, _ = rerun(run, f"to={tmp_path / 'again'}")
    made = tmp_path / "again" / run.parent.name / run.name
    assert code == 0 and out == f"finished: {made}\n"
    assert (made / "result.json").is_file()
    code, _, err = rerun(run, f"to={tmp_path / 'again'}")
    assert code == 2 and "a rerun starts from nothing" in err


def test_a_rerun_by_other_code_is_not_gone_on_with(
    run: Path, rerun: Rerun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["verify=true", "steps=4"]
    assert rerun(run, *words)[0] == 0 and rerun(run, *words, f"to={tmp_path / 'mine'}")[0] == 0
    monkeypatch.setattr("nmt.provenance.replay.describe_code", lambda: {"commit": "d" * 40})
    code, _, err = rerun(run, "verify=true")
    assert code == 0 and "resuming" not in err
    code, _, err = rerun(run, "verify=true", f"to={tmp_path / 'mine'}")  # not ours to remove
    assert code == 2 and "a rerun starts from nothing" in err


def test_mistakes_are_one_line(run: Path, rerun: Rerun, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    identity = json.loads((run / "identity.json").read_text())
    for words, message in (
        ([], "to: is missing"),
        (["steps=3", "to=x"], "steps: goes with verify=true"),
        (["verify=true", "seed=2"], "seed: cannot be overridden: a rerun is the run as it was"),
        (["verify=true", f"to={tmp_path / 'full'}"], "is not empty, and a rerun starts from nothing"),
    ):
        code, out, err = rerun(run, *words)
        assert (code, out) == (2, "") and message in err and err.splitlines()[-1].startswith("error: "), err
    (run / "identity.json").write_text(json.dumps(identity | {"numerics_version": 1}))
    code, _, err = rerun(run, "verify=true")
    assert code == 2 and "was trained with numerics version 1" in err and "check out commit" in err
    (run / "identity.json").write_text(json.dumps(identity | {"batch": {"size": 17}}))
    code, _, err = rerun(run, "verify=true")
    assert code == 2 and "is another configuration to this code: batch.size: 17 != 16" in err
