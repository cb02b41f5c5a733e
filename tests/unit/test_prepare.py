"""Prepared data: what is kept, what the cache is keyed by, and what a bad corpus leaves behind."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nmt.config import RunConfig, compose
from nmt.data import prepare as preparation
from nmt.data import ragged
from nmt.data.prepare import SIDES, SPLITS, TOKENIZER_FILES, load_tokenizers, preparation_key, prepare
from nmt.errors import UserError

TRAIN = [
    ("A  Man runs .", "Ein Mann rennt ."),
    ("", "leer"),
    ("nothing", "  "),
    ("one two three four five six seven", "eins zwei"),
    ("a b c d", "e"),
    ("e\u0301 dog", "\u00e9in hund"),
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six training pairs (two with an empty side, one long, one lopsided), two to validate, two to test."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for split, pairs in {
        "train": TRAIN,
        "validation": [("A Man", "Ein  Mann"), ("x " * 30, "")],
        "test": [("", "Leer"), ("dog runs", "Hund\u2028rennt")],
    }.items():
        for side, name in enumerate(("source", "target")):
            lines = "".join(pair[side] + "\n" for pair in pairs)
            (directory / f"{split}.{name}").write_bytes(lines.encode())
    return directory


def config_of(corpus: Path, *overrides: str) -> RunConfig:
    return compose(["data=files", f"data.dir={corpus}", "tokenizer=whitespace", "tokenizer.vocab_size=30", *overrides])


def words(corpus: Path, *overrides: str) -> list[str]:
    prepared = prepare(config_of(corpus, *overrides))
    return [prepared.source_tokenizer.decode(sentence.tolist()) for sentence in prepared.train.source]


def test_training_text_is_cleaned_and_filtered_and_counted(corpus: Path) -> None:
    config = config_of(corpus, "data.max_length=6", "data.max_ratio=3")
    prepared = prepare(config)
    assert words(corpus, "data.max_length=6", "data.max_ratio=3") == ["A Man runs .", "\u00e9 dog"]
    report = prepared.report["train"]
    assert report["read"] == 6 and report["kept"] == len(prepared.train) == 2
    assert report["dropped"] == {"empty": 2, "overlong": 1, "ratio": 1} and report["truncated"] == 0
    assert (report["source_tokens"], report["target_tokens"]) == (6, 6)


def test_overlong_pairs_are_truncated_where_asked(corpus: Path) -> None:
    overrides = ["data.overlong=truncate", "data.max_length=3"]
    assert words(corpus, *overrides) == ["A Man runs", "one two three", "a b c", "\u00e9 dog"]
    report = prepare(config_of(corpus, *overrides)).report["train"]
    assert report["truncated"] == 3 and report["dropped"]["overlong"] == 0


def test_case_and_limit(corpus: Path) -> None:
    assert words(corpus, "data.lowercase=true", "data.max_sentences=3") == ["a man runs ."]


def test_validation_and_test_stay_whole_and_references_raw(corpus: Path) -> None:
    prepared = prepare(config_of(corpus, "data.max_length=4", "data.max_ratio=2", "data.lowercase=true"))
    assert (len(prepared.validation), len(prepared.test)) == (2, 2)
    assert prepared.validation.target_text == ["Ein  Mann", ""]
    assert prepared.test.target_text == ["Leer", "Hund\u2028rennt"]
    assert prepared.test.source_text == ["", "dog runs"]
    assert prepared.validation.source_lengths.tolist() == [2, 30]
    assert prepared.test.source_lengths.tolist() == [0, 2]
    assert prepared.train.target_text == []


def test_a_second_call_reads_the_cache(corpus: Path) -> None:
    config = config_of(corpus)
    calls: list[str] = []
    first = prepare(config, lambda stage, done, total: calls.append(stage))
    assert {"learning the vocabulary", "encoding training text"} <= set(calls)
    calls.clear()
    second = prepare(config, lambda stage, done, total: calls.append(stage))
    assert calls == []
    assert second.fingerprint == first.fingerprint and second.report == first.report
    assert isinstance(second.train.source.flat, np.memmap)  # type: ignore[attr-defined]
    assert second.train.source[0].dtype == np.int32
    assert [a.tolist() for a in second.train.target] == [a.tolist() for a in first.train.target]


def test_the_key_follows_what_matters_and_nothing_else(corpus: Path, tmp_path: Path) -> None:
    key = preparation_key(config_of(corpus))
    for same in ("seed=7", "batch.size=3", "model.encoder.layers=2", "search=greedy", "training.max_steps=9"):
        assert preparation_key(config_of(corpus, same)) == key
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved)
    assert preparation_key(config_of(moved)) == key
    different = [key]
    for other in ("data.max_length=9", "data.lowercase=true", "tokenizer.vocab_size=31", "data.max_sentences=3"):
        different.append(preparation_key(config_of(corpus, other)))
    for file in ("train.target", "test.source", "test.target"):
        (moved / file).write_bytes((moved / file).read_bytes() + b" x")
        different.append(preparation_key(config_of(moved)))
    assert len(set(different)) == len(different)


def test_the_fingerprint_is_of_the_content(corpus: Path, tmp_path: Path) -> None:
    """Keys that change no bit of the outcome change no fingerprint, nor does another test text: training reads none."""
    plain = prepare(config_of(corpus)).fingerprint
    assert prepare(config_of(corpus, "data.max_length=40")).fingerprint == plain
    assert prepare(config_of(corpus, "tokenizer.vocab_size=29")).fingerprint != plain
    (corpus / "test.target").write_text("Leer!\nHund rennt\n")
    assert prepare(config_of(corpus)).fingerprint == plain
    lines = (corpus / "validation.target").read_text().splitlines()
    (corpus / "validation.target").write_text("\n".join(["Leer!", *lines[1:]]) + "\n")
    assert prepare(config_of(corpus)).fingerprint != plain


def test_joint_and_separate_vocabularies(corpus: Path, tmp_path: Path) -> None:
    joint, separate = (prepare(config_of(corpus, f"tokenizer.joint={joint}")) for joint in ("true", "false"))
    assert joint.source_tokenizer is joint.target_tokenizer
    assert separate.source_tokenizer is not separate.target_tokenizer
    assert set(joint.report["tokenizer"]) == {"joint"} and set(separate.report["tokenizer"]) == {"source", "target"}
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(separate.directory / name, kept)
    source, target = load_tokenizers(kept)
    assert source.encode("A Man") == separate.source_tokenizer.encode("A Man")
    assert target.encode("Ein Mann") == separate.target_tokenizer.encode("Ein Mann")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.max_length=1"], r"none of 6 training pairs is left .*2 empty, 4 overlong.*raise data\.max_length"),
        (["tokenizer=spm_bpe_4k", "tokenizer.vocab_size=4000"], r"tokenizer\.vocab_size: 4000 pieces"),
        (["data.train={source: [train.source], target: [test.target]}"], r"data\.train: .* 6 lines and .* 2"),
    ],
)
def test_a_failed_preparation_leaves_nothing(corpus: Path, overrides: list[str], message: str) -> None:
    config = config_of(corpus, *overrides)
    with pytest.raises(UserError, match=message):
        prepare(config)
    assert [path.name for path in Path(config.paths.runs, ".prepared").iterdir() if path.suffix != ".lock"] == []


def test_only_what_is_read_again_is_kept(corpus: Path) -> None:
    prepared = prepare(config_of(corpus))
    names = {f"{split}.{side}.{part}.npy" for split in SPLITS for side in SIDES for part in ("tokens", "offsets")}
    names |= {"prepared.json", "validation.text.json", "test.text.json", *TOKENIZER_FILES}
    assert {path.name for path in prepared.directory.iterdir()} == names


def test_only_empty_pairs(corpus: Path) -> None:
    (corpus / "train.source").write_text("\n" * 6)
    with pytest.raises(UserError, match=r"none of 6 training pairs is left after cleaning \(6 empty\)"):
        prepare(config_of(corpus))


def test_damaged_prepared_data_is_made_again(corpus: Path) -> None:
    config = config_of(corpus)
    first = prepare(config)
    tokens = first.directory / "train.source.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-8])
    assert prepare(config).fingerprint == first.fingerprint
    (first.directory / TOKENIZER_FILES[0]).unlink()
    assert prepare(config).fingerprint == first.fingerprint


def test_a_cache_that_cannot_be_written(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"prepared data cannot be written: .*paths\.cache"):
        prepare(config_of(corpus, f"paths.cache={tmp_path}/file/cache"))


@pytest.mark.parametrize(
    "tokenizer",
    [
        ["tokenizer=whitespace", "tokenizer.vocab_size=120"],
        ["tokenizer=bpe32k", "tokenizer.merges=30", "tokenizer.vocab_size=200"],
        ["tokenizer=spm_bpe_4k", "tokenizer.vocab_size=60", "tokenizer.dropout=0.1"],
    ],
    ids=lambda words: words[0],
)
def test_memory_does_not_grow_with_the_corpus(
    corpus: Path, tokenizer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peaks of n and of 4n sentences over the same words differ by less than a number a sentence.

    SentencePiece's own memory, which is not seen here, is bounded by what it is given: see the tests of tokenizers.
    """
    monkeypatch.setattr(ragged, "_BLOCK", 2**8)  # as a large corpus sees them: many
    monkeypatch.setattr(preparation, "_READ_AT_ONCE", 2**8)
    config, draw = config_of(corpus, *tokenizer), random.Random(0)
    types = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(100)]

    def peak(sentences: int) -> int:
        for side in ("source", "target"):
            lines = (" ".join(draw.choices(types, k=12)) + "\n" for _ in range(sentences))
            (corpus / f"train.{side}").write_text("".join(lines))
        tracemalloc.start()
        try:
            prepared = prepare(config)
            assert len(prepared.train) == sentences
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # what is imported and made once
    fewer, more = 250, 1000
    assert peak(more) - peak(fewer) < 8 * (more - fewer)


def test_the_default_data_is_prepared_whole() -> None:
    prepared = prepare(compose([]))
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (8000, 200, 500)
    assert prepared.report["train"]["source_unknown"] == prepared.report["test"]["target_unknown"] == 0
    assert prepared.source_tokenizer.size == prepared.target_tokenizer.size == 200


def test_multi30k(multi30k: Path) -> None:
    """Real text through SentencePiece: every validation sentence is there, whole, and comes back."""
    prepared = prepare(
        compose(["data=multi30k_en_de", f"data.dir={multi30k}", "tokenizer=spm_bpe_4k", "tokenizer.vocab_size=1000",
                 "data.max_sentences=3000", "data.lowercase=true"])
    )  # fmt: skip
    assert (len(prepared.validation), len(prepared.test)) == (1014, 1000)
    assert prepared.target_tokenizer.size == 1000
    known = [i for i, ids in enumerate(prepared.test.target) if 0 not in ids]
    assert len(known) > 990
    for i in known:
        text = prepared.target_tokenizer.decode(prepared.test.target[i].tolist())
        assert text == " ".join(prepared.test.target_text[i].lower().split())
