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
        timeout=120,
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


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_a_misspelt_word_of_a_script_is_said_in_one_line(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "mispelt=1"]
    if script == "bench_peers.py":
        command.append(f"environments={tmp_path / 'installed'}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert_one_line(done, "mispelt: unknown key")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was installed first
