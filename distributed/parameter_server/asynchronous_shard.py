"""A shard under SSP and ASP: beside its parameters, who may go on, which pushes it has had, and what has to be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.parameter_server.clocks import Clocks
from distributed.parameter_server.messages import Member
from distributed.parameter_server.replay import ReplayOrder
from distributed.parameter_server.shard import Shard
from distributed.parameter_server.staleness import StalenessMeter
from distributed.parameter_server.tickets import AppliedTickets, Ticket
from distributed.parameter_server.trace import TraceWriter

Push = tuple[int, Ticket]
"""Who pushed (the part that it plays), and what."""


@dataclass
class Arriving:
    """A push of which not everything is here yet, or that waits for its turn."""

    facts: dict[str, Any] | None = None
    pieces: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass
class Update:
    """An update since the last horizon: whose, from which version, and until its shadow has it the gradient."""

    part: int
    ticket: Ticket
    pulled: int
    rate: float
    pieces: dict[int, torch.Tensor] | None = None
    sender: Member | None = None  # in a replay not the worker of that number


class AsynchronousShard:
    """What a server holds of a shard.

    Parameters
    ----------
    shard: its parameters and optimizer state.
    clocks: of the workers.
    apply_every: pushes that make one update.
    give_back: takes buffers of gradients that are used.
    order: of a replay.
    """

    def __init__(
        self,
        shard: Shard,
        clocks: Clocks,
        apply_every: int,
        give_back: Callable[[object], None],
        order: ReplayOrder | None = None,
    ):
        self.shard, self.clocks, self.order = shard, clocks, order
        self._apply_every, self._give_back = apply_every, give_back
        self.meter = StalenessMeter()
        self.applied = AppliedTickets()
        self.updates: list[Update] = []
        """Since the last horizon."""
        self.unsafe: deque[Update] = deque()
        """Those that the shadow has not confirmed."""
        self.waiting: dict[int, tuple[Ticket, Member]] = {}
        """Pulls, by part."""
        self.free: list[int] = []
        """Parts that the clock rule lets go."""
        self.pulled: dict[int, tuple[Ticket, int, float]] = {}
        """Each part's last answer: for which ticket, of which version, when."""
        self.arriving: dict[Push, Arriving] = {}
        self.counted: set[Push] = set()
        """Pushes that have moved a clock."""
        self._pulls: list[tuple[int, int, Ticket]] = []  # version, part, ticket; of nobody's update
        self._unused: list[Push] = []  # pushes that were left alone
        self._gathered: torch.Tensor | None = None  # of several pushes that make one update
        self._gathered_rates: list[float] = []

    @property
    def version(self) -> int:
        """Updates since the last horizon."""
        return len(self.updates)

    # ------------------------------------------------------------------------------------------------- pushes

    def arrives(self, push: Push) -> Arriving:
        """What is here of a push."""
        return self.arriving.setdefault(push, Arriving())

    def is_here(self, push: Push) -> bool:
        """Whether all of a push is here."""
        arriving = self.arriving[push]
        return arriving.facts is not None and len(arriving.pieces) == len(self.shard.pieces)

    def forget(self, push: Push) -> None:
        """Drop a push."""
        self.give_back(self.arriving.pop(push).pieces)

    def give_back(self, pieces: Mapping[int, torch.Tensor]) -> None:
        """Let the buffers of a gradient be used again."""
        for gradient in pieces.values():
            self._give_back(gradient)

    def apply(self, update: Update) -> None:
        """Apply a push, or gather it until there are enough for one update."""
        assert update.pieces is not None
        self.updates.append(update)
        if self._apply_every == 1:
            self.shard.updates += 1
            for piece in self.shard.pieces:
                self.shard.update(piece, update.pieces[piece.index], self.shard.updates, update.rate)
            return
        if self._gathered is None:
            self._gathered = torch.zeros_like(self.shard.values)
        for piece in self.shard.pieces:
            piece.local(self._gathered).add_(update.pieces[piece.index])
        self._gathered_rates.append(update.rate)
        if len(self._gathered_rates) == self._apply_every:
            self._use_gathered()

    def _use_gathered(self) -> None:
        """Apply the mean of what was gathered, at the mean of its rates."""
        if not self._gathered_rates:
            return
        assert self._gathered is not None
        count = len(self._gathered_rates)
        self._gathered.div_(count)
        self.shard.updates += 1
        for piece in self.shard.pieces:
            rate = sum(self._gathered_rates) / count
            self.shard.update(piece, piece.local(self._gathered), self.shard.updates, rate)
        self._gathered = None
        self._gathered_rates = []

    def safe_tickets(self) -> list[list[int]]:
        """Tickets since the last horizon that cannot be lost any more, and whose: word of them may have been lost."""
        unsafe = {update.ticket for update in self.unsafe}
        return [[*update.ticket, update.part] for update in self.updates if update.ticket not in unsafe]

    # ------------------------------------------------------------------------------------------------- what happens

    def lose(self, part: int) -> None:
        """A worker is gone, and what has come of a push of it."""
        self.clocks.lose(part)
        self.waiting.pop(part, None)
        if part in self.pulled:
            ticket, version, _ = self.pulled.pop(part)
            self.note_pull(part, ticket, version)
        for push in [push for push in self.arriving if push[0] == part]:
            self.forget(push)

    def note_pull(self, part: int, ticket: Ticket, version: int) -> None:
        """Keep for the trace a pull that led to no update here: it may have led to one on another shard."""
        pull = (version, part, ticket)
        if pull not in self._pulls and all((one.part, one.ticket) != (part, ticket) for one in self.updates):
            self._pulls.append(pull)

    def note_unused(self, push: Push) -> None:
        """Keep for the trace a push whose ticket was applied from another worker."""
        if push not in self._unused and all((one.part, one.ticket) != push for one in self.updates):
            self._unused.append(push)

    def rest(
        self, step: int, workers: Iterable[int], writer: TraceWriter, dropped: Iterable[Sequence[int]] = ()
    ) -> None:
        """A horizon: use what was gathered, write down what happened since the last one, and let clocks begin anew.

        dropped: worker, step and share of what was left out up to `step`.
        """
        self._use_gathered()
        for part, (ticket, version, _) in self.pulled.items():
            self.note_pull(part, ticket, version)
        # Of one worker's pulls of one version only the last can have led to an update, which made another version.
        idle = [(version, part, 0, at, ticket) for at, (version, part, ticket) in enumerate(self._pulls)]
        pulls = sorted([*idle, *((update.pulled, update.part, 1, 0, update.ticket) for update in self.updates)])
        at = 0
        for version, update in enumerate(self.updates):
            while at < len(pulls) and pulls[at][0] <= version:
                writer.pull(pulls[at][1], pulls[at][-1])
                at += 1
            writer.apply(update.part, update.ticket)
        for _, part, *_, ticket in pulls[at:]:
            writer.pull(part, ticket)
        for part, ticket in self._unused:
            writer.unused(part, ticket)
        for part, of_step, share in dropped:
            if of_step > self.applied.complete:
                writer.drop(part, Ticket(of_step, share))
        writer.horizon(step)
        self.updates.clear()
        self._pulls.clear()
        self._unused.clear()
        self.pulled.clear()
        self.waiting.clear()
        self.free.clear()
        self.counted.clear()
        self.applied.horizon(step)
        self.clocks.restart(workers)
        self.shard.applied = step

    # ------------------------------------------------------------------------------------------------- as state

    @property
    def buffers(self) -> Sequence[torch.Tensor]:
        """Everything of it that is long: parameters, the optimizer's, and what is gathered for an update."""
        return [*self.shard.buffers, *([self._gathered] if self._gathered is not None else [])]

    def put(self, number: int, content: torch.Tensor) -> None:
        """Take over one of another server's `buffers`."""
        if number == len(self.buffers):
            self._gathered = torch.empty_like(self.shard.values)
        self.buffers[number].copy_(content)

    def facts(self) -> dict[str, Any]:
        """Everything that is short, as JSON data."""
        return {
            "updates": self.shard.updates,
            "complete": self.applied.complete,
            "newer": [list(ticket) for ticket in self.applied.newer],
            "history": [[update.part, list(update.ticket), update.pulled] for update in self.updates],
            "pulls": [[version, part, list(ticket)] for version, part, ticket in self._pulls],
            "unused": [[part, list(ticket)] for part, ticket in self._unused],
            "gathered": self._gathered_rates,
            "staleness": self.meter.to_dict(),
        }

    def take_over(self, facts: Mapping[str, Any]) -> None:
        """What `facts` returned, once all buffers are here."""
        self.shard.updates, self.shard.applied = facts["updates"], facts["complete"]
        self.applied = AppliedTickets(facts["complete"], [Ticket(*one) for one in facts["newer"]])
        self.updates = [Update(part, Ticket(*ticket), pulled, 0.0) for part, ticket, pulled in facts["history"]]
        self._pulls = [(version, part, Ticket(*ticket)) for version, part, ticket in facts["pulls"]]
        self._unused = [(part, Ticket(*ticket)) for part, ticket in facts.get("unused", ())]
        self._gathered_rates = facts["gathered"]
        if not self._gathered_rates:
            self._gathered = None
        self.meter = StalenessMeter()
        if facts["staleness"]:
            self.meter.add(facts["staleness"])

    def drop(self) -> None:
        """Let go of all gradients."""
        for arriving in self.arriving.values():
            self.give_back(arriving.pieces)
        for update in self.unsafe:
            self.give_back(update.pieces or {})
