"""Vocabulary files: made of text, read as a tokenizer, part of a run's identity; and what a vocabulary covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.config import compose, train_id
from nmt.config.schema import RunConfig
from nmt.data.prepare import preparation_key, prepare
from nmt.data.vocabulary import SPECIALS, UNK, count_types, read_types, write_types
from nmt.errors import UserError
from nmt.vocabulary import SplitCoverage, coverage, describe

TEXT = ["b a b", "c b a", "Ω  a"]


def test_types_are_counted_and_ranked() -> None:
    counts = count_types(TEXT)
    assert counts == {"a": 3, "b": 3, "c": 1, "Ω": 1}
    assert list(write_types(counts)) == ["a\t3", "b\t3", "c\t1", "Ω\t1"]
    assert list(write_types(counts, min_frequency=3)) == ["a\t3", "b\t3"]  # at least: three times is enough
    assert list(write_types(counts, max_size=3)) == ["a\t3", "b\t3", "c\t1"]


def test_delimiters() -> None:
    assert count_types(["a b", "ab"], "") == {"a": 2, "b": 2, " ": 1}
    assert count_types(["a b|c||d"], "|") == {"a b": 1, "c": 1, "d": 1}


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary"
    counts = count_types(["a b \t", "7\t8"], "")
    path.write_text("".join(f"{line}\n" for line in write_types(counts)))
    assert set(read_types(str(path), "key")) == {"a", "b", " ", "\t", "7", "8"}
    path.write_text("the\t12\nof\n\x85x\t3\ntab\tword\t4\n")
    assert read_types(str(path), "key") == ["the", "of", "\x85x", "tab\tword"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\t1\na\t2\n", ":3: 'a' stands in line 1 already"),
        ("a\n\t4\n", ":2: holds no type"),
        ("a\n\nb\n", ":2: holds no type"),
        ("", "key=.*: is empty"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "vocabulary"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_types(str(path), "key")


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    return compose([
        "data=toy_copy", "data.options.train_size=30", "data.options.validation_size=5", "data.options.test_size=5",
        "data.options.vocabulary=5", "tokenizer=whitespace", f"paths.runs={tmp_path / 'runs'}", *overrides,
    ])  # fmt: skip


def test_a_given_vocabulary_is_the_tokenizer(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("w3\t9\nw1\t4\n")
    target.write_text("w0\nw1\nw2\nw3\nw4\nnever\n")
    files = [f"tokenizer.source_vocabulary={source}", f"tokenizer.target_vocabulary={target}"]
    prepared = prepare(config_of(tmp_path, "tokenizer.vocab_size=12", *files))
    assert prepared.source_tokenizer.encode("w1 w3 w2") == [len(SPECIALS) + 1, len(SPECIALS), UNK]
    assert prepared.target_tokenizer.encode("w4 never") == [len(SPECIALS) + 4, len(SPECIALS) + 5]
    assert prepared.source_tokenizer.size == prepared.target_tokenizer.size == 12
    assert prepared.report["tokenizer"]["source"]["unused_rows"] == 7
    assert prepared.report["train"]["source_unknown"] > 0 == prepared.report["train"]["target_unknown"]


def test_one_file_serves_both_sides_of_a_joint_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "characters"
    path.write_text(" \nw\n0\n1\n")
    overrides = ["tokenizer=character", "tokenizer.vocab_size=9", f"tokenizer.source_vocabulary={path}"]
    prepared = prepare(config_of(tmp_path, *overrides))
    assert prepared.source_tokenizer is prepared.target_tokenizer
    assert prepared.target_tokenizer.decode(prepared.source_tokenizer.encode("w1 w0")) == "w1 w0"


def test_the_content_counts_and_not_the_path(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_text("w1\n")
    same.write_text("w1\n")
    other.write_text("w2\n")
    configs = [config_of(tmp_path, f"tokenizer.source_vocabulary={path}") for path in (one, same, other)]
    for identity in (train_id, preparation_key):
        found = [identity(config) for config in configs]
        assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.vocab_size=4"], r"2 types and 3 specials do not fit 4 rows; tokenizer.vocab_size=5"),
        (["tokenizer=spm_bpe_4k"], "'sentencepiece_bpe' learns where to cut"),
        (["tokenizer.joint=true", "tokenizer.target_vocabulary=x"], "one vocabulary serves both sides"),
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "vocabulary"
    path.write_text("w1\nw2\n")
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, *overrides, f"tokenizer.source_vocabulary={path}"))


def test_coverage_by_hand(tmp_path: Path) -> None:
    """Lengths 1 to 4, once each; `c` is not in the vocabulary of the source."""
    for side in ("source", "target"):
        (tmp_path / side).write_text("a\na b\na b c\na b c c\n")
    (tmp_path / "types").write_text("a\nb\n")
    config = compose([
        "data=files", f"data.dir={tmp_path}", "data.train={source: [source], target: [target]}",
        "data.validation={source: [source], target: [target]}", "data.test={source: [], target: []}",
        "tokenizer=whitespace", f"tokenizer.source_vocabulary={tmp_path / 'types'}", "data.max_length=3",
        f"paths.runs={tmp_path / 'runs'}",
    ])  # fmt: skip
    prepared = prepare(config)
    found = coverage(prepared)
    assert found == [
        SplitCoverage("train", "source", 3, 6, 1, (2, 3, 3, 3)),
        SplitCoverage("train", "target", 3, 6, 0, (2, 3, 3, 3)),
        SplitCoverage("validation", "source", 4, 10, 3, (2, 4, 4, 4)),
        SplitCoverage("validation", "target", 4, 10, 0, (2, 4, 4, 4)),
    ]
    assert found[2].unknown_rate == pytest.approx(30.0)
    text = describe(config, prepared)
    assert "source vocabulary (whitespace): 10,000 rows, 2 types" in text
    assert "4 read, 3 kept" in text and "1 overlong" in text and "30.00 %" in text
