"""ROUGE against numbers worked out by hand and an obvious reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.evaluation.rouge import Overlap, common_subsequence, overlap, rouge, tokenise

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def test_unigrams_by_hand() -> None:
    """`the cat was found under the bed` of 7 words against 6: all 6 are in common, both `the` among them."""
    one, other = "the cat was found under the bed".split(), "the cat was under the bed".split()
    precision, recall = 6 / 7, 6 / 6
    assert overlap(one, other, "rouge1") == pytest.approx((precision, recall, 2 * 6 / 13))


def test_bigrams_by_hand() -> None:
    """In common: the cat, cat was, under the, the bed; of 6 and 5 bigrams."""
    one, other = "the cat was found under the bed".split(), "the cat was under the bed".split()
    assert overlap(one, other, "rouge2") == pytest.approx((4 / 6, 4 / 5, 2 * 4 / 11))


def test_a_repeated_word_counts_as_often_as_both_texts_have_it() -> None:
    """`the the the` against `the cat the`: two of three, where a set of words would say one of one and one of two."""
    assert overlap(["the"] * 3, ["the", "cat", "the"], "rouge1") == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_longest_common_subsequence_by_hand() -> None:
    """Lin 2004: `police kill the gunman` has 2 in sequence with the reference, `police the gunman killed` has 3."""
    reference = "police killed the gunman".split()
    assert overlap("police kill the gunman".split(), reference, "rougeL").f == pytest.approx(3 / 4)
    assert overlap("the gunman kill police".split(), reference, "rougeL").f == pytest.approx(2 / 4)
    assert overlap("gunman police the of by".split(), reference, "rougeL") == pytest.approx((2 / 5, 2 / 4, 4 / 9))


@given(WORDS, WORDS)
def test_the_subsequence_is_that_of_the_textbook_table(one: list[str], other: list[str]) -> None:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(one, other) == common_subsequence(other, one) == table[-1][-1]


def test_a_corpus_is_the_mean_of_its_pairs_in_percent() -> None:
    """F 1/2 with P 1/1 and R 1/3, and a pair with nothing in common; F of the means would be another number."""
    found = rouge(["a", "x y"], ["a b c", "a b"], "rouge1")
    assert found == pytest.approx((100 * 1 / 2, 100 * (1 / 3) / 2, 100 * (1 / 2) / 2))


def test_tokens_are_words_of_any_script_in_lower_case() -> None:
    assert tokenise("Die Straße, 3_mal: über's Öl!") == ["die", "straße", "3", "mal", "über", "s", "öl"]


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
def test_nothing_scores_nothing(variant: str) -> None:
    nothing = Overlap(0.0, 0.0, 0.0)
    assert overlap([], ["a", "b"], variant) == overlap(["a", "b"], [], variant) == overlap([], [], variant) == nothing


def test_unequal_or_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        rouge(["a"], ["a", "b"], "rouge1")
    with pytest.raises(ValueError, match="0 hypotheses"):
        rouge([], [], "rouge1")
