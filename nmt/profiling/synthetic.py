"""Sentences without meaning but with the shape of real ones, so that nobody needs a corpus to measure speed.

Lengths follow Multi30k English-German in 8,000 joint BPE pieces (29,000 pairs): the source log-normal with a median of
13 tokens and a tenth above 20, the target as long as the source up to a log-normal factor, with a correlation of 0.85.
Pieces follow a Zipf-Mandelbrot law. Everything is a function of the arguments.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nmt.data.prepare import EncodedText, PreparedData
from nmt.data.ragged import Ragged
from nmt.data.tokenizer import WhitespaceTokenizer
from nmt.data.vocabulary import SPECIALS, Vocabulary

_LOG_LENGTH = (2.59, 0.31)  # mean and standard deviation of the logarithm of a source length
_LOG_RATIO = (0.015, 0.18)  # and of target over source
_LENGTHS = (3, 50)
_ZIPF_SHIFT = 2.7


def synthetic_text(sentences: int, vocabulary: int = 8000, seed: int = 1) -> EncodedText:
    """`sentences` pairs over `vocabulary` rows, specials included."""
    bits = np.random.PCG64(np.random.SeedSequence((seed, sentences, vocabulary)))

    def uniform(count: int) -> np.ndarray:
        return (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(count: int) -> np.ndarray:
        return np.sqrt(-2 * np.log1p(-uniform(count))) * np.cos(2 * np.pi * uniform(count))

    log_source = _LOG_LENGTH[0] + _LOG_LENGTH[1] * normal(sentences)
    log_target = log_source + _LOG_RATIO[0] + _LOG_RATIO[1] * normal(sentences)
    source, target = (np.clip(np.rint(np.exp(x)), *_LENGTHS).astype(np.int64) for x in (log_source, log_target))
    cumulative = np.cumsum(1 / (_ZIPF_SHIFT + np.arange(vocabulary - len(SPECIALS))))

    def text(lengths: np.ndarray) -> Ragged:
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        ranks = np.searchsorted(cumulative, uniform(int(offsets[-1])) * cumulative[-1])
        return Ragged((ranks + len(SPECIALS)).astype(np.int32), offsets)

    return EncodedText(text(source), text(target))


def synthetic_data(sentences: int = 29_000, vocabulary: int = 8000, evaluated: int = 1000) -> PreparedData:
    """A prepared corpus of synthetic text with one vocabulary, `evaluated` pairs to validate and as many to test on."""
    tokenizer = WhitespaceTokenizer(Vocabulary([f"w{n}" for n in range(vocabulary - len(SPECIALS))], vocabulary))
    train, validation, test = (
        synthetic_text(count, vocabulary, seed) for seed, count in enumerate((sentences, evaluated, evaluated), 1)
    )
    return PreparedData(tokenizer, tokenizer, train, validation, test, "synthetic", {}, Path())
