"""Reading parallel text: what is accepted, and the one clear line for everything else."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from nmt.config import compose
from nmt.config.schema import DataConfig, SplitConfig
from nmt.data.corpus import content_checksums, load_corpus, locate, read_lines
from nmt.errors import UserError


def write(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """A small corpus in `tmp_path`: a.s/a.t and b.s.gz/b.t.gz to train on, v.s/v.t to validate."""
    for name, text in {
        "a.s": "one\ntwo\n", "a.t": "eins\nzwei\n", "b.s.gz": "three\n", "b.t.gz": "drei", "v.s": "v\n", "v.t": "w\n",
    }.items():  # fmt: skip
        write(tmp_path / name, text)
    return DataConfig(
        kind="files",
        dir=str(tmp_path),
        train=SplitConfig(source=["a.s", "b.s.gz"], target=["a.t", "b.t.gz"]),
        validation=SplitConfig(source=["v.s"], target=["v.t"]),
    )


def test_several_files_a_side_are_read_one_after_the_other(data: DataConfig) -> None:
    corpus = load_corpus(data)
    assert list(corpus.train) == list(corpus.train) == [("one", "eins"), ("two", "zwei"), ("three", "drei")]
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (3, 1, 0)
    assert (corpus.validation.source, corpus.validation.target) == (["v"], ["w"])


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\u2028b\x85c\x0bd\n", ["a\u2028b\x85c\x0bd"]),  # str.splitlines would make four of it
        ("\ufeffa\n", ["a"]),
        ("\n", [""]),
        ("\ufeff\n\ufeffa\r\r", ["", "\ufeffa\r"]),
    ],
)
def test_only_a_newline_ends_a_line(tmp_path: Path, content: str, lines: list[str]) -> None:
    assert read_lines(write(tmp_path / "x", content)) == lines
    assert read_lines(write(tmp_path / "x.gz", content)) == lines


def test_bytes_that_are_not_utf8_are_told_by_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gz", b"fine\nalso fine\nf\xfcr\n")
    with pytest.raises(UserError, match=r"x\.gz:3: byte 0xfc is not UTF-8"):
        read_lines(path)
    path = write(tmp_path / "x", b"fine\n\xe2\x82\nf\xfcr")  # a character that the line's end cuts in two
    with pytest.raises(UserError, match=r"x:2: byte 0xe2 is not UTF-8"):
        read_lines(path)


def test_every_line_is_looked_at_before_any_is_used(data: DataConfig, tmp_path: Path) -> None:
    write(tmp_path / "b.t.gz", b"dr\xffei")
    with pytest.raises(UserError, match=r"b\.t\.gz:1: byte 0xff is not UTF-8"):
        load_corpus(data)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gz", "some text that is long enough to be cut\n" * 100)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"plain text", whole[:-6] + b"\0\0\0\0\0\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.gz: (damaged gzip|is empty)"):
            read_lines(path)


def test_empty_files_are_refused(tmp_path: Path) -> None:
    for nothing in ("", "\ufeff"):
        with pytest.raises(UserError, match="x: is empty"):
            read_lines(write(tmp_path / "x", nothing))


def test_unequal_line_counts_name_both_files(data: DataConfig, tmp_path: Path) -> None:
    write(tmp_path / "a.t", "eins\n")
    with pytest.raises(UserError, match=r"data\.train: .*a\.s has 2 lines and .*a\.t 1"):
        load_corpus(data)


def test_a_missing_directory_says_how_to_get_the_corpus(tmp_path: Path) -> None:
    config = compose(["data=multi30k_en_de", f"data.dir={tmp_path}/nowhere"])
    with pytest.raises(UserError) as caught:
        load_corpus(config.data)
    assert caught.value.where == "data.dir"
    assert f"python scripts/fetch_corpus.py corpus=multi30k dir={tmp_path}/nowhere" in str(caught.value)


def test_a_missing_file_is_told_with_its_neighbours(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "a.s").rename(tmp_path / "a.s.gz")
    with pytest.raises(UserError, match=r"a\.s: there is no such file; did you mean .*a\.s\.gz"):
        load_corpus(data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "a.s").chmod(0)
    with pytest.raises(UserError, match=r"a\.s: cannot be read: Permission denied"):
        load_corpus(data)


def test_declared_checksums_are_those_of_the_raw_file(data: DataConfig, tmp_path: Path) -> None:
    right = hashlib.sha256((tmp_path / "b.s.gz").read_bytes()).hexdigest()
    assert len(load_corpus(replace(data, checksums={"b.s.gz": right})).train) == 3
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    with pytest.raises(UserError, match=rf"b\.s\.gz: has sha256 {right}.* declares {wrong}"):
        load_corpus(replace(data, checksums={"b.s.gz": wrong}))


def test_content_checksums_depend_on_content_and_not_on_the_directory(data: DataConfig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "a.s", "one\ntwo\n")
    here, there = (content_checksums(replace(data, dir=str(d)), ["a.s"]) for d in (tmp_path, elsewhere))
    assert here == there == {"a.s": hashlib.sha256(b"one\ntwo\n").hexdigest()}
    write(elsewhere / "a.s", "one\ntwo!\n")
    assert content_checksums(replace(data, dir=str(elsewhere)), ["a.s"]) != here


def test_absolute_names_need_no_directory(data: DataConfig, tmp_path: Path) -> None:
    assert locate(replace(data, dir=""), str(tmp_path / "a.s")) == tmp_path / "a.s"


def test_multi30k_is_as_published(multi30k: Path) -> None:
    """Loading verifies the declared sums of all six files."""
    corpus = load_corpus(compose(["data=multi30k_en_de", f"data.dir={multi30k}"]).data)
    assert [len(split) for split in (corpus.train, corpus.validation, corpus.test)] == [29_000, 1_014, 1_000]
    assert corpus.test.source[0] == "A man in an orange hat starring at something."
