"""Cleaning as pure functions of one record, so that any engine can apply them and get the same bytes.

`clean` goes over every line of every split and over what a user asks to have translated. `reason_to_drop` and
`truncate` concern training pairs only: validation and test sentences are neither filtered nor cut.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from nmt.config.schema import DataConfig
from nmt.errors import UserError

EMPTY, OVERLONG, RATIO = "empty", "overlong", "ratio"
REASONS = (EMPTY, OVERLONG, RATIO)  # why a training pair is left out, in the order in which they are tried


def normalise(text: str) -> str:
    """Unicode NFC, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold(text: str) -> str:
    """Lower case."""
    return text.lower()


def clean(text: str, data: DataConfig, language: str) -> str:
    """The form of a line that the tokenizer sees: normalised, Moses-tokenised and case-folded as `data` says."""
    text = normalise(text)
    if data.moses:
        text = moses_tokenizer(language)(text)  # before folding: its abbreviations are case-sensitive
    if data.lowercase:
        text = normalise(fold(text))  # lower-casing may leave NFC
    return text


def reason_to_drop(
    source: Sequence[Any], target: Sequence[Any], *, max_length: int = 0, max_ratio: float = 0.0
) -> str | None:
    """Why a training pair is left out (one of `REASONS`), or None where it is kept.

    Lengths are those of the sequences handed in (tokens after segmentation, without EOS). `max_length` and `max_ratio`
    (longer side over shorter side) of 0 do not filter.
    """
    shorter, longer = sorted((len(source), len(target)))
    if shorter == 0:
        return EMPTY
    if max_length and longer > max_length:
        return OVERLONG
    if max_ratio and longer > max_ratio * shorter:
        return RATIO
    return None


def truncate(tokens: list[int], max_length: int) -> list[int]:
    """The first `max_length` tokens."""
    return tokens[:max_length]


@cache
def moses_tokenizer(language: str) -> Callable[[str], str]:
    """Moses word tokenisation of `language` (sacremoses), XML escapes as in the original script."""
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(_moses_language(language))
    return lambda text: str(tokenizer.tokenize(text, return_str=True, escape=True))


@cache
def moses_detokenizer(language: str) -> Callable[[str], str]:
    """The way back from `moses_tokenizer`: words joined as `language` is written, escapes undone."""
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(_moses_language(language))
    return lambda text: str(detokenizer.detokenize(text.split(), return_str=True, unescape=True))


def _moses_language(language: str) -> str:
    if not language:
        raise UserError(
            "Moses tokenisation depends on the language",
            where="data.source_language and data.target_language",
            hint="set both (e.g. en and de), or data.moses=false",
        )
    return language
