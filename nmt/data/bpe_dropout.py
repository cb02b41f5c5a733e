"""BPE-dropout (Provilkov et al. 2020): training text is segmented anew in every epoch, with merges left out at random.

Each round of the merge algorithm (their algorithm 1) leaves out every possible merge with probability p, then carries
out the best of what is left, at all the places where it was not left out; a word is done when nothing is left. With
p = 0 that is ordinary byte pair encoding. Validation and test text never drops anything.

What a sentence becomes is a function of (seed, epoch, sentence number, side) alone, so every process finds the same and
a resumed run goes on as if nothing had happened. SentencePiece has such sampling of its own, but its generator is one a
thread and cannot be seeded for a sentence, so its merges are carried out here, by the model's own ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from nmt.config.schema import RunConfig
from nmt.config.seeds import stream_seed
from nmt.data.batching import Sampler
from nmt.data.cleaning import truncate
from nmt.data.prepare import EncodedText, PreparedData
from nmt.data.tokenizer import BPE_JOINER, SPACE, BpeMergesTokenizer, SentencePieceTokenizer, Tokenizer
from nmt.data.vocabulary import SPECIALS, UNK

_BLOCK = 128  # draws made at a time
_END = "</w>"  # how subword-nmt marks a word's last symbol

Rank = Callable[[str, str], int | None]
"""The rank of a merge of two neighbours, smaller before larger; None where they do not merge."""


class Draws:
    """Yes and no with probability p and 1 - p, one after the other, from an address."""

    def __init__(self, address: str, p: float):
        self._address, self._threshold = address, round(p * 2**32)
        self._position = 0  # draws consumed
        self._blocks = 0
        self._hits: Iterator[int] = iter(())
        self._next_hit = -1
        self._find_next_hit()

    def none_of(self, count: int) -> bool:
        """Whether the next `count` draws all say no; they are consumed if so, and stay where they are if not."""
        if self._position + count > self._next_hit:
            return False
        self._position += count
        return True

    def draw(self) -> bool:
        """The next draw."""
        hit = self._position == self._next_hit
        self._position += 1
        if hit:
            self._find_next_hit()
        return hit

    def _find_next_hit(self) -> None:
        while (following := next(self._hits, None)) is None:
            if self._threshold == 0:
                following = 1 << 62
                break
            raw = hashlib.shake_128(f"{self._address}/{self._blocks}".encode()).digest(4 * _BLOCK)
            hits = np.flatnonzero(np.frombuffer(raw, dtype="<u4") < self._threshold) + self._blocks * _BLOCK
            self._hits = iter(hits.tolist())
            self._blocks += 1
        self._next_hit = following


class MergeSegmenter:
    """Segments words by merges in the order of their ranks.

    Parameters
    ----------
    split: a word's first symbols.
    rank: which neighbours merge, and in which order.
    """

    def __init__(self, split: Callable[[str], list[str]], rank: Rank):
        self._split, self._rank = split, rank
        self._known: dict[str, tuple[list[str], int]] = {}  # without dropout: segments, and draws that it takes

    def __call__(self, word: str, draws: Draws) -> list[str]:
        """The symbols that are left of `word` after all merges but the dropped ones."""
        if word not in self._known:
            never = Draws("", 0.0)
            self._known[word] = self._merged(word, never), never._position
        segments, count = self._known[word]
        if draws.none_of(count):  # most words of most sentences, at the usual p
            return segments
        return self._merged(word, draws)

    def _merged(self, word: str, draws: Draws) -> list[str]:
        symbols, rank, draw = self._split(word), self._rank, draws.draw
        while len(symbols) > 1:
            possible = []
            for place in range(len(symbols) - 1):
                found = rank(symbols[place], symbols[place + 1])
                if found is not None:
                    possible.append((found, place))
            possible.sort()
            # Draws go from the best merge on and end where one is kept: later ones would change nothing.
            best, places = None, []
            for found, place in possible:
                if best is not None and found != best:
                    break
                if not draw():
                    best = found
                    places.append(place)
            if not places:
                break
            symbols = _merge_at(symbols, places)
        return symbols


def _merge_at(symbols: list[str], places: list[int]) -> list[str]:
    merged, end = [], 0
    for place in places:
        if place >= end:  # of overlapping places the left one wins
            merged += symbols[end:place]
            merged.append(symbols[place] + symbols[place + 1])
            end = place + 2
    return merged + symbols[end:]


Encoder = Callable[[str, Draws], list[int]]
"""A cleaned line's rows of the vocabulary, with merges left out where a draw says so."""


