"""Tokenizers: sizes, specials, unknown tokens, the way back to text, and files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.config.schema import DataConfig, TokenizerConfig
from nmt.data.corpus import load_corpus
from nmt.data.tokenizer import Tokenizer, load_tokenizer, to_text, train_tokenizer
from nmt.data.vocabulary import EOS, SOS, UNK, Vocabulary
from nmt.errors import UserError

TEXT = [
    "the lower the newer", "a low new tower", "the widest newest tower", "lower and lower", "new towers are wide",
    "the tower is the newest", "wider towers", "a newer and lower tower", "the lowest of the low", "who knows the town",
] * 3  # fmt: skip
KINDS = {
    "sentencepiece_bpe": TokenizerConfig(name="sentencepiece_bpe", vocab_size=45),
    "sentencepiece_unigram": TokenizerConfig(name="sentencepiece_unigram", vocab_size=30),
    "bpe_merges": TokenizerConfig(name="bpe_merges", vocab_size=60, merges=20),
    "character": TokenizerConfig(name="character", vocab_size=30),
    "whitespace": TokenizerConfig(name="whitespace", vocab_size=40),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def trained(config: TokenizerConfig, text: list[str] = TEXT) -> Tokenizer:
    return train_tokenizer(config, lambda: text)[0]


@every_kind
def test_text_comes_back(kind: str) -> None:
    tokenizer = trained(KINDS[kind])
    for line in TEXT:
        assert tokenizer.decode(tokenizer.encode(line)) == line


@every_kind
def test_size_is_the_declared_one_and_specials_come_first(kind: str) -> None:
    tokenizer = trained(KINDS[kind])
    assert tokenizer.size == KINDS[kind].vocab_size
    assert [tokenizer.token(i) for i in (UNK, SOS, EOS)] == ["<unk>", "<s>", "</s>"]
    assert (UNK, SOS, EOS) == (0, 1, 2)
    assert len({tokenizer.token(i) for i in range(tokenizer.size)}) == tokenizer.size


@every_kind
def test_text_cannot_spell_a_special(kind: str) -> None:
    tokenizer = (
        trained(KINDS[kind], [*TEXT, "<s> the </s> <unk>"] * 2) if kind != "whitespace" else trained(KINDS[kind])
    )
    ids = tokenizer.encode("<s> the </s>")
    assert SOS not in ids and EOS not in ids


@every_kind
def test_what_was_never_seen_is_unknown(kind: str) -> None:
    tokenizer = trained(KINDS[kind])
    ids = tokenizer.encode("漢 the")
    assert UNK in ids
    assert "⁇" in tokenizer.decode(ids) and tokenizer.decode(ids).endswith("the")


@every_kind
def test_specials_inside_a_sequence_leave_no_text(kind: str) -> None:
    tokenizer = trained(KINDS[kind])
    ids = tokenizer.encode("the tower")
    assert tokenizer.decode([SOS, *ids, EOS]) == "the tower"
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("") == []


@every_kind
def test_a_saved_tokenizer_is_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(KINDS[kind])
    tokenizer.save(tmp_path / "t.json")
    again = load_tokenizer(tmp_path / "t.json")
    assert [again.token(i) for i in range(again.size)] == [tokenizer.token(i) for i in range(tokenizer.size)]
    for line in [*TEXT, "towering lows of knowledge, 漢"]:
        assert again.encode(line) == tokenizer.encode(line)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "t.json").read_bytes()


@every_kind
def test_training_twice_gives_the_same_bytes(kind: str) -> None:
    assert trained(KINDS[kind]).to_json() == trained(KINDS[kind]).to_json()


@every_kind
@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text(alphabet="abdehiklnorstw", min_size=1, max_size=12), max_size=8))
def test_any_text_of_known_characters_comes_back(kind: str, words: list[str]) -> None:
    if kind != "whitespace":  # which knows words, not characters; and subwords know the place of each in a word
        tokenizer = _known_characters(kind)
        assert tokenizer.decode(tokenizer.encode(" ".join(words))) == " ".join(words)


_cache: dict[str, Tokenizer] = {}


def _known_characters(kind: str) -> Tokenizer:
    if kind not in _cache:
        letters = "abdehiklnorstw"
        everywhere = [a + b for a in letters for b in letters]  # each letter inside words and at their end
        config = TokenizerConfig(name=kind, vocab_size=50, merges=5)
        _cache[kind] = trained(config, [*TEXT, " ".join(everywhere), " ".join(letters)])
    return _cache[kind]


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "sentencepiece_unigram"])
def test_sentencepiece_refuses_a_size_it_cannot_reach_and_names_the_largest(name: str) -> None:
    with pytest.raises(
        UserError, match=r"tokenizer\.vocab_size: 5000 pieces .* largest possible size is (\d+)"
    ) as error:
        trained(TokenizerConfig(name=name, vocab_size=5000))
    largest = int(str(error.value.hint).split("=")[1].split(",")[0])
    assert trained(TokenizerConfig(name=name, vocab_size=largest)).size == largest
    with pytest.raises(UserError):
        trained(TokenizerConfig(name=name, vocab_size=largest + 1))


def test_sentencepiece_refuses_a_size_below_the_characters() -> None:
    with pytest.raises(UserError, match=r"smallest possible size is \d+"):
        trained(TokenizerConfig(name="sentencepiece_bpe", vocab_size=8))


def test_sentencepiece_keeps_cleaned_text_as_it_is() -> None:
    """No second normalisation: NFKC would make "½" three characters, and rare characters have pieces."""
    line = "½ ﬁne ２ x"
    tokenizer = trained(TokenizerConfig(name="sentencepiece_bpe", vocab_size=45), [*TEXT, line])
    assert tokenizer.decode(tokenizer.encode(line)) == line


@given(
    st.lists(
        st.lists(
            st.text("abcdé", min_size=1, max_size=4) | st.sampled_from(["▁", "x▁", "▁▁y", "▅", "a▅", "<s>", "\0"])
        ),
        max_size=20,
    )
)
@settings(deadline=None, max_examples=40)
def test_bpe_learns_of_counted_words_what_it_learns_of_lines(sentences: list[list[str]]) -> None:
    """Among the words are some that the library treats apart."""
    _check_against_whole_lines([*TEXT, *map(" ".join, sentences)], 45)


def test_bpe_counts_spaces_that_are_written_as_signs() -> None:
    """A sign for a space is stripped at the end of a line and counts inside: 8 of them here, 7 times the letter b."""
    _check_against_whole_lines(["x▁ bbb b", "x▁ bb b"], 8)


def test_text_with_tabs_is_learned_from_line_by_line() -> None:
    _check_against_whole_lines(["a\tbb bb", "bb a\tb"], 9)


def _check_against_whole_lines(lines: list[str], size: int) -> None:
    """Compare with the library itself, given the lines."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=size, unk_id=UNK, bos_id=SOS,
        eos_id=EOS, pad_id=-1, character_coverage=1.0, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    expected = SentencePieceProcessor(model_proto=model.getvalue())
    found = trained(TokenizerConfig(name="sentencepiece_bpe", vocab_size=size), lines)
    assert [found.token(row) for row in range(size)] == [expected.id_to_piece(row) for row in range(size)]
    assert all(found.encode(line) == expected.encode(line) for line in lines)


