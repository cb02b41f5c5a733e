"""ROUGE (Lin 2004), for summaries: overlap of n-grams, and the longest common subsequence.

    ROUGE-N   n-grams in common, each counted as often as both texts have it
    ROUGE-L   length of the longest common subsequence of both texts as wholes (the sentence-level form)

Precision divides by the candidate's count and recall by the reference's; F is their harmonic mean. A corpus score is
the mean over its pairs, in percent. Tokens are runs of letters and digits in lower case, in any script and without
stemming. On English that is what the `rouge-score` package does, and the figures are equal; in other languages it takes
every letter beyond a to z for a blank.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

VERSION = 1  # bump when the same texts give other figures
VARIANTS = ("rouge1", "rouge2", "rougeL")

_TOKEN = re.compile(r"[^\W_]+")


class Overlap(NamedTuple):
    """Precision, recall and F, each from 0 to 1 for a pair of texts and from 0 to 100 for a corpus."""

    precision: float
    recall: float
    f: float


def rouge(hypotheses: Sequence[str], references: Sequence[str], variant: str) -> Overlap:
    """The corpus score of one of `VARIANTS`. Raises ValueError for unequal numbers of texts or none."""
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    pairs = [
        overlap(tokenise(hypothesis), tokenise(reference), variant)
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    return Overlap(*(100.0 * math.fsum(values) / len(pairs) for values in zip(*pairs, strict=True)))


def signature() -> str:
    """How these figures come about, in the manner of sacrebleu's signatures."""
    return f"nrefs:1|case:lc|tok:words|stem:no|L:sentence|mean:pairs|rouge:{VERSION}"


def tokenise(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _TOKEN.findall(text.lower())


def overlap(hypothesis: Sequence[str], reference: Sequence[str], variant: str) -> Overlap:
    """The score of one pair of token sequences; zeros where either has nothing to count."""
    if variant == "rougeL":
        return _overlap(common_subsequence(hypothesis, reference), len(hypothesis), len(reference))
    n = int(variant.removeprefix("rouge"))
    one, other = _ngrams(hypothesis, n), _ngrams(reference, n)
    return _overlap((one & other).total(), one.total(), other.total())


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    A row of the usual table is one integer whose zero bits are the columns where the length grows; carries of an
    addition move them (Hyyrö 2004). So a row costs a few operations on whole integers.
    """
    places: dict[str, int] = {}
    for position, token in enumerate(other):
        places[token] = places.get(token, 0) | 1 << position
    full = (1 << len(other)) - 1
    row = full
    for token in one:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(other) - row.bit_count()


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def _overlap(common: int, hypothesis: int, reference: int) -> Overlap:
    if not common:
        return Overlap(0.0, 0.0, 0.0)
    precision, recall = common / hypothesis, common / reference
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))
