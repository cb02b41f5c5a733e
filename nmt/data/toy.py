"""Built-in corpora, generated: the same options give the same bytes on every machine.

`toy_copy` and `toy_reverse` are the two tasks of google/seq2seq. `toy_translation` is a small translation task between
two invented languages (see `nmt.data.toy_languages`), `toy_summarisation` one of telling the news of a report in one
sentence (see `nmt.data.toy_reports`). No source text of one split occurs in another.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nmt.data.corpus import ParallelText, RawCorpus
from nmt.data.toy_languages import Languages
from nmt.data.toy_reports import report
from nmt.errors import UserError, did_you_mean

_SIZES = {"train_size": 10_000, "validation_size": 500, "test_size": 1000, "seed": 0}
_ATTEMPTS = 100  # draws for each sentence, before the options are taken to allow too few different ones

Item = TypeVar("Item")


def toy_copy(options: Mapping[str, Any]) -> RawCorpus:
    """Sequences of symbols; the target is the source.

    Options: vocabulary (symbols), min_length, max_length (tokens), train_size, validation_size, test_size, seed.
    """
    return _symbols(options, lambda words: words)


def toy_reverse(options: Mapping[str, Any]) -> RawCorpus:
    """Sequences of symbols; the target is the source backwards. Options: see `toy_copy`."""
    return _symbols(options, lambda words: words[::-1])


def toy_translation(options: Mapping[str, Any]) -> RawCorpus:
    """A generated translation task with reordering, agreement and ambiguous words.

    Options: min_length, max_length (source tokens), train_size, validation_size, test_size (pairs), seed.
    """
    known = (
        {"min_length": 8, "max_length": 20} | _SIZES | {"train_size": 8000, "validation_size": 200, "test_size": 500}
    )
    values = _read(options, known)
    languages = Languages(Draws("lexicon", values["seed"]))
    low, high = values["min_length"], values["max_length"]

    def draw(draws: Draws) -> tuple[str, str]:
        for _ in range(_ATTEMPTS):
            source, target = languages.sentence(draws)
            if low <= len(source) <= high:
                return " ".join(source), " ".join(target)
        raise _too_few("min_length", f"hardly any sentence has {low} to {high} words")

    return _splits(values, draw)


def toy_summarisation(options: Mapping[str, Any]) -> RawCorpus:
    """Reports of several sentences, and the one thing in each that is both new and certain.

    Options: min_sentences, max_sentences (of a report), train_size, validation_size, test_size (pairs), seed.
    """
    known = {"min_sentences": 4, "max_sentences": 6} | _SIZES | {"validation_size": 200, "test_size": 500}
    values = _read(options, known)
    low, high = values["min_sentences"], values["max_sentences"]

    def draw(draws: Draws) -> tuple[str, str]:
        source, target = report(draws, low + draws.below(high - low + 1))
        return " ".join(source), " ".join(target)

    return _splits(values, draw)


class Draws:
    """Seeded choices by name; only `random.Random.random` is used, whose stream Python promises to keep."""

    def __init__(self, name: str, seed: int):
        digest = hashlib.blake2b(f"{name}/{seed}".encode(), digest_size=16).digest()
        self._random = random.Random(int.from_bytes(digest, "little")).random

    def below(self, count: int) -> int:
        """An integer from 0 to `count` - 1."""
        return int(self._random() * count)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self._random() < probability


def _symbols(options: Mapping[str, Any], translate: Callable[[list[str]], list[str]]) -> RawCorpus:
    values = _read(options, {"vocabulary": 20, "min_length": 5, "max_length": 20} | _SIZES)
    width = int(math.log10(max(1, values["vocabulary"] - 1))) + 1
    symbols = [f"w{number:0{width}d}" for number in range(values["vocabulary"])]
    low, high = values["min_length"], values["max_length"]

    def draw(draws: Draws) -> tuple[str, str]:
        words = [draws.choice(symbols) for _ in range(low + draws.below(high - low + 1))]
        return " ".join(words), " ".join(translate(words))

    return _splits(values, draw)


def _splits(values: Mapping[str, int], draw: Callable[[Draws], tuple[str, str]]) -> RawCorpus:
    seen: set[str] = set()

    def split(name: str) -> ParallelText:
        draws, text = Draws(name, values["seed"]), ParallelText()
        for _ in range(values[f"{name}_size"]):
            for _ in range(_ATTEMPTS):
                source, target = draw(draws)
                if source not in seen:
                    break
            else:
                raise _too_few(
                    f"{name}_size", f"there are too few different sentences for {values[f'{name}_size']} pairs"
                )
            seen.add(source)
            text.source.append(source)
            text.target.append(target)
        return text

    # Test and validation first: their sentences do not depend on how much is asked for to train on.
    test, validation = split("test"), split("validation")
    return RawCorpus(train=split("train"), validation=validation, test=test)


def _read(options: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, int]:
    for name, value in options.items():
        where = f"data.options.{name}"
        if name not in known:
            raise UserError("unknown option", where=where, allowed=sorted(known), hint=did_you_mean(name, known))
        least = 0 if name == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{value} is no integer >= {least}", where=where)
    values = {**known, **options}
    for name in values:
        unit = name.removeprefix("min_")
        if unit != name and values[name] > values[f"max_{unit}"]:
            most = values[f"max_{unit}"]
            raise UserError(f"{values[name]} is above max_{unit} {most}", where=f"data.options.{name}")
    return values


def _too_few(option: str, what: str) -> UserError:
    return UserError(what, where=f"data.options.{option}", hint="allow longer sentences, or ask for fewer")
