"""The built-in corpora."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest

from nmt.config import compose
from nmt.config.schema import DataConfig
from nmt.data.corpus import ParallelText, RawCorpus, load_corpus
from nmt.data.toy import Draws
from nmt.data.toy_languages import CLASSES, PLURAL, SINGULAR, Languages
from nmt.data.toy_reports import CERTAIN, HEARSAY
from nmt.errors import UserError

NAMES = ("toy_copy", "toy_reverse", "toy_summarisation", "toy_translation")
BY_LENGTH = tuple(name for name in NAMES if name != "toy_summarisation")


@cache
def corpus_of(name: str, *overrides: str) -> RawCorpus:
    return load_corpus(compose([f"data={name}", *overrides]).data)


def splits(corpus: RawCorpus) -> list[ParallelText]:
    return [corpus.train, corpus.validation, corpus.test]


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("toy_copy", "a817af2fb4a646f0"),
        ("toy_reverse", "c56e1964fd2603d9"),
        ("toy_translation", "767dcd7bc24c5cf8"),
        ("toy_summarisation", "0b66864a875d49c0"),
    ],
)
def test_bytes_are_the_same_everywhere(name: str, sha256: str) -> None:
    """A change here changes the text behind every published number of this corpus: raise `data.version` with it."""
    lines = [line for split in splits(corpus_of(name)) for side in (split.source, split.target) for line in side]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == sha256


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_occurs_twice(name: str) -> None:
    corpus = corpus_of(name)
    sources = [line for split in splits(corpus) for line in split.source]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_sizes_and_lengths_are_as_asked(name: str) -> None:
    corpus = corpus_of(
        name, "data.options.train_size=300", "data.options.validation_size=20", "data.options.test_size=30",
        "data.options.min_length=9", "data.options.max_length=12",
    )  # fmt: skip
    assert [len(split) for split in splits(corpus)] == [300, 20, 30]
    assert {len(line.split()) for split in splits(corpus) for line in split.source} == {9, 10, 11, 12}


@pytest.mark.parametrize("name", NAMES)
def test_more_training_text_changes_no_other_split(name: str) -> None:
    few, many = (corpus_of(name, f"data.options.train_size={size}") for size in (100, 200))
    assert few.test == many.test and few.validation == many.validation
    assert few.train.source == many.train.source[:100]


def test_targets_copy_and_reverse() -> None:
    copy, reverse = corpus_of("toy_copy").train, corpus_of("toy_reverse").train
    assert copy.source == copy.target == reverse.source
    assert all(t.split() == s.split()[::-1] for s, t in zip(reverse.source, reverse.target, strict=True))
    assert len({word for line in copy.source for word in line.split()}) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.options.train_size=0"], "0 is no integer >= 1"),
        (["data.options.train_size=many"], "many is no integer"),
        (["data.options.min_length=30"], "30 is above max_length 20"),
        (["data.options.vocabulary=2", "data.options.max_length=5"], "too few different sentences"),
    ],
)
def test_options_that_make_no_corpus(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus_of("toy_copy", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.options.min_sentences=3"], "min_sentences: 3 is too few for a report; allowed: >= 4"),
        (["data.options.min_sentences=9"], "9 is above max_sentences 6"),
        (["data.options.min_length=3"], "min_length: unknown option"),
    ],
)
def test_options_that_make_no_report(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus_of("toy_summarisation", *options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.options\.lenght: unknown option; allowed: .*max_length"):
        load_corpus(DataConfig(generator="toy_copy", options={"lenght": 3}))


def languages() -> Languages:
    return Languages(Draws("lexicon", 0))


def test_every_target_sentence_follows_the_grammar() -> None:
    """An independent reading of target sentences: order, agreement of articles and adjectives, number of verbs."""
    known = languages()
    nouns = {}
    for noun in [*known.nouns, *known.ambiguous]:
        for stem, noun_class in zip(noun.target, noun.noun_class, strict=True):
            nouns[stem] = (noun_class, SINGULAR)
            nouns[stem + ("n", "ri", "l")[noun_class]] = (noun_class, PLURAL)
    articles = {word: (key[1], key[2]) for key, word in known.target_articles.items()}
    adjectives = {stem + ("k", "sh", "m")[c]: c for _, stem in known.adjectives for c in range(CLASSES)}
    verbs = {verb.target + ending: n for verb in known.verbs for n, ending in enumerate(("t", "nd"))}
    adverbs, postpositions, conjunctions = (
        {target for _, target in words} for words in (known.adverbs, known.prepositions, known.conjunctions)
    )
    for line in corpus_of("toy_translation").test.target:
        words = line.split()
        if words[0] in adverbs:
            words = words[1:]
        clauses: list[list[str]] = [[]]
        for word in words:
            if word in conjunctions:
                clauses.append([])
            else:
                clauses[-1].append(word)
        for clause in clauses:
            heads: list[tuple[int, int]] = []  # class and number of each noun that no postposition follows
            agreeing: tuple[int, int] | None = None
            for word in clause[:-1]:
                if word in articles:
                    agreeing = articles[word]
                elif word in nouns:
                    assert agreeing in (None, nouns[word]), line
                    assert agreeing or nouns[word][1] == PLURAL, line  # only indefinite plurals have no article
                    heads.append(nouns[word])
                    agreeing = None
                elif word in postpositions:
                    heads.pop()
                else:
                    assert adjectives[word] == heads[-1][0], line
            assert len(heads) == 2, line
            assert verbs[clause[-1]] == heads[0][1], line


def test_an_ambiguous_noun_means_what_the_verb_makes_of_it() -> None:
    known, train = languages(), corpus_of("toy_translation").train
    verbs = {verb.source: verb.kind for verb in known.verbs}
    conjunctions = {source for source, _ in known.conjunctions}
    meanings = set()
    for source, target in zip(train.source, train.target, strict=True):
        kinds = {verbs[word] for word in source.split() if word in verbs}
        if len(kinds) == 1 and not conjunctions & set(source.split()):
            (kind,) = kinds
            for noun in known.ambiguous:
                if {noun.source, noun.source + "s"} & set(source.split()):
                    stems = {word for word in target.split() if word.startswith(noun.target[kind])}
                    others = {word for word in target.split() if word.startswith(noun.target[1 - kind])}
                    assert stems and not others
                    meanings.add((noun.source, kind))
    assert len(meanings) == 2 * len(known.ambiguous)  # each noun in each meaning


def test_reordering_and_vocabulary() -> None:
    train = corpus_of("toy_translation").train
    types = [len({word for line in side for word in line.split()}) for side in (train.source, train.target)]
    assert 100 <= types[0] <= 197 and 150 <= types[1] <= 197
    assert any(len(s.split()) != len(t.split()) for s, t in zip(train.source, train.target, strict=True))


def sentences_of(report: str) -> list[list[str]]:
    *sentences, rest = report.split(" .")
    assert rest == ""
    return [sentence.split() for sentence in sentences]


def test_a_summary_follows_from_its_report_and_from_nothing_less() -> None:
    """An independent reader: the one certain event, and the state of its thing; a rumour would give another summary."""
    corpus = corpus_of("toy_summarisation")
    positions = set()
    for report, summary in zip(corpus.test.source, corpus.test.target, strict=True):
        sentences = sentences_of(report)
        states = {words[1]: words[3] for words in sentences if words[0] == "the"}
        events = {words[0]: words[1:] for words in sentences if words[0] in (*CERTAIN, *HEARSAY)}
        told = {
            credit: " ".join([*words[:3], states[words[3]], *words[3:]])  # name verb the [state] thing in place
            for credit, words in events.items()
        }
        (certain,) = set(CERTAIN) & set(told)
        assert told.pop(certain) == summary
        assert told and summary not in told.values()
        positions.add([words[0] for words in sentences].index(certain))
    assert positions == set(range(6)), "the news may stand anywhere"


def test_reports_have_as_many_sentences_as_asked() -> None:
    options = ["data.options.min_sentences=7", "data.options.max_sentences=12", "data.options.train_size=300"]
    counts = {len(sentences_of(report)) for report in corpus_of("toy_summarisation", *options).train.source}
    assert counts == set(range(7, 13))


def test_reports_fit_the_vocabulary_of_the_built_in_corpora() -> None:
    train = corpus_of("toy_summarisation").train
    for side in (train.source, train.target):
        assert len({word for line in side for word in line.split()}) <= 197
