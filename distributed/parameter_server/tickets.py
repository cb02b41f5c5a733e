"""Tickets: which pushes there are to make, who makes them, and which are done.

In asynchronous training a *ticket* is one push: a share of a step. Where a step is one push (`batch.per=push`), a step
has one share; where it is a batch of all workers (`batch.per=step`), it has as many as there are workers. The
coordinator hands tickets out, up to the step that the trainer has asked for; a server counts each once, whoever repeats
it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Ticket(NamedTuple):
    """Share `share` of step `step` (steps count from 1, shares from 0)."""

    step: int
    share: int = 0


class TicketPool:
    """The coordinator's tickets: handed out in ascending order, given back by who is lost, done on every server.

    Parameters
    ----------
    shares: tickets of a step.
    shards: on how many shards a ticket has to be applied; with a server for several shards, it speaks for each.
    first: the first step; those before it are complete.
    """

    def __init__(self, shares: int = 1, shards: int = 1, first: int = 1):
        self._shares, self._shards = shares, shards
        self.restart(first - 1)

    def restart(self, step: int) -> None:
        """Begin behind `step`: everything up to it is complete, everything after it is to be done and not granted."""
        self._granted = self._complete = step
        self._next = Ticket(step + 1)
        self._returned: list[Ticket] = []  # a heap
        self._holders: dict[Ticket, int] = {}
        self._applied: dict[Ticket, set[int]] = {}  # on which shards; of tickets of steps that are not complete

    @property
    def granted(self) -> int:
        """The last step whose tickets may be handed out."""
        return self._granted

    @property
    def complete(self) -> int:
        """The last step up to which every ticket is done or dropped."""
        return self._complete

    @property
    def begun(self) -> int:
        """The last step of which a ticket was handed out: where a run that must halt may halt."""
        return self._next.step if self._next.share else self._next.step - 1

    @property
    def at_rest(self) -> bool:
        """Whether everything granted is complete."""
        return self._complete == self._granted

    def grant(self, step: int) -> None:
        """Tickets up to this step may be handed out; a lower step than before changes nothing."""
        self._granted = max(self._granted, step)

    def withdraw(self) -> int:
        """Begin no further step: the grant ends with the last step begun, which is returned."""
        self._granted = max(self.begun, self._complete)
        return self._granted

    def take(self, worker: int) -> Ticket | None:
        """The next ticket for a worker, or None where it has to park until `grant` or `lose` make some."""
        if self._returned:
            ticket = heapq.heappop(self._returned)
        elif self._next.step <= self._granted:
            ticket, self._next = self._next, self._after(self._next)
        else:
            return None
        self._holders[ticket] = worker
        return ticket

    def part(self, worker: int) -> int:
        """As whom a worker computes: itself, except in a replay (`replay.ReplayPool`)."""
        return worker

    def holder(self, ticket: Ticket) -> int | None:
        """Who has a ticket that is not done."""
        return self._holders.get(ticket)

    def applied(self, ticket: Ticket, shard: int) -> bool:
        """A shard has applied a ticket; whether the ticket is done with this. A repetition is not."""
        if not self._open(ticket):
            return False
        shards = self._applied.setdefault(ticket, set())
        if len(shards) == self._shards:
            return False
        shards.add(shard)
        return len(shards) == self._shards and self._finish(ticket)

    def drop(self, ticket: Ticket) -> bool:
        """Count a ticket as done though it will not be applied (any further); whether it was open."""
        if not self._open(ticket) or len(self._applied.get(ticket, ())) == self._shards:
            return False
        self._applied[ticket] = set(range(self._shards))
        return self._finish(ticket)

    def lose(self, worker: int) -> list[Ticket]:
        """A worker is gone: its tickets that are not done can be taken again; they are returned, ascending.

        Some shards may have applied one already; they know it when it comes again (`AppliedTickets`).
        """
        lost = self.withhold(worker)
        for ticket in lost:
            self.give_back(ticket)
        return lost

    def withhold(self, worker: int) -> list[Ticket]:
        """A worker is gone, but nobody may take its tickets that are not done before each is given back or dropped."""
        lost = sorted(ticket for ticket, holder in self._holders.items() if holder == worker)
        for ticket in lost:
            del self._holders[ticket]
        return lost

    def give_back(self, ticket: Ticket) -> None:
        """A ticket that was withheld can be taken again, unless it is done."""
        if self._open(ticket) and len(self._applied.get(ticket, ())) < self._shards:
            heapq.heappush(self._returned, ticket)

    def _open(self, ticket: Ticket) -> bool:
        return self._complete < ticket.step and ticket < self._next

    def _finish(self, ticket: Ticket) -> bool:
        if self._holders.pop(ticket, None) is None and ticket in self._returned:
            self._returned.remove(ticket)
            heapq.heapify(self._returned)
        while self._complete < self._granted and self._is_complete(self._complete + 1):
            self._complete += 1
            for share in range(self._shares):
                del self._applied[Ticket(self._complete, share)]
        return True

    def _is_complete(self, step: int) -> bool:
        tickets = (Ticket(step, share) for share in range(self._shares))
        return all(len(self._applied.get(ticket, ())) == self._shards for ticket in tickets)

    def _after(self, ticket: Ticket) -> Ticket:
        return Ticket(ticket.step, ticket.share + 1) if ticket.share + 1 < self._shares else Ticket(ticket.step + 1)


class AppliedTickets:
    """A shard's memory of the tickets that it has applied: each counts once, however often it is pushed.

    complete: the last step of which every ticket is applied; nothing but newer ones are remembered one by one.
    """

    def __init__(self, complete: int = 0, newer: Iterable[Ticket] = ()):
        self.complete = complete
        self._newer = set(newer)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket.step <= self.complete or ticket in self._newer

    def add(self, ticket: Ticket) -> bool:
        """Note a ticket; False where it was applied before and its gradient must be left alone."""
        if ticket in self:
            return False
        self._newer.add(ticket)
        return True

    def horizon(self, step: int) -> None:
        """Every ticket up to `step` is applied."""
        self.complete = max(self.complete, step)
        self._newer = {ticket for ticket in self._newer if ticket.step > self.complete}

    @property
    def newer(self) -> list[Ticket]:
        """Those beyond `complete`, ascending: what another server has to know when it takes the shard over."""
        return sorted(self._newer)
