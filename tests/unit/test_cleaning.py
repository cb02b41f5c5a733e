"""Cleaning, record by record."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.config.schema import DataConfig
from nmt.data.cleaning import clean, moses_detokenizer, moses_tokenizer, normalise, reason_to_drop, truncate
from nmt.errors import UserError


def test_normalise_composes_and_collapses() -> None:
    assert normalise("  Cafe\u0301\u00a0\t bar\u2028baz ") == "Café bar baz"


@given(st.text())
def test_normalise_is_idempotent_and_nfc(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once and once == once.strip()


@given(st.text())
def test_cleaning_is_idempotent_without_moses(text: str) -> None:
    data = DataConfig(lowercase=True)
    once = clean(text, data, "en")
    assert clean(once, data, "en") == once


def test_case_is_kept_unless_asked() -> None:
    assert clean("Ein  Mann", DataConfig(), "de") == "Ein Mann"
    assert clean("Ein  Mann", DataConfig(lowercase=True), "de") == "ein mann"


def test_moses_sees_case_before_folding() -> None:
    """ "Mr." is an abbreviation, "mr." the end of a sentence."""
    assert clean("Mr. Smith came.", DataConfig(moses=True, lowercase=True), "en") == "mr. smith came ."


@pytest.mark.parametrize(
    ("language", "text", "tokenised"),
    [
        ("en", 'It doesn\'t cost $5, "Mr. X"!', "It doesn &apos;t cost $ 5 , &quot; Mr. X &quot; !"),
        ("de", "Das ist z.B. ein Hund.", "Das ist z.B. ein Hund ."),
        ("fr", "L'homme n'aime pas l'eau.", "L&apos; homme n&apos; aime pas l&apos; eau ."),
    ],
)
def test_moses_there_and_back(language: str, text: str, tokenised: str) -> None:
    assert moses_tokenizer(language)(text) == tokenised
    assert moses_detokenizer(language)(tokenised) == text


def test_moses_needs_a_language() -> None:
    with pytest.raises(UserError, match=r"data\.source_language"):
        clean("x", DataConfig(moses=True), "")


@pytest.mark.parametrize(
    ("source", "target", "limits", "reason"),
    [
        (0, 3, {}, "empty"),
        (3, 0, {}, "empty"),
        (5, 5, {"max_length": 5}, None),
        (6, 5, {"max_length": 5}, "overlong"),
        (5, 6, {"max_length": 5}, "overlong"),
        (100, 100, {}, None),
        (3, 6, {"max_ratio": 2.0}, None),
        (3, 7, {"max_ratio": 2.0}, "ratio"),
        (7, 3, {"max_ratio": 2.0}, "ratio"),
        (9, 1, {"max_ratio": 2.0, "max_length": 8}, "overlong"),
    ],
)
def test_reasons_to_drop_a_pair(source: int, target: int, limits: dict[str, int], reason: str | None) -> None:
    assert reason_to_drop([1] * source, [1] * target, **limits) == reason


def test_truncate() -> None:
    assert truncate([5, 6, 7], 2) == [5, 6]
    assert truncate([5, 6], 3) == [5, 6]
