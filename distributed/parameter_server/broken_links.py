"""Links between members that have broken though both ends live: when they are made anew, and when that is hopeless."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import dataclass

from distributed.parameter_server.messages import Member

GRACE_SECONDS = 0.5  # between a broken link and the verdict that both of its ends live
LOST_LINKS = 5  # between the same members, each within LOST_LINK_SECONDS of the last, before one of them counts as lost
LOST_LINK_SECONDS = 60.0

Pair = frozenset[Member]


@dataclass(frozen=True)
class Verdict:
    """What has come of links that were broken for a while.

    lost: how many links between living members.
    hopeless: members that have to go, because theirs break again and again. Empty where all are worth another try.
    """

    lost: int
    hopeless: frozenset[Member]


class BrokenLinks:
    """Counts them.

    Parameters
    ----------
    now: a clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._since: dict[Pair, float] = {}
        self._breaks: dict[Pair, tuple[int, float]] = {}  # how many in a row, the last of them when

    def __bool__(self) -> bool:
        """Whether some are broken on which there is no verdict yet."""
        return bool(self._since)

    def note(self, one: Member, other: Member) -> None:
        """One of them says that the link between them has ended."""
        self._since[frozenset((one, other))] = self._now()

    def verdict(self, live: Set[Member]) -> Verdict:
        """On links that have been broken for a while; of those with a dead end, that end was what was lost."""
        now = self._now()
        over = [pair for pair, since in self._since.items() if now - since >= GRACE_SECONDS]
        for pair in over:
            del self._since[pair]
        due = [pair for pair in over if pair <= live]
        for pair in due:
            count, last = self._breaks.get(pair, (0, -LOST_LINK_SECONDS))
            self._breaks[pair] = (count + 1 if now - last < LOST_LINK_SECONDS else 1, now)
        # Of a worker and a server the worker has to go, of two servers the later one.
        return Verdict(len(due), frozenset(max(pair) for pair in due if self._breaks[pair][0] >= LOST_LINKS))