def test_bpe_is_given_each_word_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library holds all that it is given, so that must not grow with the text."""
    from sentencepiece import SentencePieceTrainer

    given: list[str] = []
    train = SentencePieceTrainer.train

    def watched(sentence_iterator: Iterator[str], **options: object) -> None:
        lines = list(sentence_iterator)
        given.extend(lines)
        train(sentence_iterator=iter(lines), **options)

    monkeypatch.setattr(SentencePieceTrainer, "train", watched)
    trained(KINDS["sentencepiece_bpe"], TEXT * 50)
    assert sorted(line.split("\t")[0] for line in given) == sorted({word for line in TEXT for word in line.split()})


def test_the_rarest_types_go_and_ties_are_broken_by_spelling() -> None:
    counts = {"b": 2, "a": 2, "c": 5, "e": 1, "d": 1}
    vocabulary, report = Vocabulary.from_counts(counts, 6)
    assert [vocabulary.token(i) for i in range(3, 6)] == ["c", "a", "b"]
    assert report == {"types": 5, "types_beyond_size": 2, "unused_rows": 0}
    assert vocabulary.number("d") == UNK
    vocabulary, report = Vocabulary.from_counts(counts, 10)
    assert report == {"types": 5, "types_beyond_size": 0, "unused_rows": 2}
    assert (vocabulary.size, vocabulary.token(9)) == (10, "<unused 9>")
    with pytest.raises(IndexError):
        vocabulary.token(10)


def test_unused_rows_decode_as_unknown() -> None:
    """An untrained model may well emit one."""
    assert trained(TokenizerConfig(name="whitespace", vocab_size=500)).decode([499]) == "⁇"


def test_merges_are_learned_in_order_of_frequency() -> None:
    """The example of Sennrich et al. 2016: low 5, lower 2, newest 6, widest 3."""
    text = ["low " * 5, "lower " * 2, "newest " * 6, "widest " * 3]
    tokenizer, report = train_tokenizer(TokenizerConfig(name="bpe_merges", vocab_size=40, merges=3), lambda: text)
    assert tokenizer.to_json()["merges"] == ["s t</w>", "e st</w>", "l o"]  # 9, 9 and 7 times
    assert report["merges"] == 3
    assert [tokenizer.token(i) for i in tokenizer.encode("lowest")] == ["lo@@", "w@@", "est"]


def test_nothing_to_merge_is_said() -> None:
    with pytest.raises(UserError, match="nothing to merge"):
        trained(TokenizerConfig(name="bpe_merges", vocab_size=40, merges=5), ["a b c", "d"])


def test_moses_data_is_detokenised_on_the_way_to_text() -> None:
    line = "Mr. X doesn &apos;t know &quot; it &quot; ."
    tokenizer = trained(TokenizerConfig(name="whitespace", vocab_size=40), [line])
    ids = tokenizer.encode(line)
    assert to_text(tokenizer, ids, DataConfig(moses=True), "en") == 'Mr. X doesn\'t know "it".'
    assert to_text(tokenizer, ids, DataConfig(moses=False), "en") == line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"format_version": 99}, "has format 99"),
        (lambda data: data | {"name": "os.system"}, "unknown tokenizer 'os.system'"),
        (lambda data: [data], "is not a tokenizer file"),
        (lambda data: {}, "is not a tokenizer file"),
    ],
)
def test_a_tokenizer_file_that_is_none(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(change(trained(KINDS["whitespace"]).to_json())))
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


def test_toy_words_fit_their_tokenizer() -> None:
    """conf/tokenizer/toy_words.yaml promises that no word of the default corpus is lost."""
    corpus = load_corpus(DataConfig(generator="toy_translation"))
    for side in (corpus.train.source, corpus.train.target):
        _, report = train_tokenizer(TokenizerConfig(name="whitespace", vocab_size=200), lambda side=side: side)
        assert report["types_beyond_size"] == 0
