"""Who hangs: judged from what the threads of processes say of themselves when they are asked.

A silent link shows that a process is dead or stands still. It says nothing of a process in which the thread that
computes hangs while another sends signs of life. So the coordinator asks all members every few seconds what their
threads are at (`distributed.progress`), and counts how long one has been at the same piece of work.

What counts is time in which everybody was asked and answered: if the coordinator itself, or the whole machine, stands
still for an hour, nobody has hung for an hour. A thread that a debugger holds never hangs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

QUESTIONS = 20  # within the shortest time after which somebody hangs
MOST_SECONDS = 5.0  # between two questions
LONGEST = 10.0  # times the longest piece of work that any process of its role has done may one last
FIRST = 3.0  # times as long may the first of its kind last: libraries are loaded, kernels are compiled

Member = TypeVar("Member", bound=Hashable)


@dataclass
class _Thread:
    said: Mapping[str, Any]
    stuck: float = 0.0  # seconds without a new note


@dataclass
class _Asked:
    heard: float  # when, by the watchdog's clock
    silent: float = 0.0  # seconds without an answer
    threads: dict[str, _Thread] = field(default_factory=dict)


class Watchdog(Generic[Member]):
    """Watches members; it neither asks nor ends them itself.

    Parameters
    ----------
    seconds: that a thread may be at one piece of work, and that all may wait for each other, at least; 0: for ever.
    role: of a member. Those of one role do the same kind of work.
    now: a clock.
    """

    def __init__(self, seconds: float, role: Callable[[Member], str] = str, now: Callable[[], float] = time.monotonic):
        self._seconds, self._role, self._now = seconds, role, now
        self.interval = min(MOST_SECONDS, seconds / QUESTIONS) if seconds else math.inf
        """Seconds between two questions."""
        self._asked_at = -math.inf
        self._members: dict[Member, _Asked] = {}
        self._longest: dict[str, float] = {}

    def due(self, members: Iterable[Member]) -> list[Member]:
        """Whom to ask now: all who are members, once an interval is over. Whoever is not named is forgotten."""
        now = self._now()
        if not self._seconds or now - self._asked_at < self.interval:
            return []
        elapsed = self._elapsed(self._asked_at, now)
        self._asked_at, named = now, list(members)
        self._members = {one: self._members.get(one) or _Asked(now, -elapsed) for one in named}
        for asked in self._members.values():
            asked.silent += elapsed
        return named

    def heard(self, member: Member, threads: Sequence[Mapping[str, Any]]) -> None:
        """An answer: the pulse of each of its threads."""
        asked = self._members.get(member)
        if asked is None:
            return
        now = self._now()
        elapsed = self._elapsed(asked.heard, now)
        asked.heard, asked.silent = now, 0.0
        for said in threads:
            thread = asked.threads.setdefault(said["name"], _Thread(said))
            moved = said["moves"] != thread.said["moves"] or said["traced"]
            thread.said, thread.stuck = said, 0.0 if moved else thread.stuck + elapsed
            role = self._role(member)
            self._longest[role] = max(self._longest.get(role, 0.0), said["longest"])

    def hung(self) -> dict[Member, str]:
        """Who has been at one piece of work for too long, or has not answered, with a clause that says so."""
        found: dict[Member, str] = {}
        if not self._seconds:
            return found
        for member, asked in self._members.items():
            if asked.silent > self._seconds:
                found[member] = f"has not answered for {asked.silent:.3g} s, though its link lives"
            for thread in asked.threads.values():
                if thread.said["works"] and thread.stuck > self._limit(self._role(member), thread):
                    found[member] = (
                        f"has been at the {thread.said['what']} for {thread.stuck:.3g} s: {thread.said['where']}"
                    )
        return found

    def forget(self, member: Member) -> None:
        """It is gone: what it said last says nothing any more."""
        self._members.pop(member, None)

    def waits(self) -> None:
        """From now on members are waited for: those who wait for each other, too, have not done so in vain so far."""
        for asked in self._members.values():
            for thread in asked.threads.values():
                if not thread.said["works"]:
                    thread.stuck = 0.0

    def deadlock(self) -> str | None:
        """Where all threads of all members wait, and none has stirred for too long: what each waits for."""
        threads = [(member, thread) for member, asked in self._members.items() for thread in asked.threads.values()]
        if not self._seconds or any(one.said["works"] or one.said["traced"] for _, one in threads):
            return None
        if not threads or min(one.stuck for _, one in threads) <= self._seconds:
            return None
        first = dict(reversed(threads))  # of each member: the thread that plays its role
        return ", ".join(f"{member} waits for {first[member].said['what']}" for member in sorted(first, key=str))

    def _limit(self, role: str, thread: _Thread) -> float:
        usual = max(self._seconds, LONGEST * self._longest.get(role, 0.0))
        return usual if thread.said["finished"] else FIRST * usual

    def _elapsed(self, since: float, now: float) -> float:
        return min(now - since, 2 * self.interval) if since > -math.inf else 0.0
