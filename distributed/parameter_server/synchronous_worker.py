"""A worker under BSP: which leaves it computes, what it pushes, and which parameters it has.

The process around it
(`distributed.parameter_server.worker`) computes what `next_node` names when the parameters are `fresh`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.links.frames import Frame
from distributed.parameter_server.member_protocol import WorkerProtocol
from distributed.parameter_server.messages import Kind, Member, Outbox, Table, server
from distributed.parameter_server.setup import Setup
from distributed.slot_tree import Node


@dataclass(frozen=True)
class Grant:
    """Leave to begin steps up to `through`, with what the trainer asked for them."""

    through: int = 0
    rate_scale: float = 1.0
    probe: bool = False


@dataclass
class _Pushed:
    """A node of the step that is open for this worker: its gradient, payloads of pieces as they became ready, facts."""

    gradient: torch.Tensor
    payloads: dict[int, torch.Tensor] = field(default_factory=dict)
    facts: bytes = b""


class SynchronousWorker(WorkerProtocol):
    """Worker `number` of a BSP run.

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
        self.grant = Grant()
        self.step = 0
        """The step that it works on; what it has pushed for it is kept until all shards have answered."""
        self._mine: tuple[int, ...] = ()
        self._pushed: dict[Node, _Pushed] = {}
        self._received = [-1] * len(self._pieces)  # by piece, the step whose parameters it holds

    # ------------------------------------------------------------------------------------------------- coordinator

    def resume(self, table: Table, open_step: int, leaves: Sequence[int]) -> None:
        """Go on in a new epoch in which `open_step` is the first that nobody has applied.

        leaves: what this worker computes of that step; of later ones its share by the table.
        """
        self.table = table
        if open_step < self.step:  # that step was applied, and answered, while this message was on its way
            open_step, leaves = self.step, self._share()
        if open_step != self.step:
            self._begin(open_step)
        self._mine = tuple(leaves)
        for shard in range(self.setup.shards):
            if not self._has(shard, open_step - 1):
                self._send_to_shard(shard, Kind.PULL, open_step - 1, (shard, 0, 0))
        for node, pushed in self._pushed.items():
            for one in table.servers:
                self._say(one, pushed.facts)
            for index, payload in sorted(pushed.payloads.items()):
                self._push(node, index, payload)

    def clear(self) -> None:
        """Forget what was computed and received: training goes on from another moment."""
        self.table, self.grant = Table(0, (), (), ()), Grant()
        self._begin(0)
        self._received = [-1] * len(self._pieces)

    def allow(self, grant: Grant) -> None:
        """Take over how far it may go."""
        self.grant = grant

    # ------------------------------------------------------------------------------------------------- work

    @property
    def is_wanted(self) -> bool:
        """Whether the trainer has asked for the step that it stands at, or for a later one."""
        return 0 < self.step <= self.grant.through

    def next_node(self) -> tuple[int, Node] | None:
        """The step and node to compute next; None while there is nothing to do."""
        # One answer says that the step was applied: then nobody can need what was pushed for it any more.
        if self._is_done(self.step) and any(received >= self.step for received in self._received):
            self._begin(self.step + 1)
        if not 0 < self.step <= self.grant.through or self.number not in self.table.workers:
            return None
        done = {leaf for node in self._pushed for leaf in range(*node)}
        left = self.setup.nodes(leaf for leaf in self._mine if leaf not in done)
        return (self.step, left[0]) if left else None

    def wants(self, step: int, node: Node) -> bool:
        """Whether a node that is being computed is still of use."""
        return step == self.step and node not in self._pushed

    def is_fresh(self, pieces: Iterable[int]) -> bool:
        """Whether pieces of the parameters are as the step before left them."""
        return all(self._received[index] >= self.step - 1 for index in pieces)

    def push(self, step: int, node: Node, index: int, gradient: torch.Tensor) -> None:
        """Send a piece of a node's gradient, given as the whole flat buffer of it, which has to stay as it is.

        Nothing is sent for a step that is over.
        """
        if step != self.step:
            return
        pushed = self._pushed.setdefault(node, _Pushed(gradient))
        payload = pushed.payloads[index] = self.wire.encode(self._pieces[index], gradient, step)
        self._push(node, index, payload)

    def has(self, gradient: torch.Tensor) -> bool:
        """Whether a gradient is kept here until it is answered."""
        return any(one.gradient is gradient for one in self._pushed.values())

    def contribute(self, node: Node, tokens: int, rate: float, leaves: Mapping[int, Mapping[str, Any]]) -> None:
        """Send what there is to say of a node's leaves beside the gradient; `tokens` are those of the whole step."""
        said = {"tokens": tokens, "rate": rate, "probe": self.grant.probe, "leaves": leaves}
        self._pushed[node].facts = json.dumps(said).encode()
        for one in self.table.servers:
            self._say(one, self._pushed[node].facts)

    # ------------------------------------------------------------------------------------------------- frames

    def receive(self, sender: Member, frame: Frame) -> None:
        """Take in a reply whose parameters are in their place."""
        index = frame.tags[0]
        self._received[index] = max(self._received[index], frame.step)

    # ------------------------------------------------------------------------------------------------- inside

    def _begin(self, step: int) -> None:
        for pushed in self._pushed.values():
            self._release(pushed.gradient)
            for payload in pushed.payloads.values():
                self.wire.give_back(payload)
        self._pushed.clear()
        self.step, self._mine = step, self._share()

    def _share(self) -> tuple[int, ...]:
        """Its leaves of a step that begins with the members of the table."""
        if self.number not in self.table.workers:
            return ()
        return tuple(self.setup.owners(len(self.table.workers))[self.table.workers.index(self.number)])

    def _is_done(self, step: int) -> bool:
        done = {leaf for node in self._pushed for leaf in range(*node)}
        return step == self.step > 0 and done >= set(self._mine)

    def _has(self, shard: int, step: int) -> bool:
        return all(self._received[piece.index] >= step for piece in self._pieces if piece.shard == shard)

    def _push(self, node: Node, index: int, payload: torch.Tensor) -> None:
        self._send_to_shard(self._pieces[index].shard, Kind.PUSH, self.step, (*node, index), payload)

    def _say(self, number: int, facts: bytes) -> None:
        if facts:
            self._send(server(number), Kind.CONTRIBUTION, self.step, (0, 0, 0), facts)
