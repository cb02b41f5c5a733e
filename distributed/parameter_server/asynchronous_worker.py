"""A worker under SSP and ASP: one ticket at a time, pulled for, computed, pushed, and kept until it is safe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.links.frames import Frame, json_payload
from distributed.parameter_server.member_protocol import WorkerProtocol
from distributed.parameter_server.messages import Kind, Member, Outbox, Table, server
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.tickets import Ticket
from distributed.parameter_server.top_k import ErrorFeedback


@dataclass(frozen=True)
class Assignment:
    """A ticket, and what the trainer asked for its step. `part`: as whom it is computed; see `replay`."""

    ticket: Ticket
    part: int
    rate_scale: float = 1.0
    probe: bool = False


@dataclass
class _Pushed:
    assignment: Assignment
    gradient: torch.Tensor
    payloads: dict[int, torch.Tensor]  # by piece
    facts: dict[int, bytes]  # by shard
    safe: set[int] = field(default_factory=set)


class AsynchronousWorker(WorkerProtocol):
    """Worker `number` of an SSP or ASP run.

    Parameters
    ----------
    number, setup, outbox, values, release, allocate: as for `WorkerProtocol`.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        outbox: Outbox,
        values: torch.Tensor,
        release: Callable[[torch.Tensor], None],
        allocate: Callable[[int], torch.Tensor] = torch.zeros,
    ):
        super().__init__(number, setup, outbox, values, release, allocate)
        self.assignment: Assignment | None = None
        """What it is about to compute, or computes."""
        self.is_parked = True
        """Whether there is no ticket for it: it rests until it is given one."""
        self._shards = sorted({piece.shard for piece in self._pieces})
        self._of_shard = {
            shard: [piece.index for piece in self._pieces if piece.shard == shard] for shard in self._shards
        }
        self._versions: dict[int, int] = {}  # by piece, of the values that came for the assignment
        self._pushed: dict[Ticket, _Pushed] = {}
        self._part = number
        self._kept_by: int | None = None  # the part whose pushes what is kept back comes from
        self._asking = False

    # ------------------------------------------------------------------------------------------------- coordinator

    def resume(self, table: Table) -> None:
        """Go on in a new epoch: what was not answered is said again."""
        self.table = table
        for pushed in self._pushed.values():
            self._send_push(pushed)
        if self.assignment is not None:
            if not self.is_fresh():
                self._pull()
        else:
            self._ask()

    def clear(self) -> None:
        """Forget what was computed and received: training goes on from another moment."""
        for pushed in self._pushed.values():
            self._let_go(pushed)
        self._pushed.clear()
        self._versions.clear()
        self.assignment, self._asking, self.is_parked = None, False, True
        self._kept_by = None
        if self.wire.memory is not None:
            self.wire.memory.forget()

    def take(self, assignment: Assignment | None) -> None:
        """The coordinator's answer to its question for a ticket; None: there is none now, it will give one later."""
        self.is_parked = assignment is None
        if assignment is None:
            for one in self.table.servers:
                self._send(server(one), Kind.PARK, 0, (0, self._part, 0))
            return
        self._asking = False
        self.assignment, self._part = assignment, assignment.part
        self._pull()

    # ------------------------------------------------------------------------------------------------- work

    def is_fresh(self) -> bool:
        """Whether all values for the assignment are here."""
        return self.assignment is not None and all(map(self._is_whole, self._shards))

    def push(self, gradient: torch.Tensor, rate: float) -> None:
        """Send the gradient of the assignment, a flat buffer, which has to stay as it is until it is released."""
        assert self.assignment is not None
        step = self.assignment.ticket.step
        self._keep_for(self.assignment.part)
        payloads = {piece.index: self.wire.encode(piece, gradient, step) for piece in self._pieces}
        facts = {}
        for shard in self._shards:
            pulled = next(self._versions[piece.index] for piece in self._pieces if piece.shard == shard)
            facts[shard] = json_payload({"rate": rate, "pulled": pulled})
        pushed = self._pushed[self.assignment.ticket] = _Pushed(self.assignment, gradient, payloads, facts)
        self._send_push(pushed)
        if not self.wire.is_plain:
            self._release(gradient)
        self._finish()

    def kept_back(self) -> tuple[int, ErrorFeedback] | None:
        """What it has kept back of its gradients, and as which part; None where nothing ever is."""
        if self.wire.memory is None or (self._kept_by is None and self.setup.options["replay"]):
            return None
        return (self.number if self._kept_by is None else self._kept_by), self.wire.memory

    def give_up(self) -> None:
        """Push nothing for the assignment: its loss or gradient is not finite."""
        self._finish()

    # ------------------------------------------------------------------------------------------------- frames

    def receive(self, sender: Member, frame: Frame) -> None:
        """Take in a reply whose parameters are in their place, or the word that a push is safe."""
        if frame.kind == Kind.REPLY:
            if self._wants(frame):
                self._versions[frame.tags[0]] = frame.tags[1]
            return
        assert frame.kind == Kind.SAFE
        share, _, shard = frame.tags
        pushed = self._pushed.get(Ticket(frame.step, share))
        if pushed is not None:
            pushed.safe.add(shard)
            if len(pushed.safe) == len(self._shards):
                del self._pushed[pushed.assignment.ticket]
                self._let_go(pushed)

    # ------------------------------------------------------------------------------------------------- inside

    def _wants(self, frame: Frame) -> bool:
        """Whether a reply is for the assignment, and its shard not here yet.

        In a new epoch a worker asks again for what is still on its way, and may be answered twice, from two versions:
        what it computes with must not change any more.
        """
        index, _, share = frame.tags
        is_mine = self.assignment is not None and self.assignment.ticket == (frame.step, share)
        return is_mine and not self._is_whole(self._pieces[index].shard)

    def _is_whole(self, shard: int) -> bool:
        """Whether all pieces of a shard are here, of one version."""
        versions = {self._versions.get(index) for index in self._of_shard[shard]}
        return len(versions) == 1 and None not in versions

    def _keep_for(self, part: int) -> None:
        """In a replay, the next part that it plays is that of a worker who came later and had nothing kept back."""
        if self._kept_by not in (None, part) and self.wire.memory is not None:
            self.wire.memory.forget()
        self._kept_by = part

    def _finish(self) -> None:
        self.assignment = None
        self._versions.clear()
        self._ask()

    def _ask(self) -> None:
        if not self._asking:
            self._asking = True
            self.outbox.tell({"say": "wants"})

    def _pull(self) -> None:
        assert self.assignment is not None
        self._versions.clear()
        ticket = self.assignment.ticket
        for shard in self._shards:
            self._send_to_shard(shard, Kind.PULL, ticket.step, (shard, self._part, ticket.share))

    def _send_push(self, pushed: _Pushed) -> None:
        ticket, part = pushed.assignment.ticket, pushed.assignment.part
        for shard in self._shards:
            if shard not in pushed.safe:
                facts = pushed.facts[shard]
                self._send_to_shard(shard, Kind.TICKET, ticket.step, (ticket.share, part, shard), facts)
        for piece in self._pieces:
            if piece.shard not in pushed.safe:
                payload = pushed.payloads[piece.index]
                self._send_to_shard(piece.shard, Kind.PUSH, ticket.step, (ticket.share, part, piece.index), payload)

    def _let_go(self, pushed: _Pushed) -> None:
        if self.wire.is_plain:
            self._release(pushed.gradient)
        for payload in pushed.payloads.values():
            self.wire.give_back(payload)


def assignment_of(message: Mapping[str, Any]) -> Assignment | None:
    """The ticket in a message of the coordinator's."""
    if message["step"] is None:
        return None
    return Assignment(
        Ticket(message["step"], message["share"]), message["part"], message["rate_scale"], message["probe"]
    )
