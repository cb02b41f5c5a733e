"""The two invented languages of `toy_translation`, and a grammar that says one meaning in both.

    source   article adjective* noun [preposition phrase] verb article adjective* noun [conjunction ...] [adverb]
    target   [adverb] [phrase postposition] article noun adjective* [...] article noun adjective* verb [conjunction ...]

- Reordering: a target clause ends in its verb, adjectives follow their noun, a phrase that modifies another precedes it
  with its preposition behind it, the adverb moves from the end of the sentence to its beginning.
- Agreement: each target noun has one of three classes, which its article, its plural and its adjectives show; the verb
  shows the number of its subject, with the whole object between them. The source verb does not show it.
- Articles: indefinite plurals have none in the target, so the two sides differ in length.
- Ambiguity: some source nouns have two translations, of different classes. The kind of their clause's verb decides, so
  a noun, its article and its adjectives all hang on a word elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")

CLASSES, KINDS = 3, 2
SINGULAR, PLURAL = 0, 1
_COUNTS = {
    "nouns": 34,
    "ambiguous": 4,
    "adjectives": 16,
    "verbs": 16,
    "adverbs": 10,
    "prepositions": 5,
    "conjunctions": 2,
}

# Probabilities that shape a sentence.
_TWO_CLAUSES, _ADVERB, _PHRASE_IN_SUBJECT, _PHRASE_IN_OBJECT = 0.35, 0.6, 0.4, 0.3
_AMBIGUOUS, _PLURAL, _DEFINITE, _ADJECTIVES = 0.2, 0.4, 0.6, (0, 0, 1, 1, 1, 2)

_SOURCE_SYLLABLES = tuple(c + v for c in "bdfgklmnprstv" for v in "aeiou")
_TARGET_SYLLABLES = tuple(c + v for c in ("ch", "h", "j", "k", "m", "n", "p", "r", "t", "w", "y", "z") for v in "aeiou")
_SOURCE_PLURAL = "s"
_TARGET_PLURALS = ("n", "ri", "l")  # by class
_TARGET_ADJECTIVE_ENDINGS = ("k", "sh", "m")  # by class
_TARGET_VERB_ENDINGS = ("t", "nd")  # by the subject's number


class Choices(Protocol):
    """Seeded choices; see `nmt.data.toy.Draws`."""

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""

    def chance(self, probability: float) -> bool:
        """True with `probability`."""


@dataclass(frozen=True)
class Noun:
    """`target` (stem) and `noun_class` are indexed by the kind of the clause's verb; most nouns have the same twice."""

    source: str
    target: tuple[str, str]
    noun_class: tuple[int, int]


@dataclass(frozen=True)
class Verb:
    """`kind` decides what an ambiguous noun of the same clause means."""

    source: str
    target: str
    kind: int


@dataclass(frozen=True)
class Phrase:
    """The meaning of a noun phrase. `modifier` is a preposition and the phrase that it governs."""

    noun: Noun
    number: int
    definite: bool
    adjectives: tuple[tuple[str, str], ...]
    modifier: tuple[tuple[str, str], Phrase] | None = None


@dataclass(frozen=True)
class Clause:
    """The meaning of a clause."""

    subject: Phrase
    verb: Verb
    object: Phrase


