"""Sentence statistics: their sums are the recorded scores, of any set of sentences."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nmt.config import load_run_config
from nmt.errors import UserError
from nmt.evaluation.catalogue import DECODED
from nmt.evaluation.metrics import score
from nmt.evaluation.sentence_statistics import corpus_scores, has_sentence_statistics, sentence_statistics
from nmt.runs import LocalRunStore
from sweeps.results import Replicate, read_replicate
from sweeps.sentences import hypotheses, references, sources, statistics_of

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TRANSLATION, SUMMARIES = "fe9b2b6d8607/s1", "05e03fd3a178/s1"


def replicate(run_id: str) -> Replicate:
    config = load_run_config(RESULTS / run_id / "config.yaml")
    return read_replicate(LocalRunStore(RESULTS), config, run_id)


@pytest.mark.parametrize(("run_id", "family"), [(TRANSLATION, ("bleu", "chrf", "ter")), (SUMMARIES, ("rouge",))])
def test_sums_of_the_statistics_are_the_scores_on_record(run_id: str, family: tuple[str, ...]) -> None:
    run = replicate(run_id)
    config = load_run_config(RESULTS / run_id / "config.yaml")
    correct = references(config)
    assert len(correct) == len(sources(config)) == run.sentences
    for name in (name for name in DECODED if name.startswith(family)):
        found = statistics_of(run, correct, config.data.target_language, name)
        assert float(corpus_scores(name, found.sum(axis=0))) == pytest.approx(run.metrics[name], abs=1e-10), name


HARD = [
    "",
    "a",
    "b c",
    "the cat sat on the mat",
    "ein Haus , ein Hund .",
    "x y z",
    "Ein kleines Haus am See.",
    "a b x y c d",
]
CORRECT = [
    "",
    "b",
    "",
    "the cat is on the mat",
    "Ein Haus, ein Hund.",
    "u v w",
    "Ein großes Haus am See!",
    "a b z z c d",
]


@pytest.mark.parametrize("name", DECODED)
def test_any_set_of_sentences_scores_as_sacrebleu_scores_it(name: str) -> None:
    statistics = sentence_statistics(HARD, CORRECT, "de", name)
    draws = np.random.default_rng(0)
    samples = [draws.integers(0, len(HARD), size) for size in (1, 1, 2, 3, 7, 20)] + [
        np.array(one) for one in ([0], [1, 5], [7])
    ]
    for sample in samples:
        theirs = score([HARD[i] for i in sample], [CORRECT[i] for i in sample], "de", [name])[name]
        weights = np.bincount(sample, minlength=len(HARD))
        assert float(corpus_scores(name, weights @ statistics)) == pytest.approx(theirs, abs=1e-9), (name, sample)
    together = np.stack([np.bincount(sample, minlength=len(HARD)) for sample in samples]) @ statistics
    assert corpus_scores(name, together).shape == (len(samples),)


def test_which_metrics_come_apart_into_sentences() -> None:
    assert all(map(has_sentence_statistics, DECODED))
    assert not has_sentence_statistics("token_accuracy")
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        sentence_statistics(["a", "b"], ["a"], "", "bleu")


def test_other_references_than_those_on_record_are_refused() -> None:
    run = replicate(TRANSLATION)
    correct = references(load_run_config(RESULTS / TRANSLATION / "config.yaml"))
    with pytest.raises(UserError, match=r"has bleu .* on these references, and 10\.7165 on record"):
        statistics_of(run, correct[1:] + correct[:1], "", "bleu")
    with pytest.raises(UserError, match="has 500 outputs, and there are 499 references"):
        statistics_of(run, correct[1:], "", "bleu")


def test_outputs_that_are_not_there_are_named() -> None:
    run = replicate(TRANSLATION)
    with pytest.raises(UserError, match="no decoding of the test split"):
        hypotheses(dataclasses.replace(run, decode_id=""))
    with pytest.raises(UserError, match="there are no outputs"):
        hypotheses(dataclasses.replace(run, decode_id="0" * 12))


def test_a_corpus_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    config = load_run_config(RESULTS / "5d2e91dfc261/s1/config.yaml")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(tmp_path / "absent")))
    with pytest.raises(UserError, match=r"data\.dir.*fetch_corpus\.py corpus=multi30k"):
        references(config)
