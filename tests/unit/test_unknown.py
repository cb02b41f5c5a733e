"""UNK replacement: which source word stands in, dictionaries, the way back to text, identity and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_tokenizer import KINDS, TEXT, trained

from nmt.config import compose, decode_id, train_id
from nmt.config.schema import DataConfig, SearchConfig, TokenizerConfig
from nmt.data.vocabulary import EOS, UNK, UNKNOWN_TEXT
from nmt.errors import UserError
from nmt.evaluation.postprocess import Postprocessor
from nmt.evaluation.unknown import read_dictionary, stand_ins
from nmt.search.beam import Hypothesis

WEIGHTS = torch.tensor(
    [
        [0.1, 0.6, 0.2, 0.1],
        [0.1, 0.1, 0.2, 0.6],  # EOS has the most, and does not count
        [0.4, 0.4, 0.1, 0.1],  # of equals the first
    ]
)


def test_the_source_word_with_the_most_attention_stands_in() -> None:
    assert stand_ins(WEIGHTS, ["ein", "Hund", "rennt"], {}) == ["Hund", "rennt", "ein"]


def test_a_dictionary_is_asked_first() -> None:
    assert stand_ins(WEIGHTS, ["ein", "Hund", "rennt"], {"Hund": "dog", "Katze": "cat"}) == ["dog", "rennt", "ein"]


@pytest.mark.parametrize(
    ("content", "entries"),
    [
        ("Hund\tdog\nein\ta\n", {"Hund": "dog", "ein": "a"}),
        ("Hund dog\n\nein  a\n", {"Hund": "dog", "ein": "a"}),
        ("Hund\thot dog\r\n", {"Hund": "hot dog"}),
        ("Hund\tdog\t-2.5\nHund\thound\t-0.5\nHund\tpet\t-0.5\n", {"Hund": "hound"}),
        ("Hund\tdog\nHund\thound\n", {"Hund": "dog"}),
        ("Hund\tdog\nHund\thound\t-9\n", {"Hund": "hound"}),
    ],
)
def test_dictionaries_as_fast_align_and_people_write_them(
    tmp_path: Path, content: str, entries: dict[str, str]
) -> None:
    path = tmp_path / "lexicon"
    path.write_bytes(content.encode())
    assert read_dictionary(str(path)) == entries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\nHund\n", ":2: is not `source<tab>target`"),
        ("Hund\t\n", ":1: is not"),
        ("a b c d\n", ":1: is not"),
        ("Hund\tdog\tvery\n", ":1: 'very' is no logarithmic probability"),
    ],
)
def test_what_is_no_dictionary_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "lexicon"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path}{message}"):
        read_dictionary(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        read_dictionary(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_the_rows_of_a_line(kind: str) -> None:
    tokenizer = trained(KINDS[kind])
    for line in [*TEXT, "the ß tower", "Zzyzx"]:
        rows, segments = tokenizer.encode(line), tokenizer.segment(line)
        assert len(rows) == len(segments)
        assert all(row == UNK or tokenizer.token(row) == segment for row, segment in zip(rows, segments, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_own_segments_instead_of_unk_a_line_comes_back(kind: str) -> None:
    tokenizer = trained(KINDS[kind])
    for line in [*TEXT, "the ß tower", "Zzyzx ß new"]:
        rows = tokenizer.encode(line)
        assert tokenizer.decode([*rows, EOS], [*tokenizer.segment(line), "never seen"]) == line


def test_only_unk_is_replaced() -> None:
    tokenizer = trained(KINDS["whitespace"])
    rows = [tokenizer.encode("tower")[0], UNK, tokenizer.encode("new")[0]]
    assert tokenizer.decode(rows) == f"tower {UNKNOWN_TEXT} new"
    assert tokenizer.decode(rows, ["x", "y", "z"]) == "tower y new"


def test_names_that_neither_vocabulary_holds_come_through() -> None:
    tokenizer = trained(TokenizerConfig(name="whitespace", vocab_size=40))
    data = DataConfig(lowercase=True)
    post = Postprocessor(tokenizer, tokenizer, data, SearchConfig(replace_unknown=True))
    line = "the  Gargantua tower"
    assert post.needs_attention
    assert post.source_tokens(line) == ["the", "gargantua", "tower"]
    tokens = (*tokenizer.encode("new"), UNK, UNK)
    assert post.text(Hypothesis(tokens, 0.0, 0.0, WEIGHTS), line) == "new tower the"
    assert post.text(Hypothesis(tokens, 0.0, 0.0, WEIGHTS.roll(1, 1)), line) == "new the gargantua"
    assert post.text(Hypothesis((), 0.0, 0.0, torch.zeros(0, 4)), line) == ""
    plain = Postprocessor(tokenizer, tokenizer, data, SearchConfig())
    assert not plain.needs_attention
    assert plain.text(Hypothesis(tokens, 0.0, 0.0), line) == f"new {UNKNOWN_TEXT} {UNKNOWN_TEXT}"


def test_what_a_dictionary_holds_is_part_of_a_decoding_and_not_where_it_lies(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "same", "other")]
    for path, content in zip(paths, ("a\tb\n", "a\tb\n", "a\tc\n"), strict=True):
        path.write_text(content)
    plain = compose([])
    configs = [compose(["search.replace_unknown=true", f"search.dictionary={path}"]) for path in paths]
    one, same, other = (decode_id("checkpoint", config) for config in configs)
    assert one == same != other
    assert one != decode_id("checkpoint", compose(["search.replace_unknown=true"]))
    assert {train_id(config) for config in configs} == {train_id(plain)}
    gone = dataclasses.replace(configs[0].search, dictionary=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"dictionary=.*gone: cannot be read"):
        decode_id("checkpoint", dataclasses.replace(configs[0], search=gone))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=t5_none_state", "search.replace_unknown=true"], "search.replace_unknown: attention 'none_state'"),
        (["search.dictionary=lexicon"], "search.dictionary: is asked only where UNK is replaced"),
        (["validation.search.dictionary=lexicon"], "validation.search.dictionary: is asked only"),
    ],
)
def test_what_cannot_be_replaced_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(overrides)