def dropping_encoder(tokenizer: Tokenizer) -> Encoder:
    """The encoder of a tokenizer of the kind `bpe_merges` or `sentencepiece_bpe`."""
    if isinstance(tokenizer, BpeMergesTokenizer):
        return _bpe_merges_encoder(tokenizer)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return _sentencepiece_encoder(tokenizer)


def _bpe_merges_encoder(tokenizer: BpeMergesTokenizer) -> Encoder:
    ranks: dict[tuple[str, str], int] = {}
    for position, merge in enumerate(tokenizer.merges):
        first, second = merge.split(" ")
        ranks.setdefault((first, second), position)
    segment = MergeSegmenter(lambda word: [*word[:-1], word[-1] + _END], lambda a, b: ranks.get((a, b)))
    number = tokenizer.vocabulary.number

    def encode(text: str, draws: Draws) -> list[int]:
        rows = []
        for word in text.split():
            *inner, last = segment(word, draws)
            rows += [number(symbol + BPE_JOINER) for symbol in inner]
            rows.append(number(last.removesuffix(_END)))
        return rows

    return encode


def _sentencepiece_encoder(tokenizer: SentencePieceTokenizer) -> Encoder:
    # Pieces stand in the order in which they were learned; those of one character, last, are no merges.
    numbers = {tokenizer.token(row): row for row in range(len(SPECIALS), tokenizer.size)}
    segment = MergeSegmenter(list, lambda a, b: numbers.get(a + b))

    def encode(text: str, draws: Draws) -> list[int]:
        rows: list[int] = []
        for word in text.split(" "):
            if not word:
                continue  # the library reads several spaces as one
            for symbol in segment(SPACE + word, draws):
                row = numbers.get(symbol, UNK)
                if row != UNK or not rows or rows[-1] != UNK:  # a run of unknown characters is one UNK, as there
                    rows.append(row)
        return rows

    return encode


class DroppedBatches:
    """The slots of each step, with the training text segmented anew in each epoch.

    Which sentences share a batch is decided by their lengths without dropout; what counts as a slot's tokens is their
    number with it. A step's loss is divided by all its target tokens, and that number is needed with the first slot: so
    every process segments the targets of all slots, and the sources of its own. They are kept for the step.
    """

    def __init__(self, config: RunConfig, prepared: PreparedData, sampler: Sampler):
        source, target = prepared.source_tokenizer, prepared.target_tokenizer
        encoder = dropping_encoder(source)
        self._encoders = {"source": encoder, "target": encoder if target is source else dropping_encoder(target)}
        self._texts: Mapping[str, Sequence[str]] = {
            "source": prepared.train.source_text,
            "target": prepared.train.target_text,
        }
        self._sampler, self._seed, self._p = sampler, stream_seed(config, "data"), config.tokenizer.dropout
        self._longest = config.data.max_length if config.data.overlong == "truncate" else None
        self._step = 0
        self._kept: dict[tuple[str, int], list[np.ndarray]] = {}

    def slot_tokens(self, step: int) -> list[int]:
        """Target tokens, each sentence's EOS included, of each slot of `step`."""
        slots = range(len(self._sampler.slots(step)))
        return [sum(len(sentence) + 1 for sentence in self._sentences("target", step, slot)) for slot in slots]

    def slot(self, step: int, slot: int) -> EncodedText:
        """The sentences of a slot, in the sampler's order."""
        return EncodedText(self._sentences("source", step, slot), self._sentences("target", step, slot))

    def _sentences(self, side: str, step: int, slot: int) -> list[np.ndarray]:
        if step != self._step:
            self._step, self._kept = step, {}
        if (side, slot) not in self._kept:
            epoch, numbers = self._sampler.epoch(step), self._sampler.slots(step)[slot]
            self._kept[side, slot] = self._segmented(side, epoch, numbers)
        return self._kept[side, slot]

    def _segmented(self, side: str, epoch: int, numbers: np.ndarray) -> list[np.ndarray]:
        encode, texts = self._encoders[side], self._texts[side]
        found = []
        for number in numbers.tolist():
            rows = encode(texts[number], Draws(f"bpe_dropout/{self._seed}/{epoch}/{number}/{side}", self._p))
            if self._longest is not None:
                rows = truncate(rows, self._longest)
            found.append(np.array(rows, dtype=np.int32))
        return found
