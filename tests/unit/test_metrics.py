from __future__ import annotations

from pathlib import Path

import pytest
import sacrebleu

from nmt.evaluation.catalogue import DECODED, METRICS, decoded_during_training
from nmt.evaluation.metrics import score

PERFECT = {name: 0.0 if METRICS[name].lower_is_better else 100.0 for name in DECODED}

REFERENCES = [
    "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
    "Leute reparieren das Dach eines Hauses.",
    "Fünf Leute in Winterjacken und mit Helmen stehen im Schnee.",
]
HYPOTHESES = [
    "ein Mann mit orangefarbenem Hut, der etwas anstarrt.",
    "Leute reparieren das Dach eines Hauses.",
    "Fünf Personen mit Helmen stehen im Schnee!",
]


def test_figures_are_those_of_the_sacrebleu_functions() -> None:
    found = score(HYPOTHESES, REFERENCES, "de")
    assert found["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert found["bleu_lc"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], lowercase=True).score
    assert found["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert found["bleu"] < found["bleu_lc"]
    assert found["bleu_tok"] < found["bleu_tok_lc"]


def test_tokenised_figures_cut_punctuation_off() -> None:
    """By hand: one sentence of 7 tokens, the last of them wrong."""
    found = score(["Das Haus, das ich sah!"], ["Das Haus, das ich sah."], "de")
    precisions = (6 / 7, 5 / 6, 4 / 5, 3 / 4)
    product = 1.0
    for precision in precisions:
        product *= precision
    assert found["bleu_tok"] == pytest.approx(100 * product**0.25)


def test_a_perfect_text_has_the_best_score_everywhere() -> None:
    found = score(REFERENCES, REFERENCES, "de")
    assert {name: found[name] for name in DECODED} == pytest.approx(PERFECT)


def test_case_counts_only_in_cased_figures() -> None:
    found = score([text.upper() for text in REFERENCES], REFERENCES, "de")
    assert found["bleu_lc"] == pytest.approx(100.0)
    assert found["bleu_tok_lc"] == pytest.approx(100.0)
    assert found["bleu"] < 50
    assert found["bleu_tok"] < 50


def test_signatures_say_how_each_figure_came_about() -> None:
    signatures = score(HYPOTHESES, REFERENCES, "de")["signatures"]
    assert list(signatures) == list(DECODED)
    assert "case:mixed" in signatures["bleu"] and "tok:13a" in signatures["bleu"]
    assert "case:lc" in signatures["bleu_lc"] and "tok:13a" in signatures["bleu_lc"]
    assert "case:mixed" in signatures["bleu_tok"] and "tok:none" in signatures["bleu_tok"]
    assert "moses:de|sacremoses:" in signatures["bleu_tok"]
    assert "case:lc" in signatures["bleu_tok_lc"] and "version:" in signatures["chrf"]


def test_kept_references_do_not_leak_into_other_texts() -> None:
    first = score(HYPOTHESES, REFERENCES, "de")
    other = score(HYPOTHESES, HYPOTHESES, "de")
    assert other["bleu"] == pytest.approx(100.0)
    assert score(HYPOTHESES, REFERENCES, "de") == first


def test_empty_hypotheses_score_nothing() -> None:
    found = score([""] * 3, REFERENCES, "de")
    worst = {name: 100.0 - value for name, value in PERFECT.items()}  # TER: every reference word is an insertion
    assert {name: found[name] for name in DECODED} == worst


def test_a_text_without_language_is_scored_too() -> None:
    assert score(["a b c d e"], ["a b c d e"], "")["bleu_tok"] == pytest.approx(100.0)


def test_ter_counts_edits_and_shifts_by_hand() -> None:
    """One word replaced and one left out of 6, none of 4; then a phrase moved as a whole, which is one edit."""
    references = ["the cat sat on the mat", "dogs bark at night"]
    found = score(["the dog sat on mat", "dogs bark at night"], references, "en", ["ter"])
    assert found["ter"] == pytest.approx(100 * 2 / 10)
    moved = score(["c d e a b"], ["a b c d e"], "en", ["ter"])
    assert moved["ter"] == pytest.approx(100 * 1 / 5)
    assert "tok:tercom" in found["signatures"]["ter"]


def test_ter_may_pass_100() -> None:
    assert score(["x y z w"], ["a"], "en", ["ter"])["ter"] == pytest.approx(400.0)


def test_only_what_is_asked_for_is_computed() -> None:
    found = score(HYPOTHESES, REFERENCES, "de", ["rouge1", "bleu"])
    assert list(found) == ["rouge1", "bleu", "signatures"]
    assert list(found["signatures"]) == ["rouge1", "bleu"]
    every = score(HYPOTHESES, REFERENCES, "de")
    assert (found["rouge1"], found["bleu"]) == (every["rouge1"], every["bleu"])


def test_slow_scores_are_left_to_the_end_unless_they_choose_the_checkpoint() -> None:
    quick = ("bleu", "bleu_lc", "bleu_tok", "bleu_tok_lc", "chrf")
    assert decoded_during_training("bleu") == decoded_during_training("token_accuracy") == quick
    assert decoded_during_training("ter") == (*quick, "ter")
    assert decoded_during_training("rougeL") == (*quick, "rougeL")


def test_the_page_says_of_every_score_when_it_is_computed() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| `")]
    told = {name.strip(" `"): when.strip() for names, _, when in rows for name in names.split(",")}
    assert told == {
        name: "every evaluation" if metric.during_training else "at the end"
        for name, metric in METRICS.items()
        if metric.chooses
    }


def test_unequal_or_no_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="2 hypotheses for 3 references"):
        score(HYPOTHESES[:2], REFERENCES, "de")
    with pytest.raises(ValueError, match="0 hypotheses"):
        score([], [], "de")
