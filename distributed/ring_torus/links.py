"""A node's links across rings: to those that hold the same stages in the ring before and the ring behind.

They are made once, when the rings begin, each by the node in the ring before, with what makes the links of a ring, too
(`distributed.ring_tmp.links`). A node that has not begun yet lets the other wait; what that one would send
waits with it. A link that ends is not made anew: see `distributed.ring_torus.member`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from distributed.links.link import Link
from distributed.ring_tmp.links import NeighbourLinks
from distributed.ring_tmp.messages import Kind, Message


@dataclass(frozen=True)
class Reached:
    """A link across was tried in an epoch: what came of it."""

    epoch: int
    number: int
    link: Link | None


class CrossLinks:
    """The links across of node `number`; all is called by the thread that plays it."""

    def __init__(self, links: NeighbourLinks, number: int):
        self._links, self._number = links, number
        self._epoch = 0
        self._made: dict[int, Link] = {}  # by number, over which messages go
        self._tried: dict[int, Link] = {}  # by number, dialled and not answered
        self._early: dict[int, list[Message]] = {}  # by number of a neighbour that is not linked yet
        self._waiting: list[tuple[Link, Message]] = []  # of nodes that dialled before this one began

    def enter(self, column: Sequence[int], epoch: int) -> None:
        """Begin to be linked to the neighbours in a column, which are its nodes by ring."""
        self._epoch = epoch
        at, rings = column.index(self._number), len(column)
        following = column[(at + 1) % rings]
        self._early = {one: [] for one in (column[(at - 1) % rings], following) if one != self._number}
        if rings > 2 or (rings == 2 and at == 0):  # two are linked once
            threading.Thread(target=self._reach, args=(epoch, following), name="dial-across", daemon=True).start()
        waiting, self._waiting = self._waiting, []
        for link, message in waiting:
            self.hear(link, message)

    def send(self, number: int, message: Message) -> None:
        """Send to a neighbour in the column, as soon as there is a link."""
        if number in self._made:
            self._links.transmit(self._made[number], message)
        elif number in self._early:
            self._early[number].append(message)

    def hear(self, link: Link, message: Message) -> int | None:
        """Who has sent a message that came across; None where it is about the link itself, or of no use any more."""
        match message.kind:
            case Kind.ACROSS_HELLO:
                self._greet(link, message)
            case Kind.ACROSS_ANSWER:
                number = next((one for one, tried in self._tried.items() if tried is link), None)
                if number is not None:
                    self._use(number, self._tried.pop(number))
            case _:
                return next((one for one, made in self._made.items() if made is link), None)
        return None

    def reached(self, said: Reached) -> bool:
        """A link was tried; returns whether that was in vain, and still matters."""
        if said.epoch != self._epoch:
            if said.link is not None:
                said.link.shutdown()
            return False
        if said.link is not None:
            self._tried[said.number] = said.link
        return said.link is None

    def ended(self, link: Link) -> bool:
        """A link has ended; returns whether it was one of these."""
        self._waiting = [one for one in self._waiting if one[0] is not link]
        return any(one is link for one in (*self._made.values(), *self._tried.values()))

    def reset(self) -> None:
        """End all of them."""
        for link in (*self._made.values(), *self._tried.values(), *(one for one, _ in self._waiting)):
            link.shutdown()
        self._epoch, self._made, self._tried, self._early, self._waiting = 0, {}, {}, {}, []

    # ------------------------------------------------------------------------------------------------- inside

    def _reach(self, epoch: int, number: int) -> None:
        hello = Message(Kind.ACROSS_HELLO, epoch, payload={"number": self._number})
        self._links.reach(number, hello, lambda link: Reached(epoch, number, link))

    def _greet(self, link: Link, message: Message) -> None:
        number = message.payload["number"]
        if message.epoch > self._epoch:
            self._waiting.append((link, message))
        elif message.epoch == self._epoch and number in self._early:
            self._links.transmit(link, Message(Kind.ACROSS_ANSWER, self._epoch, payload={}))
            self._use(number, link)
        else:
            link.shutdown()

    def _use(self, number: int, link: Link) -> None:
        self._made[number] = link
        for message in self._early.pop(number):
            self._links.transmit(link, message)
