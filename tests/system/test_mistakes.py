"""What a person gets wrong ends in one clear line and exit code 2, typed as a user types it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.runs import LocalRunStore

ROOT = Path(__file__).resolve().parents[2]
TINY = ["scale=smoke", "tracking=none", "threads=1", "data.options.train_size=60", "data.options.test_size=4"]


def nmt(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nmt.cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env=os.environ | environment,
        timeout=600,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One line on stderr that starts with `error:` and holds all parts; nothing else but progress before it."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["unknown verb 'trian'", "did you mean train"]),
        (["train", "experimnt=baseline"], ["experimnt", "did you mean experiment"]),
        (["train", "experiment=basline"], ["experiment", "did you mean baseline"]),
        (["train", "model.encoder.layrs=2"], ["did you mean model.encoder.layers"]),
        (["train", "model.encoder.layers=0"], ["model.encoder.layers", ">= 1"]),
        (["train", "model.decoder.cell.dropout_input=1.5"], ["model.decoder.cell.dropout_input", "< 1"]),
        (["train", "search.beam=0"], ["search.beam", ">= 1"]),
        (["train", "model.encoder.cell.kind=gur"], ["model.encoder.cell.kind", "did you mean gru"]),
        (["train", "data=files"], ["train.source", "no such file", "data.dir"]),
        (["train", "faults=[explode]"], ["faults", "kill@"]),
        (["sweep", "sweep=quikstart"], ["sweep", "quickstart"]),
        (["sweep", "quickstart"], ["write sweep=quickstart"]),
        (["sweep", "sweep=quickstart", "replicates=0"], ["replicates: 0 is out of range", ">= 1"]),
        (["sweep", "experiment=baseline"], ["experiment=baseline: is no sweep by itself", "grid="]),
        (["sweep", "experiment=basline", "grid=batch.size=8,16"], ["experiment", "did you mean baseline"]),
        (["sweep", "grid=batch.size=8,16"], ["experiment: is needed with a grid"]),
        (["sweep", "experiment=baseline", "grid=batch.size"], ["grid: 'batch.size' gives no values"]),
        (["sweep", "experiment=baseline", "grid=batch.size=8,8"], ["grid: 2 rows are labelled 'size=8'"]),
        (["sweep", "experiment=baseline", "grid=batch.size=range(1,3)"], ["grid: batch.size", "write the values out"]),
        (["sweep", "experiment=baseline", "grid=seed=1,2"], ["grid: seed", "replicates=4"]),
        (["sweep", "experiment=baseline", "grid=batch.size=8,0"], ["row 'size=0': batch.size", ">= 1"]),
        (["sweep", "sweep=quickstart", "grid=batch.size=8,16"], ["not both"]),
        (["sweep", "sweep=quickstart", "save=mine"], ["save=mine", "give grid="]),
        (["sweep", "sweep=quickstart", "reuse=never"], ["reuse: 'never'", "any, same_code"]),
        (["sweep", "search_space=rate_and_dropot"], ["search_space", "did you mean rate_and_dropout"]),
        (["sweep", "sweep=quickstart", "trials=3"], ["trials=3", "give search_space="]),
        (["status", "runs=/nonexistent"], ["/nonexistent: there is no such directory"]),
        (["status", "wach=true"], ["wach", "did you mean watch"]),
        (["translate", "run=none"], ["run=none"]),
        (["translate", "rnu=x"], ["rnu", "did you mean run"]),
        (["evaluate", "run=none"], ["run=none"]),
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense(words: list[str], parts: list[str]) -> None:
    assert_one_line(nmt(*words), *parts)


def test_a_yaml_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    for package in ("nmt", "distributed", "sweeps", "conf"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nlabel: x\nmodel: {a: [}\n")
    done = nmt("train", "experiment=mine", cwd=tmp_path)
    assert_one_line(done, "conf/experiment/mine.yaml:3", "YAML syntax")
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text("title: x\nrows: [\n")
    assert_one_line(nmt("sweep", "sweep=mine", cwd=tmp_path), "conf/sweep/mine.yaml:", "YAML syntax")


SWEEPS = {
    "two rows of one label": (
        "title: x\nrows: [{label: a}, {label: a, experiment: t2_lstm}]\n",
        ["mine.yaml: rows: 2 rows are labelled 'a'"],
    ),
    "a missing experiment": (
        "title: x\nrows: [{label: a, experiment: t2_lsmt}]\n",
        ["row 'a': experiment: unknown option 't2_lsmt'", "did you mean t2_lstm"],
    ),
    "no replicates": ("title: x\nreplicates: 0\nrows: [{label: a}]\n", ["mine.yaml", "replicates: '0'", ">= 1"]),
    "no rows": ("title: x\nrows: []\n", ["mine.yaml: rows", "at least one row"]),
    "a misspelt key": (
        "title: x\nrows: [{lable: a}]\n",
        ["mine.yaml: rows[0]: unknown key 'lable'", "did you mean label"],
    ),
    "a misspelt override": (
        "title: x\nrows: [{label: a, overrides: [model.decoder.layrs=1]}]\n",
        ["row 'a': model.decoder.layrs", "did you mean model.decoder.layers"],
    ),
}


@pytest.mark.parametrize(("text", "parts"), SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_that_makes_no_sense(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    done = nmt("sweep", f"sweep={tmp_path / 'mine.yaml'}", *TINY, NMT_RUNS=str(tmp_path / "runs"))
    assert_one_line(done, *parts)
    assert not (tmp_path / "runs").exists()


def test_two_rows_that_are_one_run_are_told_trained_once_and_shown_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: x\nrows: [{label: one}, {label: other, experiment: t2_gru}]\n")
    words = ["sweep", f"sweep={tmp_path / 'mine.yaml'}", *TINY, "executor=inline", "replicates=1", "search=greedy"]
    done = nmt(*words, NMT_RUNS=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "the same runs under several labels, trained once and shown with each: one and other" in done.stdout
    assert len(LocalRunStore(tmp_path / "runs").list_runs()) == 1
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| one ", "| other "))]
    assert len(rows) == 2
    assert rows[0].split("|")[2:-2] == rows[1].split("|")[2:-2]


FILES = [
    "data=files",
    "data.source_language=en",
    "data.target_language=de",
    "data.train.source=[train.en]",
    "data.train.target=[train.de]",
    "data.validation.source=[train.en]",
    "data.validation.target=[train.de]",
    "data.test.source=[]",
    "data.test.target=[]",
    "scale=smoke",
    "tracking=none",
]


@pytest.mark.parametrize(
    ("english", "german", "parts"),
    [
        (None, b"eins\n", ["train.en", "no such file", "did you mean train.de"]),
        (b"one\ntwo\n", b"eins\n", ["train.en", "2", "1"]),
        (b"one\n\xff\n", b"eins\nzwei\n", ["train.en:2", "UTF-8"]),
        (b"", b"", ["train.en", "empty"]),
    ],
    ids=["missing", "unequal", "not utf-8", "empty"],
)
def test_data_that_cannot_be_used(tmp_path: Path, english: bytes | None, german: bytes, parts: list[str]) -> None:
    if english is not None:
        (tmp_path / "train.en").write_bytes(english)
    (tmp_path / "train.de").write_bytes(german)
    runs = tmp_path / "runs"
    assert_one_line(nmt("train", *FILES, f"data.dir={tmp_path}", NMT_RUNS=str(runs)), *parts)
    assert not list(runs.rglob("prepared.json")), "nothing half-written"


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"one\n" * 1000)[:30])
    (tmp_path / "train.de").write_bytes(b"eins\n")
    words = [*FILES, "data.train.source=[train.en.gz]", f"data.dir={tmp_path}"]
    assert_one_line(nmt("train", *words, NMT_RUNS=str(tmp_path / "runs")), "train.en.gz")


def test_a_run_directory_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    assert nmt("train", *TINY, NMT_RUNS=str(tmp_path)).returncode == 0
    store = LocalRunStore(tmp_path)
    (run_id,) = store.list_runs()
    store.write_json(run_id, "result.json", (store.read_json(run_id, "result.json") or {}) | {"format_version": 2})
    assert_one_line(nmt("train", *TINY, NMT_RUNS=str(tmp_path)), "result.json", "format 2", "update this package")
    assert_one_line(nmt("evaluate", f"run={run_id}", "search=greedy", NMT_RUNS=str(tmp_path)), "format 2")


def test_runs_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_line(nmt("train", *TINY, NMT_RUNS=str(tmp_path / "file")), "file", "paths.")


def test_an_unreachable_tracking_store_does_not_stop_a_run(tmp_path: Path) -> None:
    words = [word for word in TINY if word != "tracking=none"]
    done = nmt(
        "train", *words, "tracking.uri=http://127.0.0.1:9", NMT_RUNS=str(tmp_path),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nmt sync" in done.stderr
    assert "Traceback" not in done.stderr
    assert LocalRunStore(tmp_path).read_json(LocalRunStore(tmp_path).list_runs()[0], "result.json") is not None


SCRIPTS = [path for path in sorted((ROOT / "scripts").glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_a_misspelt_word_of_a_script_is_said_in_one_line(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "mispelt=1"]
    if script == "bench_peers.py":
        command.append(f"environments={tmp_path / 'installed'}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert_one_line(done, "mispelt: unknown key")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was installed first
