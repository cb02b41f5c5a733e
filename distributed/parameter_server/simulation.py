"""Asynchronous training in virtual time: the rules of clocks, tickets and traces, driven without processes or waiting.

`simulate` plays a run of given workers and durations on the modules that real servers and the coordinator use. It
answers how long a run would wait under a mode, how stale its pushes would be, and makes the traces that it would have
left: replaying them trains, on a few cores, as those workers would have.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed.parameter_server.clocks import Clocks, staleness_bound
from distributed.parameter_server.staleness import StalenessMeter
from distributed.parameter_server.tickets import AppliedTickets, Ticket, TicketPool
from distributed.parameter_server.trace import TraceWriter

Durations = Callable[[int, Ticket], float]
"""Seconds that a worker computes for a ticket."""
Delays = Callable[[int, int], float]
"""Seconds of a message between a worker and a server; messages of a pair do not overtake each other."""


@dataclass
class Simulation:
    """What a simulated run did.

    seconds: virtual time from the first pull to the last update.
    waited: by worker, the time from asking for values to having them all, messages included.
    computed: by worker, its tickets in order.
    staleness: of each server's pushes.
    widest_gap: the largest clock gap on any server.
    traces: of each server, as its file.
    """

    seconds: float = 0.0
    waited: dict[int, float] = field(default_factory=dict)
    computed: dict[int, list[Ticket]] = field(default_factory=dict)
    staleness: list[StalenessMeter] = field(default_factory=list)
    widest_gap: int = 0
    traces: list[bytes] = field(default_factory=list)

    @property
    def most_lag(self) -> int:
        """The largest version lag of any push."""
        return max((lag for meter in self.staleness for lag in meter.lags), default=0)


def simulate(
    workers: int,
    mode: str,
    staleness: int,
    durations: Durations,
    *,
    steps: int,
    horizon: int = 0,
    shares: int = 1,
    servers: int = 1,
    delays: Delays = lambda worker, server: 0.0,
    losses: Sequence[tuple[float, int]] = (),
    joins: Sequence[tuple[float, int]] = (),
    train_id: str = "simulated",
) -> Simulation:
    """Play `steps` steps of asynchronous training.

    Parameters
    ----------
    workers: alive at the start, numbered from 0.
    mode, staleness: the clock rule. Under bsp every worker takes one share a step, and a server's version counts steps.
    durations, delays: how long computing and sending take; called in the order of the simulated events.
    horizon: everybody rests after this many steps each, as for an evaluation; 0: only at the end.
    shares: tickets of a step.
    losses, joins: (time, worker); the numbers of those who join are new ones.

    Raises RuntimeError where tickets are left and nothing can happen any more: all workers are lost.
    """
    return _Play(workers, mode, staleness, durations, steps, horizon, shares, servers, delays, train_id).run(
        losses, joins
    )


class _Server:
    """The rules of one server with one shard."""

    def __init__(self, number: int, servers: int, workers: Sequence[int], mode: str, bound: float, train_id: str):
        self.number, self.synchronous = number, mode == "bsp"
        self.clocks = Clocks(bound, workers)
        self.meter = StalenessMeter()
        self.applied = AppliedTickets()
        self.trace = TraceWriter(number, servers, train_id)
        self.version = 0
        self.wanted: dict[int, Ticket] = {}
        self.widest_gap = 0

    def push(self, worker: int, ticket: Ticket, now: float) -> bool:
        """A push is here; whether it was applied."""
        fresh = self.applied.add(ticket)
        if fresh:
            self.meter.applied(worker, self.version, self.clocks.gap, now)
            self.trace.apply(worker, ticket)
            self.version += not self.synchronous
        self.clocks.pushed(worker)
        self.widest_gap = max(self.widest_gap, self.clocks.gap)
        if self.synchronous:
            self.version = max(self.version, self.clocks.slowest)
        return fresh

    def answers(self, now: float) -> list[tuple[int, Ticket]]:
        """The pulls that are answered now."""
        released = [(worker, self.wanted.pop(worker)) for worker in self.clocks.released()]
        for worker, ticket in released:
            self.meter.pulled(worker, self.version, now)
            self.trace.pull(worker, ticket)
        return released

    def lose(self, worker: int) -> None:
        self.clocks.lose(worker)
        self.meter.forget(worker)
        self.wanted.pop(worker, None)

    def rest(self, step: int) -> None:
        """A horizon."""
        self.clocks.restart(self.clocks.workers)
        self.applied.horizon(step)
        self.trace.horizon(step)
        self.version = 0 if self.synchronous else self.version


class _Play:
    """One simulation: events in a heap by (time, order of making), each a call."""

    def __init__(
        self,
        workers: int,
        mode: str,
        staleness: int,
        durations: Durations,
        steps: int,
        horizon: int,
        shares: int,
        servers: int,
        delays: Delays,
        train_id: str,
    ):
        bound = staleness_bound(mode, staleness)
        self.durations, self.delays, self.steps, self.horizon = durations, delays, steps, horizon or steps
        self.pool = TicketPool(shares=shares, shards=servers)
        self.alive = set(range(workers))
        self.servers = [_Server(n, servers, range(workers), mode, bound, train_id) for n in range(servers)]
        self.result = Simulation(staleness=[server.meter for server in self.servers])
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.now = 0.0
        self.parked: set[int] = set()
        self.missing: dict[int, set[int]] = {}  # by worker, the servers whose answer is not here
        self.asked: dict[int, float] = {}
        self.last: dict[tuple[int, int, bool], float] = {}  # when the last message of a pair and direction arrives

    def run(self, losses: Sequence[tuple[float, int]], joins: Sequence[tuple[float, int]]) -> Simulation:
        for time, worker in losses:
            self.at(time, self.lose, worker)
        for time, worker in joins:
            self.at(time, self.join, worker)
        self.parked = set(self.alive)
        self.grant()
        while self.heap and self.pool.complete < self.steps:
            self.now, _, call, arguments = heapq.heappop(self.heap)
            call(*arguments)
        if self.pool.complete < self.steps:
            raise RuntimeError(f"step {self.pool.complete + 1} is never done: no worker is alive, or all wait")
        self.result.seconds = self.now
        self.result.widest_gap = max(server.widest_gap for server in self.servers)
        self.result.traces = [server.trace.take() for server in self.servers]
        return self.result

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.heap, (time, next(self.order), call, arguments))

    def message(self, worker: int, server: int, there: bool, call: Callable[..., None], *arguments: Any) -> None:
        """Call when a message between the two has arrived, behind those sent before it in this direction."""
        pair = (worker, server, there)
        self.last[pair] = max(self.last.get(pair, 0.0), self.now + self.delays(worker, server))
        self.at(self.last[pair], call, *arguments)

    def grant(self) -> None:
        self.pool.grant(min(self.pool.complete + self.horizon, self.steps))
        self.wake()

    def wake(self) -> None:
        for worker in sorted(self.parked):
            self.go_on(worker, silent=True)

    def go_on(self, worker: int, silent: bool = False) -> None:
        """Take a ticket and ask for values, or park; a parked worker that finds nothing has nothing to say."""
        ticket = self.pool.take(worker)
        if ticket is None:
            self.parked.add(worker)
            for server in self.servers if not silent else ():
                self.message(worker, server.number, True, self.park_arrives, worker, server)
            return
        self.parked.discard(worker)
        self.missing[worker] = {server.number for server in self.servers}
        self.asked[worker] = self.now
        for server in self.servers:
            self.message(worker, server.number, True, self.pull_arrives, worker, server, ticket)

    def pull_arrives(self, worker: int, server: _Server, ticket: Ticket) -> None:
        if worker in server.clocks.workers:
            server.wanted[worker] = ticket
            server.clocks.pull(worker)
            self.answer(server)

    def park_arrives(self, worker: int, server: _Server) -> None:
        if worker in server.clocks.workers:
            server.clocks.park(worker)
            self.answer(server)

    def push_arrives(self, worker: int, server: _Server, ticket: Ticket) -> None:
        if worker not in server.clocks.workers:
            return  # from a worker that is lost: its link is closed
        if server.push(worker, ticket, self.now):
            self.pool.applied(ticket, server.number)
        self.answer(server)
        if self.pool.at_rest:
            for one in self.servers:
                one.rest(self.pool.complete)
            self.grant()

    def answer(self, server: _Server) -> None:
        for worker, ticket in server.answers(self.now):
            self.message(worker, server.number, False, self.reply_arrives, worker, server.number, ticket)

    def reply_arrives(self, worker: int, server: int, ticket: Ticket) -> None:
        if worker not in self.alive:
            return
        self.missing[worker].discard(server)
        if not self.missing[worker]:
            waited = self.result.waited
            waited[worker] = waited.get(worker, 0.0) + self.now - self.asked[worker]
            self.at(self.now + self.durations(worker, ticket), self.computed, worker, ticket)

    def computed(self, worker: int, ticket: Ticket) -> None:
        if worker not in self.alive:
            return
        self.result.computed.setdefault(worker, []).append(ticket)
        for server in self.servers:
            self.message(worker, server.number, True, self.push_arrives, worker, server, ticket)
        self.go_on(worker)

    def lose(self, worker: int) -> None:
        """The coordinator learns of it at once, each server when its word has arrived."""
        if worker not in self.alive:
            return
        self.alive.discard(worker)
        self.parked.discard(worker)
        for server in self.servers:
            self.message(-1, server.number, True, self.lost_arrives, worker, server)
        self.pool.lose(worker)
        self.wake()

    def lost_arrives(self, worker: int, server: _Server) -> None:
        server.lose(worker)
        self.answer(server)

    def join(self, worker: int) -> None:
        """A worker begins when every server knows of it."""
        self.alive.add(worker)
        unaware = {server.number for server in self.servers}
        for server in self.servers:
            self.message(-1, server.number, True, self.join_arrives, worker, server, unaware)

    def join_arrives(self, worker: int, server: _Server, unaware: set[int]) -> None:
        server.clocks.join(worker)
        unaware.discard(server.number)
        if not unaware and worker in self.alive:
            self.go_on(worker, silent=True)
