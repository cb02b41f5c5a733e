"""What becomes of a lost worker's tickets where `distribution.on_loss` is `drop`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distributed.parameter_server.tickets import Ticket, TicketPool


class DroppedTickets:
    """The shares of steps that are left out for good, and those that may be.

    A share is left out only where no shard has applied it, so that a step has the same contributors on every shard, and
    only where another share of its step is left: an update is made in every step. The others are computed anew. What
    shards have applied is known once all of them have answered to the loss; until then nobody is given the ticket.

    shares: tickets of a step.
    dropped: in a replay, those of the run that is repeated, each with the worker that was lost.
    """

    def __init__(self, shares: int, dropped: Iterable[tuple[Ticket, int]] = ()):
        self._shares = shares
        self._dropped = dict(dropped)
        self._withheld: dict[Ticket, int] = {}
        self._applied: set[Ticket] = set()  # on a shard at least

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._dropped

    def __iter__(self) -> Iterator[Ticket]:
        return iter(sorted(self._dropped))

    def __len__(self) -> int:
        return len(self._dropped)

    def restart(self, step: int) -> None:
        """Training goes on behind `step`: forget what came after it."""
        self._dropped = {ticket: worker for ticket, worker in self._dropped.items() if ticket.step <= step}
        self._withheld.clear()
        self._applied.clear()

    def withhold(self, worker: int, pool: TicketPool) -> None:
        """A worker is lost: nobody gets its tickets until `decide`."""
        self._withheld |= dict.fromkeys(pool.withhold(worker), worker)

    def applied(self, tickets: Iterable[Ticket]) -> None:
        """A shard says after a loss that it has applied these."""
        self._applied.update(tickets)

    def decide(self, pool: TicketPool) -> None:
        """All shards have said what they have: drop what none of them has, and let the rest be computed."""
        for ticket, worker in sorted(self._withheld.items()):
            others = [Ticket(ticket.step, share) for share in range(self._shares) if share != ticket.share]
            if ticket in self._applied or all(other in self._dropped for other in others):
                pool.give_back(ticket)
            elif pool.drop(ticket):
                self._dropped[ticket] = worker
        self._withheld.clear()
        self._applied.clear()

    def between(self, after: int, through: int) -> list[list[int]]:
        """Worker, step and share of what was left out of the steps behind `after`, up to `through`."""
        return [
            [worker, ticket.step, ticket.share]
            for ticket, worker in sorted(self._dropped.items())
            if after < ticket.step <= through
        ]
