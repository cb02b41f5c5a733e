"""A server under SSP or ASP: it applies each push on arrival, and answers a pull when the clock rule allows.

What makes a run repeatable is here too: every update is noted with the version of the values that it was computed from,
and in a replay nothing is done before its turn (`distributed.parameter_server.replay`).

Why nothing is lost with a server
---------------------------------
A push is answered (SAFE), and values that contain it are handed out, only after the shadow has applied it too. Whoever
was not answered sends the push again, to whoever has the shard then; a ticket counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distributed.links.frames import Frame, json_payload, read_json
from distributed.parameter_server.asynchronous_shard import AsynchronousShard, Push, Update
from distributed.parameter_server.clocks import Clocks, staleness_bound
from distributed.parameter_server.member_protocol import ServerProtocol
from distributed.parameter_server.messages import Kind, Member, Outbox, Table, server, worker
from distributed.parameter_server.replay import ReplayOrder
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.shard import Shard
from distributed.parameter_server.staleness import StalenessMeter, rate_factor
from distributed.parameter_server.tickets import Ticket
from distributed.parameter_server.trace import Event, EventKind, TraceWriter


class AsynchronousServer(ServerProtocol):
    """Server `number` of an SSP or ASP run.

    Parameters
    ----------
    number, setup, outbox, allocate, reach: as for `ServerProtocol`. Phases: `push`, `apply`, `applied`, `answer`.
    orders: of a replay, by shard.
    now: seconds, for the age of pushes.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        outbox: Outbox,
        allocate: Callable[[int], torch.Tensor] = torch.zeros,
        reach: Callable[[str, int], None] = lambda phase, step: None,
        orders: Mapping[int, ReplayOrder] | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__(number, setup, outbox, allocate, reach)
        self._orders, self._now = orders or {}, now
        self._options = setup.options
        self._bound = staleness_bound(self._options["mode"], self._options["staleness"])
        self.step = 0
        """The last step that it has heard of."""
        self.held: dict[int, AsynchronousShard] = {}
        self._replies: dict[tuple[int, int], torch.Tensor] = {}  # what is sent to a part, by piece
        self._dropped: Sequence[Sequence[int]] = ()  # worker, step and share, up to the horizon that was asked for
        self._traced: dict[int, list[tuple[int, bytes]]] = {}

    @property
    def shards(self) -> dict[int, Shard]:
        """Every shard that it has, as primary or shadow."""
        return {number: held.shard for number, held in self.held.items()}

    # ------------------------------------------------------------------------------------------------- membership

    def reconfigure(self, table: Table) -> dict[str, Any]:
        """Stop in the present epoch and take over the new table; returns what this server has."""
        self._running, self.table = False, table
        for shard in self.held.keys() - set(self._primary()) - set(self._shadows()):
            self.held.pop(shard).drop()
        for held in self.held.values():
            for part in held.clocks.workers:
                if part not in table.workers and not self._orders:
                    held.lose(part)
            for part in table.workers:
                if part not in held.clocks.workers:
                    held.clocks.join(part)
        mine = {shard: self.held[shard] for shard in self._primary() if shard in self.held}
        return {
            "epoch": table.epoch,
            "shards": sorted(self.held),
            "tickets": {str(shard): held.safe_tickets() for shard, held in mine.items()},
            "applied": sorted({ticket for held in mine.values() for ticket in held.applied.newer}),
        }

    def protect(self, unprotected: set[int]) -> None:
        """Send shards that it is the primary of to the servers that are to be their shadows."""
        for shard in sorted(unprotected):
            to = self.table.shadow[shard]
            if to is not None and self.table.primary[shard] == self.number:
                self._send_state(server(to), shard)

    def resume(self) -> None:
        """Go on in the present epoch."""
        self._running = True
        for shard in self._primary():
            held = self.held[shard]
            to = self.table.shadow[shard]
            if to is None:
                for update in held.unsafe:
                    self._is_safe(shard, update)
                held.unsafe.clear()
            for update in held.unsafe:
                self._ship(shard, update)
            for push in list(held.arriving):
                self._complete(shard, push)
            self._answer(shard)

    def clear(self) -> None:
        """Forget every shard: the coordinator is about to send the state of another moment."""
        self._running = False
        for held in self.held.values():
            held.drop()
        self.held.clear()

    # ------------------------------------------------------------------------------------------------- the coordinator

    def rest(self, step: int, dropped: Sequence[Sequence[int]] = ()) -> None:
        """A horizon: all tickets up to `step` are applied. Use what was gathered, and let clocks begin anew.

        dropped: worker, step and share of what was left out instead.
        """
        self._dropped = dropped
        for shard in sorted(self.held):
            held = self.held[shard]
            if held.shard.applied >= step:  # it is asked again because somebody was lost
                self._say_rested(shard, step)
            elif held.order is not None and self.table.primary[shard] == self.number:
                held.order.arrived(Event(EventKind.HORIZON, 0, Ticket(step)))
                self._do_what_is_due(shard)
            else:
                self._rest(shard, step)

    def traces(self) -> dict[int, list[tuple[int, bytes]]]:
        """What happened to each shard that it has, by the horizon up to which it happened; each part once.

        A shadow tells it too, in case that its primary cannot any more.
        """
        traced, self._traced = self._traced, {}
        return traced

    def staleness(self) -> dict[str, Any]:
        """What the meters of all shards counted."""
        meter = StalenessMeter()
        for shard in self._primary():
            meter.add(self.held[shard].meter.to_dict())
        return meter.to_dict()

    # ------------------------------------------------------------------------------------------------- frames

    def receive(self, sender: Member, frame: Frame, payload: torch.Tensor | bytes) -> None:
        """Take in a frame."""
        kind = Kind(frame.kind)
        gone = sender.role == "worker" and sender.number not in self.table.workers
        if gone or (sender.role == "server" and frame.epoch != self.table.epoch):
            self.pool.give_back(payload)
            return
        self.step = max(self.step, frame.step)
        getattr(self, f"_on_{kind.name.lower()}")(sender, frame, payload)

    def _on_ticket(self, sender: Member, frame: Frame, payload: bytes) -> None:
        share, part, shard = frame.tags
        if shard in self.held:
            push = (part, Ticket(frame.step, share))
            self.held[shard].arrives(push).facts = read_json(payload) | {"sender": list(sender)}
            self._complete(shard, push)

    def _has(self, frame: Frame) -> bool:
        held = self.held.get(self._pieces[frame.tags[2]].shard)
        return held is not None and Ticket(frame.step, frame.tags[0]) in held.applied

    def _on_push(self, sender: Member, frame: Frame, payload: torch.Tensor) -> None:
        self._reach("push", frame.step)
        share, part, index = frame.tags
        shard = self._pieces[index].shard
        if shard not in self.held:
            self.pool.give_back(payload)
            return
        push = (part, Ticket(frame.step, share))
        pieces = self.held[shard].arrives(push).pieces
        self.pool.give_back(pieces.pop(index, None))
        pieces[index] = payload
        self._complete(shard, push)

    _on_shadow = _on_push

    def _on_pull(self, sender: Member, frame: Frame, payload: bytes) -> None:
        shard, part, share = frame.tags
        if sender.role == "coordinator":
            self._send_state(sender, shard, frame.tags[1])
            return
        held = self.held.get(shard)
        if held is None or self.table.primary[shard] != self.number:
            return
        ticket = Ticket(frame.step, share)
        held.waiting[part] = (ticket, sender)
        if held.order is not None:
            held.order.arrived(Event(EventKind.PULL, part, ticket))
            self._do_what_is_due(shard)
        else:
            held.clocks.pull(part)
            self._answer(shard)

    def _on_park(self, sender: Member, frame: Frame, payload: bytes) -> None:
        for shard in self._primary():
            held = self.held[shard]
            if held.order is None and frame.tags[1] in held.clocks.workers:
                held.clocks.park(frame.tags[1])
                self._answer(shard)

    def _on_safe(self, sender: Member, frame: Frame, payload: bytes) -> None:
        share, part, shard = frame.tags
        held = self.held.get(shard)
        if held is not None and held.unsafe:
            first = held.unsafe[0]
            if (first.part, first.ticket) == (part, Ticket(frame.step, share)):
                held.unsafe.popleft()
                self._is_safe(shard, first)
                self._answer(shard)

    def _on_state(self, sender: Member, frame: Frame, payload: torch.Tensor | bytes) -> None:
        shard, buffer, _ = frame.tags
        if shard not in self.held:
            self.held[shard] = self._new_held(shard)
        if isinstance(payload, torch.Tensor):
            self.held[shard].put(buffer, payload)

    def _on_shard(self, sender: Member, frame: Frame, payload: bytes) -> None:
        """The rest of a shard's state, behind its buffers."""
        shard = frame.tags[0]
        self.held[shard].take_over(read_json(payload))
        word = "protected" if sender.role == "server" else "installed"
        self.outbox.tell({"say": word, "epoch": self.table.epoch, "shard": shard, "server": self.number})

    # ------------------------------------------------------------------------------------------------- pushes

    def _complete(self, shard: int, push: Push) -> None:
        """Where all of a push is here: apply it, now or when its turn comes.

        Between two epochs nothing is applied: the shard's state may be on its way to a shadow.
        """
        held, is_primary = self.held[shard], self.table.primary[shard] == self.number
        if (is_primary and not self._running) or not held.is_here(push):
            return
        if not is_primary:
            self._apply_as_shadow(shard, push)
        elif held.order is None:
            self._apply_as_primary(shard, push)
            self._answer(shard)
        elif held.order.arrived(Event(EventKind.APPLY, *push)):
            self._do_what_is_due(shard)
        else:  # a part of this push was applied on another shard, before whoever made it was lost
            held.forget(push)

    def _do_what_is_due(self, shard: int) -> None:
        """In a replay: everything whose turn it is."""
        held = self.held[shard]
        assert held.order is not None
        for event in held.order.ready():
            if event.kind is EventKind.APPLY:
                self._apply_as_primary(shard, (event.worker, event.ticket))
            elif event.kind is EventKind.PULL:
                ticket, sender = held.waiting.pop(event.worker)
                self._reply(shard, event.worker, ticket, sender)
            else:
                self._rest(shard, event.ticket.step)

    def _apply_as_primary(self, shard: int, push: Push) -> None:
        held, (part, ticket) = self.held[shard], push
        arriving = held.arriving.pop(push)
        assert arriving.facts is not None
        to = Member(*arriving.facts["sender"])
        if held.order is None and part in held.clocks.workers and push not in held.counted:
            held.counted.add(push)
            held.clocks.pushed(part)
        pulled = arriving.facts["pulled"]
        if not held.applied.add(ticket):  # sent again, or computed by two of whom one was given up
            if ticket.step > held.applied.complete:
                held.note_pull(part, ticket, pulled)
            if self.setup.wire.top_k:
                held.note_unused(push)
            held.give_back(arriving.pieces)
            if all(update.ticket != ticket for update in held.unsafe):
                self._say_safe(to, shard, part, ticket)
            return
        self._reach("apply", ticket.step)
        lag = held.version - pulled
        factor = rate_factor(self._options["rate_scaling"], self._options["workers"], lag)
        now = self._now()
        _, _, answered = held.pulled.get(part, (ticket, pulled, now))
        held.meter.pulled(part, pulled, answered)
        held.meter.applied(part, held.version, held.clocks.gap if held.order is None else 0, now)
        update = Update(part, ticket, pulled, arriving.facts["rate"] * factor, arriving.pieces, to)
        held.apply(update)
        self._reach("applied", ticket.step)
        if self.table.shadow[shard] is None:
            self._is_safe(shard, update)
        else:
            held.unsafe.append(update)
            if self._running:
                self._ship(shard, update)

    def _apply_as_shadow(self, shard: int, push: Push) -> None:
        held, (part, ticket) = self.held[shard], push
        arriving = held.arriving.pop(push)
        assert arriving.facts is not None
        if held.applied.add(ticket):
            update = Update(part, ticket, arriving.facts["pulled"], arriving.facts["rate"], arriving.pieces)
            held.apply(update)
            update.pieces = None
        held.give_back(arriving.pieces)
        self._say_safe(server(self.table.primary[shard]), shard, part, ticket)

    def _ship(self, shard: int, update: Update) -> None:
        to = self.table.shadow[shard]
        if to is None or update.pieces is None:
            return
        step, share = update.ticket
        facts = json_payload({"rate": update.rate, "pulled": update.pulled})
        self._send(server(to), Kind.TICKET, step, (share, update.part, shard), facts)
        for index, gradient in update.pieces.items():
            self._send(server(to), Kind.SHADOW, step, (share, update.part, index), gradient)

    def _is_safe(self, shard: int, update: Update) -> None:
        """An update is where it can no more be lost: its worker need not keep it, and the coordinator may count it."""
        if update.pieces is not None:
            self.held[shard].give_back(update.pieces)
            update.pieces = None
        self._say_safe(update.sender or worker(update.part), shard, update.part, update.ticket)
        step, share = update.ticket
        self.outbox.tell({"say": "pushed", "step": step, "share": share, "shard": shard, "part": update.part})

    def _say_safe(self, to: Member, shard: int, part: int, ticket: Ticket) -> None:
        self._send(to, Kind.SAFE, ticket.step, (ticket.share, part, shard))

    # ------------------------------------------------------------------------------------------------- pulls

    def _answer(self, shard: int) -> None:
        """Answer the pulls that the clock rule lets go, unless the shadow is behind."""
        held = self.held[shard]
        if held.order is not None or self.table.primary[shard] != self.number:
            return
        held.free += held.clocks.released()
        if held.unsafe or not self._running:
            return
        for part in held.free:
            if part in held.waiting:
                ticket, sender = held.waiting.pop(part)
                self._reply(shard, part, ticket, sender)
        held.free.clear()

    def _reply(self, shard: int, part: int, ticket: Ticket, to: Member) -> None:
        self._reach("answer", ticket.step)
        held = self.held[shard]
        last = held.pulled.get(part)
        if last is None or last[0] != ticket:
            last = held.pulled[part] = (ticket, held.version, self._now())
            for piece in held.shard.pieces:
                self._keep_for(part, piece.index, piece.local(held.shard.values))
        # Else it asks again in a new epoch. The first answer may still be on its way: the same values must be in it.
        for piece in held.shard.pieces:
            values = self._replies[part, piece.index]
            self._send(to, Kind.REPLY, ticket.step, (piece.index, last[1], ticket.share), values)

    def _keep_for(self, part: int, index: int, values: torch.Tensor) -> None:
        """Copy what is sent to a worker: the next push may be applied meanwhile.

        The buffer is free again: a worker asks for the next ticket when it has read all of the last one's values.
        """
        buffer = self._replies.get((part, index))
        if buffer is None:
            buffer = self._replies[part, index] = self._allocate(values.numel())
        buffer.copy_(values)

    # ------------------------------------------------------------------------------------------------- small things

    def _rest(self, shard: int, step: int) -> None:
        writer = TraceWriter(shard, self.setup.shards, self._options["train_id"], begun=True)
        self.held[shard].rest(step, self.table.workers, writer, self._dropped)
        trace = writer.take()
        self._traced.setdefault(shard, []).append((step, trace))
        self._say_rested(shard, step, trace)

    def _say_rested(self, shard: int, step: int, trace: bytes = b"") -> None:
        """Tell the coordinator, and at once what happened to the shard: its shadow does not know of every pull."""
        if self.table.primary[shard] == self.number:
            self.outbox.tell({"say": "rested", "step": step, "shard": shard, "trace": trace.hex()})

    def _send_state(self, to: Member, shard: int, count: int | None = None) -> None:
        """Send a shard's buffers (the first `count`, if not all of them), and behind all of them the rest."""
        held = self.held[shard]
        step, updates = held.shard.applied, held.shard.updates
        for number, buffer in enumerate(held.buffers[:count]):
            self._send(to, Kind.STATE, step, (shard, number, updates), buffer)
        if count is None:
            self._send(to, Kind.SHARD, step, (shard, 0, 0), json_payload(held.facts()))

    def _new_held(self, shard: int) -> AsynchronousShard:
        clocks = Clocks(self._bound, self.table.workers)
        every, order = self._options["apply_every"], self._orders.get(shard)
        return AsynchronousShard(self._new_shard(shard), clocks, every, self.pool.give_back, order)
