"""`nmt vocabulary` as a user types it, and a training with what it wrote."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import pytest

from nmt.cli import main

TEXT = "{source: [text], target: [text]}"
CORPUS = ["data=files", f"data.train={TEXT}", f"data.validation={TEXT}", "data.test={source: [], target: []}",
          "tokenizer=whitespace", "tokenizer.joint=true"]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text("The cat sat\nthe  dog sat\n")
    return tmp_path / "text"


def test_from_standard_input(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b a\r\nb\n")))
    assert main(["vocabulary", "delimiter="]) == 0
    assert capfd.readouterr() == ("b\t2\n \t1\na\t1\n", "")


def test_files_to_a_file_and_on_to_a_training(text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    packed, out = tmp_path / "more.gz", tmp_path / "vocabulary"
    packed.write_bytes(gzip.compress(b"A cat\n"))
    assert main(["vocabulary", f"input={text},{packed}", f"output={out}", "downcase=true", "min_frequency=2"]) == 0
    assert out.read_text() == "cat\t2\nsat\t2\nthe\t2\n"
    given = [*CORPUS, f"data.dir={tmp_path}", "tokenizer.vocab_size=6", f"tokenizer.source_vocabulary={out}"]
    assert main(["vocabulary", *given]) == 0
    shown = capfd.readouterr().out
    assert "joint vocabulary (whitespace): 6 rows, 3 types, 0 types beyond size, 0 unused rows" in shown
    assert any(line.startswith("train       source           2            6         2  33.33 %") for line in
               shown.splitlines()), shown  # fmt: skip
    assert main(["train", *given, "scale=smoke", "device=cpu", "threads=1", "tracking=none", "batch.size=2"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=missing"], "error: input=missing: cannot be read: No such file or directory"),
        (["min_frequency=0"], "error: min_frequency: 0 is out of range; allowed: >= 1"),
        (["data=toy_copy", "max_size=4"], "error: max_size: goes with plain text, and data=toy_copy asks for"),
        (["tokenizr=character"], "did you mean tokenizer"),
        (["data=toy_copy", "tokenizer.source_vocabulary=missing"], "error: source_vocabulary=missing: cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["vocabulary", *words]) == 2
    line = capfd.readouterr().err
    assert message in line and line.count("\n") == 1, line
