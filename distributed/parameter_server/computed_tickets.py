"""What workers said of the tickets that they computed: losses, norms, whether all was finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed.parameter_server.tickets import Ticket


class ComputedTickets:
    """By ticket and part. A ticket of a lost worker is computed by another, too; then that one's word counts whose push
    was applied, by the first of the shards. So a replay, where both come again in any order, records the same.
    """

    def __init__(self) -> None:
        self._said: dict[Ticket, dict[int, dict[str, Any]]] = {}
        self._applied: dict[Ticket, dict[int, int]] = {}  # by shard, whose push

    def clear(self) -> None:
        """Forget everything."""
        self._said.clear()
        self._applied.clear()

    def say(self, ticket: Ticket, part: int, said: dict[str, Any]) -> None:
        """A worker has computed a ticket."""
        self._said.setdefault(ticket, {})[part] = said

    def applied(self, ticket: Ticket, part: int, shard: int) -> None:
        """A shard has applied a worker's push of a ticket."""
        self._applied.setdefault(ticket, {})[shard] = part

    def are_told(self, ticket: Ticket, may_come: Callable[[int], bool]) -> bool:
        """Whether the word that counts is there; `may_come`: of a part, whether it may still say something."""
        said, teller = self._said.get(ticket, {}), self._teller(ticket)
        return bool(said) and (teller is None or teller in said or not may_come(teller))

    def of(self, ticket: Ticket) -> dict[str, Any]:
        """What was said of a ticket."""
        said, teller = self._said[ticket], self._teller(ticket)
        return said[teller] if teller in said else next(iter(said.values()))

    def forget(self, step: int) -> None:
        """Forget what was said of steps up to this one."""
        self._said = {ticket: said for ticket, said in self._said.items() if ticket.step > step}
        self._applied = {ticket: parts for ticket, parts in self._applied.items() if ticket.step > step}

    def _teller(self, ticket: Ticket) -> int | None:
        applied = self._applied.get(ticket)
        return applied[min(applied)] if applied else None
