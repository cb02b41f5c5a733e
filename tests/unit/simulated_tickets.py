"""SSP and ASP in one process: servers and workers exchange messages in every order, and some of them die."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from simulated_network import TOKENS, Box, Links, Toy, gradient_of, receive, spoil

from distributed.arithmetic import FlatParameters
from distributed.links.frames import Frame, json_payload
from distributed.parameter_server.asynchronous_membership import AsynchronousMembership
from distributed.parameter_server.asynchronous_server import AsynchronousServer
from distributed.parameter_server.asynchronous_worker import AsynchronousWorker, assignment_of
from distributed.parameter_server.dropped_tickets import DroppedTickets
from distributed.parameter_server.messages import COORDINATOR, Kind, Member, Table, server, worker
from distributed.parameter_server.replay import Replay, ReplayPool
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.tickets import Ticket, TicketPool
from distributed.parameter_server.trace import Trace, TraceWriter, read_trace


class TicketNetwork(Links):
    """An asynchronous run over simulated links; `replay` makes it the repetition of another's traces."""

    def __init__(
        self,
        setup: Setup,
        elements: int,
        workers: int,
        servers: int,
        *,
        shadows: bool = False,
        seed: int = 0,
        replay: Replay | None = None,
    ):
        super().__init__(seed)
        self.setup, self.elements = setup, elements
        self.first = FlatParameters(Toy(elements)).values
        self.filled = {piece.shard for piece in setup.shard_map.pieces}
        self.shares = setup.options["shares"]
        self.pool: TicketPool | ReplayPool = replay.pool() if replay else TicketPool(self.shares, len(self.filled), 1)
        self.drops = setup.lost_leaves == "drop"
        self.dropped = DroppedTickets(self.shares, replay.dropped() if replay else ())
        self.state_lost = ""
        self.rested: dict[int, int] = dict.fromkeys(range(setup.shards), 0)
        self.resting = self.epoch = 0
        self.traces = {shard: TraceWriter(shard, setup.shards, "simulated").take() for shard in range(setup.shards)}
        self.gaps: list[int] = []
        self._idle: set[int] = set()
        self._computing: dict[int, torch.Tensor] = {}
        self.workers: dict[int, AsynchronousWorker] = {}
        self.servers: dict[int, AsynchronousServer] = {}
        self.membership = AsynchronousMembership(
            setup,
            lambda to, message: self.queue(COORDINATOR, to).append(json.dumps(message)),
            shadows=shadows,
            lost=self._lost,
        )
        orders = {shard: replay.order(shard) for shard in range(setup.shards)} if replay else None
        for number in range(servers):
            one = self.servers[number] = AsynchronousServer(
                number, setup, Box(self, server(number)), orders=orders, now=lambda: 0.0
            )
            self.live.add(server(number))
            for shard in range(number, setup.shards, servers):
                self._install(one, shard)
        for number in range(workers):
            self.add_worker(number)
        self.membership.begin(range(workers), range(servers), 1)

    def add_worker(self, number: int) -> None:
        values = torch.full_like(self.first, float("nan"))
        self.workers[number] = AsynchronousWorker(number, self.setup, Box(self, worker(number)), values, spoil)
        self.live.add(worker(number))

    def run(self, step: int, before_move: Callable[[], None] = lambda: None, most: int = 50000) -> None:
        """Train up to a step and rest there."""
        self._grant(step)
        for _ in range(most):
            if self.pool.complete == self.pool.granted > self.resting and self.membership.at_work:
                self._rest(self.pool.granted)
            if all(at >= step for at in self.rested.values()) and self.membership.at_work and not self.unreported:
                self._gather_traces()
                return
            if self.membership.at_work and self.membership.table.epoch != self.epoch:
                self.epoch = self.membership.table.epoch
                if isinstance(self.pool, TicketPool):
                    self.dropped.decide(self.pool)
                    self._grant(self.pool.granted)
                if any(at < self.resting for at in self.rested.values()):
                    self._rest(self.resting)
            if self.pool.granted < step and all(at >= self.resting for at in self.rested.values()):
                self._grant(step)
            before_move()
            self._move()
        raise AssertionError("too many moves")

    def kept_back(self) -> dict[int, list[torch.Tensor]]:
        """By part, what live workers keep back once they have nothing to do."""
        while any(worker(number) in self.live and number not in self._idle for number in self.workers) or any(
            queue for (_, to), queue in self.queues.items() if to == COORDINATOR or to in self.live
        ):
            self._move()
        kept = [one.kept_back() for number, one in self.workers.items() if worker(number) in self.live]
        return {part: list(memory.buffers.values()) for part, memory in filter(None, kept)}

    def replay(self) -> Replay:
        """The traces, read."""
        return Replay([read_trace(self.traces[shard]) for shard in range(self.setup.shards)])

    def replay_traces(self, shard: int) -> Trace:
        """A shard's trace."""
        return read_trace(self.traces[shard])

    def values(self) -> torch.Tensor:
        """The parameters as the primaries have them."""
        flat = torch.full_like(self.first, float("nan"))
        for shard, one in enumerate(self.membership.table.primary):
            self.setup.shard_map.scatter(shard, self.servers[one].shards[shard].values, flat)
        return flat

    def _gather_traces(self) -> None:
        told = {number: one.traces() for number, one in self.servers.items() if server(number) in self.live}
        for shard, primary in enumerate(self.membership.table.primary):
            parts = {step: content for one in told.values() for step, content in one.get(shard, [])}
            parts |= dict(told[primary].get(shard, []))
            for step in sorted(parts):
                self.traces[shard] += parts[step]

    def _move(self) -> None:
        moves: list[Callable[[], None]] = [
            lambda key=key: self._deliver(key)  # type: ignore[misc]
            for key, queue in self.queues.items()
            if queue and (key[1] == COORDINATOR or key[1] in self.live)
        ]
        ready = [
            number
            for number, one in self.workers.items()
            if worker(number) in self.live and (one.is_fresh() or number in self._computing)
        ]
        moves += [lambda number=number: self._compute(number) for number in ready]  # type: ignore[misc]
        moves += [lambda one=one: self._report(one) for one in self.unreported]  # type: ignore[misc]
        if not moves:
            raise AssertionError(f"nothing moves; complete {self.pool.complete} of {self.pool.granted}")
        self.pick.choice(moves)()

    def _install(self, one: AsynchronousServer, shard: int) -> None:
        content = self.setup.shard_map.gather(shard, self.first)
        for buffer in range(3):
            frame = Frame(kind=Kind.STATE, tags=(shard, buffer, 0))
            one.receive(COORDINATOR, frame, content if buffer == 0 else torch.zeros_like(content))
        rest = {"updates": 0, "complete": 0, "newer": [], "history": [], "pulls": [], "gathered": [], "staleness": {}}
        one.receive(COORDINATOR, Frame(kind=Kind.SHARD, tags=(shard, 0, 0)), json_payload(rest))

    def _grant(self, step: int) -> None:
        self.pool.grant(step)
        for number in [number for number in self.workers if worker(number) in self.live]:
            if number in self._idle:
                self._idle.discard(number)
                self._hand_out(number)

    def _rest(self, step: int) -> None:
        self.resting = step
        for one in self.membership.table.servers:
            dropped = self.dropped.between(min(self.rested.values()), step)
            self.queue(COORDINATOR, server(one)).append(json.dumps({"do": "rest", "step": step, "dropped": dropped}))

    def _lost(self, sentence: str) -> None:
        self.state_lost = sentence

    def _report(self, member: Member) -> None:
        self.unreported.remove(member)
        self._idle.discard(member.number) if member.role == "worker" else None
        self.membership.leave(member)
        if member.role == "worker" and isinstance(self.pool, TicketPool):
            if self.drops:
                self.dropped.withhold(member.number, self.pool)
            else:
                self.pool.lose(member.number)
            self._grant(self.pool.granted)

    def _hand_out(self, number: int) -> None:
        ticket = self.pool.take(number)
        word: dict[str, Any] = {"do": "ticket", "step": None}
        if ticket is None:
            self._idle.add(number)
        else:
            word |= {"step": ticket.step, "share": ticket.share, "part": self.pool.part(number)}
            word |= {"rate_scale": 1.0, "probe": False}
        self.queue(COORDINATOR, worker(number)).append(json.dumps(word))

    def _deliver(self, key: tuple[Member, Member]) -> None:
        sender, to = key
        item = self.queues[key].popleft()
        if to == COORDINATOR:
            self._coordinate(sender, json.loads(item))
        elif sender == COORDINATOR:
            self._obey(to, json.loads(item))
        else:
            frame, payload = item
            payload = payload.clone() if isinstance(payload, torch.Tensor) else payload
            if to.role == "worker":
                one = self.workers[to.number]
                if frame.kind == Kind.REPLY:
                    one.put(frame, payload)
                one.receive(sender, frame)
                return
            receive(self.servers[to.number], sender, frame, payload, through_memory=self.pick.random() < 0.5)
            self.gaps += [held.clocks.gap for held in self.servers[to.number].held.values()]

    def _coordinate(self, sender: Member, said: dict[str, Any]) -> None:
        what = said["say"]
        if what == "pushed":
            self.pool.applied(Ticket(said["step"], said["share"]), said["shard"])
        if sender not in self.live:
            return
        if what == "status":
            for shard, tickets in said["tickets"].items():
                for step, share, _ in tickets:
                    self.pool.applied(Ticket(step, share), int(shard))
            self.dropped.applied(Ticket(*ticket) for ticket in said["applied"])
            self.membership.on_status(sender.number, said)
        elif what == "protected":
            self.membership.on_protected(said["shard"], said["epoch"])
        elif what == "rested":
            self.rested[said["shard"]] = said["step"]
        elif what == "wants":
            self._hand_out(sender.number)

    def _obey(self, to: Member, word: dict[str, Any]) -> None:
        if to.role == "worker":
            if word["do"] == "resume":
                self.workers[to.number].resume(Table.from_dict(word["table"]))
            else:
                self.workers[to.number].take(assignment_of(word))
            return
        one = self.servers[to.number]
        if word["do"] == "reconfigure":
            Box(self, to).tell({"say": "status"} | one.reconfigure(Table.from_dict(word["table"])))
        elif word["do"] == "protect" and word["epoch"] == one.table.epoch:
            one.protect(set(word["shards"]))
        elif word["do"] == "resume" and word["table"]["epoch"] == one.table.epoch:
            one.resume()
        elif word["do"] == "rest":
            one.rest(word["step"], word["dropped"])

    def _compute(self, number: int) -> None:
        """Begin a ticket, or push it: nothing may change the values in between."""
        one = self.workers[number]
        assert one.assignment is not None
        if number not in self._computing:
            self._computing[number] = one.values.clone()
        if self.pick.random() < 0.7:
            return  # it takes a while
        assert torch.equal(self._computing.pop(number), one.values)
        step, share = one.assignment.ticket
        gradient = gradient_of(one.values, step, (step + share) % len(TOKENS))
        one.push(gradient, 0.01 / step)
