"""The reports of `toy_summarisation`, and what is worth keeping of each.

A report is a number of sentences in any order. One tells what happened for certain; others tell it of other people and
things as hearsay, in the same form; further ones say in which state each thing is, and what nobody asked for.

    source   perhaps anna sold the boat in rome . the lamp was broken . it was stormy in oslo .
             officially peter found the lamp in paris . the boat was old .
    target   peter found the broken lamp in paris

So a summary hangs on one word in front of a sentence, and on finding the state of one thing among those of several,
anywhere in the report. The first words of a report are no better than any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from nmt.errors import UserError

Item = TypeVar("Item")

FEWEST_SENTENCES = 4  # what happened, one rumour, and the states of both things

CERTAIN = ("officially", "certainly", "undoubtedly")
HEARSAY = ("perhaps", "allegedly", "supposedly")
NAMES = ("anna", "boris", "clara", "david", "emma", "felix", "greta", "henry", "irene", "jacob", "maria", "peter")
VERBS = ("found", "lost", "sold", "bought", "painted", "hid", "repaired", "stole")
THINGS = ("boat", "lamp", "clock", "piano", "bridge", "tower", "wagon", "statue", "mirror", "crown")
STATES = ("broken", "old", "golden", "huge", "wooden", "dirty", "famous", "heavy")
PLACES = ("paris", "oslo", "rome", "cairo", "lima", "delhi", "tokyo", "athens", "dublin", "berlin")
WEATHER = ("mild", "cold", "stormy", "dry", "foggy")
PASTIMES = ("chess", "music", "football", "cooking")

STATE = 3  # where a summary names the state
_RUMOUR = 0.4  # probability of one more rumour, where there is room


class Choices(Protocol):
    """Seeded choices; see `nmt.data.toy.Draws`."""

    def below(self, count: int) -> int:
        """An integer from 0 to `count` - 1."""

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""

    def chance(self, probability: float) -> bool:
        """True with `probability`."""


def report(draws: Choices, sentences: int) -> tuple[list[str], list[str]]:
    """A report of that many sentences and its summary, as words. Raises UserError for fewer than can make one."""
    if sentences < FEWEST_SENTENCES:
        raise UserError(
            f"{sentences} is too few for a report", where="data.options.min_sentences",
            allowed=[f">= {FEWEST_SENTENCES}"],
        )  # fmt: skip
    told = 2  # the news and a rumour, each with the state of its thing
    while 2 * (told + 1) <= sentences and draws.chance(_RUMOUR):
        told += 1
    news, *rumoured = _shuffled(draws, THINGS)[:told]
    summary, line = _event(draws, draws.choice(CERTAIN), news)
    lines = [line, _state(news, summary[STATE])]
    for thing in rumoured:
        lines += [_event(draws, draws.choice(HEARSAY), thing)[1], _state(thing, draws.choice(STATES))]
    lines += [_aside(draws) for _ in range(sentences - len(lines))]
    return " ".join(_shuffled(draws, lines)).split(), summary


def _event(draws: Choices, credit: str, thing: str) -> tuple[list[str], str]:
    """A summary of something that happened to `thing`, and a sentence that tells it, given `credit` or discredited."""
    name, verb, state, place = (draws.choice(words) for words in (NAMES, VERBS, STATES, PLACES))
    summary = [name, verb, "the", state, thing, "in", place]
    return summary, f"{credit} {name} {verb} the {thing} in {place} ."


def _state(thing: str, state: str) -> str:
    return f"the {thing} was {state} ."


def _aside(draws: Choices) -> str:
    place = draws.choice(PLACES)
    if draws.chance(0.5):
        return f"it was {draws.choice(WEATHER)} in {place} ."
    return f"{draws.choice(NAMES)} of {place} likes {draws.choice(PASTIMES)} ."


def _shuffled(draws: Choices, items: Sequence[Item]) -> list[Item]:
    """A random order (Fisher and Yates)."""
    order = list(items)
    for last in range(len(order) - 1, 0, -1):
        other = draws.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return order