class Languages:
    """A lexicon drawn from `draws`, and the grammar over it. Pairs of words are (source, target)."""

    def __init__(self, draws: Choices):
        words = _Words(draws)
        count = _COUNTS
        self.source_articles = {definite: words.source(1) for definite in (True, False)}
        self.target_articles = {
            (definite, noun_class, number): words.target(1)
            for definite, number in ((True, SINGULAR), (True, PLURAL), (False, SINGULAR))
            for noun_class in range(CLASSES)
        }
        self.prepositions = [(words.source(1), words.target(1)) for _ in range(count["prepositions"])]
        self.conjunctions = [(words.source(1), words.target(1)) for _ in range(count["conjunctions"])]
        self.nouns = [_plain_noun(words, i % CLASSES) for i in range(count["nouns"])]
        self.ambiguous = [_ambiguous_noun(words, i % CLASSES) for i in range(count["ambiguous"])]
        self.adjectives = [
            (words.source(2), words.target(2, _TARGET_ADJECTIVE_ENDINGS)) for _ in range(count["adjectives"])
        ]
        self.verbs = [
            Verb(words.source(2), words.target(2, _TARGET_VERB_ENDINGS), i % KINDS) for i in range(count["verbs"])
        ]
        self.adverbs = [(words.source(3), words.target(3)) for _ in range(count["adverbs"])]

    def sentence(self, draws: Choices) -> tuple[list[str], list[str]]:
        """One sentence, as source words and target words."""
        clause = self._clause(draws)
        source, target = self._say_source(clause), self._say_target(clause)
        if draws.chance(_TWO_CLAUSES):
            clause, conjunction = self._clause(draws), draws.choice(self.conjunctions)
            source += [conjunction[0], *self._say_source(clause)]
            target += [conjunction[1], *self._say_target(clause)]
        if draws.chance(_ADVERB):
            adverb = draws.choice(self.adverbs)
            source, target = [*source, adverb[0]], [adverb[1], *target]
        return source, target

    def _clause(self, draws: Choices) -> Clause:
        return Clause(
            subject=self._phrase(draws, _PHRASE_IN_SUBJECT),
            verb=draws.choice(self.verbs),
            object=self._phrase(draws, _PHRASE_IN_OBJECT),
        )

    def _phrase(self, draws: Choices, modified: float) -> Phrase:
        noun = draws.choice(self.ambiguous if draws.chance(_AMBIGUOUS) else self.nouns)
        adjectives = tuple(draws.choice(self.adjectives) for _ in range(draws.choice(_ADJECTIVES)))
        number = PLURAL if draws.chance(_PLURAL) else SINGULAR
        definite = draws.chance(_DEFINITE)
        modifier = (draws.choice(self.prepositions), self._phrase(draws, 0.0)) if draws.chance(modified) else None
        return Phrase(noun, number, definite, adjectives, modifier)

    def _say_source(self, clause: Clause) -> list[str]:
        return [*self._source_phrase(clause.subject), clause.verb.source, *self._source_phrase(clause.object)]

    def _source_phrase(self, phrase: Phrase) -> list[str]:
        noun = phrase.noun.source + (_SOURCE_PLURAL if phrase.number == PLURAL else "")
        words = [self.source_articles[phrase.definite], *(source for source, _ in phrase.adjectives), noun]
        if phrase.modifier:
            (preposition, _), inner = phrase.modifier
            words += [preposition, *self._source_phrase(inner)]
        return words

    def _say_target(self, clause: Clause) -> list[str]:
        kind = clause.verb.kind
        verb = clause.verb.target + _TARGET_VERB_ENDINGS[clause.subject.number]
        return [*self._target_phrase(clause.subject, kind), *self._target_phrase(clause.object, kind), verb]

    def _target_phrase(self, phrase: Phrase, kind: int) -> list[str]:
        noun_class = phrase.noun.noun_class[kind]
        noun = phrase.noun.target[kind] + (_TARGET_PLURALS[noun_class] if phrase.number == PLURAL else "")
        article = self.target_articles.get((phrase.definite, noun_class, phrase.number))
        words = [article, noun] if article else [noun]
        words += [target + _TARGET_ADJECTIVE_ENDINGS[noun_class] for _, target in phrase.adjectives]
        if phrase.modifier:
            (_, postposition), inner = phrase.modifier
            words = [*self._target_phrase(inner, kind), postposition, *words]
        return words


class _Words:
    """New words made of syllables; no form of one is a form of another."""

    def __init__(self, draws: Choices):
        self._draws = draws
        self._taken: set[str] = set()

    def source(self, syllables: int, endings: Sequence[str] = ("",)) -> str:
        return self._new(_SOURCE_SYLLABLES, syllables, endings)

    def target(self, syllables: int, endings: Sequence[str] = ("",)) -> str:
        return self._new(_TARGET_SYLLABLES, syllables, endings)

    def _new(self, sounds: Sequence[str], syllables: int, endings: Sequence[str]) -> str:
        while True:
            stem = "".join(self._draws.choice(sounds) for _ in range(syllables))
            forms = {stem + ending for ending in endings}
            if not forms & self._taken:
                self._taken |= forms
                return stem


def _plain_noun(words: _Words, noun_class: int) -> Noun:
    stem = words.target(2, ("", _TARGET_PLURALS[noun_class]))
    return Noun(words.source(2, ("", _SOURCE_PLURAL)), (stem, stem), (noun_class, noun_class))


def _ambiguous_noun(words: _Words, noun_class: int) -> Noun:
    classes = (noun_class, (noun_class + 1) % CLASSES)
    first, second = (words.target(2, ("", _TARGET_PLURALS[c])) for c in classes)
    return Noun(words.source(2, ("", _SOURCE_PLURAL)), (first, second), classes)
