"""What the protocols of members have in common, whatever the mode: a place in the run, and frames of the present epoch.

A protocol has no thread and no socket: it is told what came, and hands what it has to say to its `Outbox`. So every
order of messages and every loss can be tried in one process (tests/unit/simulated_network.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from distributed.buffers import BufferPool
from distributed.errors import FrameError
from distributed.links.frames import Frame
from distributed.links.link import DISCARD, Discard
from distributed.optimizers import build_optimizer
from distributed.parameter_server.messages import Kind, Member, Outbox, Table, server
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.shard import Shard
from distributed.parameter_server.wire import ReceivingEnd, SendingEnd
from distributed.shards import Piece


class MemberProtocol:
    """A member of a run: its number in its role, what it knows of the others, and how it speaks to them."""

    def __init__(self, number: int, setup: Setup, outbox: Outbox):
        self.number, self.setup, self.outbox = number, setup, outbox
        self.table = Table(0, (), (), ())

    def _send(
        self, to: Member, kind: Kind, step: int, tags: tuple[int, int, int], payload: torch.Tensor | bytes = b""
    ) -> None:
        self.outbox.send(to, Frame(kind=kind, step=step, tags=tags, epoch=self.table.epoch), payload)


class ServerProtocol(MemberProtocol):
    """What every server has: shards, the update rule, and buffers for gradients that arrive.

    Parameters
    ----------
    number, setup, outbox: which server of which run, and what takes what it has to say.
    allocate: gives buffers that are sent from.
    reach: told of each phase of a step as it is reached.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        outbox: Outbox,
        allocate: Callable[[int], torch.Tensor] = torch.zeros,
        reach: Callable[[str, int], None] = lambda phase, step: None,
    ):
        super().__init__(number, setup, outbox)
        self._allocate, self._reach = allocate, reach
        self.pool = BufferPool()
        self._optimizer = build_optimizer(setup.optimizer)
        self._running = False
        self._pieces = {piece.index: piece for piece in setup.shard_map.pieces}
        self._wire = ReceivingEnd(setup, self.pool)

    def missing(self) -> str:
        """What this server waits for, as a clause, where it can tell: for whoever wonders why nothing goes on."""
        return "" if self._running else "the word to go on"

    def place(self, frame: Frame) -> torch.Tensor | None:
        """Where the payload of a frame is to be put; called by the thread that receives it."""
        if frame.kind == Kind.PUSH:
            return self._wire.place(self._piece(frame), frame.length)
        if frame.kind == Kind.SHADOW:
            return self.pool.take(self._piece(frame).elements)
        return None

    def decode(self, frame: Frame, payload: torch.Tensor) -> torch.Tensor:
        """The gradient in the payload of a PUSH, uint8; called by the thread that receives it.

        Raises FrameError for a damaged one: then its link has to end, so that it is sent again. Not where the gradient
        is here already: a repetition may still be on its way when its sender uses the memory for the next step.
        """
        piece = self._piece(frame)
        try:
            return self._wire.decode(piece, payload)
        except FrameError:
            if not self._has(frame):
                raise
            return self.pool.take(piece.elements)

    def _piece(self, frame: Frame) -> Piece:
        piece = self._pieces.get(frame.tags[2])
        if piece is None:
            raise FrameError(f"piece {frame.tags[2]} of a gradient of {len(self._pieces)}")
        return piece

    def _has(self, frame: Frame) -> bool:
        """Whether a PUSH cannot change anything any more. Asked by any thread."""
        raise NotImplementedError

    def _primary(self) -> list[int]:
        """The shards that it has, and answers for."""
        return [shard for shard, one in enumerate(self.table.primary) if one == self.number]

    def _shadows(self) -> list[int]:
        """The shards of which it keeps the copy."""
        return [shard for shard, one in enumerate(self.table.shadow) if one == self.number]

    def _new_shard(self, shard: int) -> Shard:
        return Shard(shard, self.setup.shard_map, self.setup.layout, self._optimizer, self._allocate)


class WorkerProtocol(MemberProtocol):
    """What every worker has: the parameters, to which replies are written, and gradients until they are answered.

    Parameters
    ----------
    number, setup, outbox: which worker of which run, and what takes what it has to say.
    values: the flat parameters [elements].
    release: takes a gradient back that nobody needs any more.
    allocate: gives buffers that are sent from.
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
        super().__init__(number, setup, outbox)
        self.values, self._release = values, release
        self._pieces = setup.shard_map.pieces
        self.wire = SendingEnd(setup, allocate)

    def place(self, frame: Frame) -> torch.Tensor | Discard | None:
        """Where the parameters in a reply belong."""
        if frame.kind != Kind.REPLY:
            return None
        return self._pieces[frame.tags[0]].of(self.values) if self._wants(frame) else DISCARD

    def put(self, frame: Frame, payload: torch.Tensor) -> bool:
        """Copy the parameters in a reply to their place, unless they were received there; False: nobody wants them."""
        if not self._wants(frame):
            return False
        target = self._pieces[frame.tags[0]].of(self.values)
        if payload.data_ptr() != target.data_ptr():
            target.copy_(payload)
        return True

    def _wants(self, frame: Frame) -> bool:
        """Whether the parameters in a reply may take the place of those that are there."""
        return True

    def _send_to_shard(
        self, shard: int, kind: Kind, step: int, tags: tuple[int, int, int], payload: torch.Tensor | bytes = b""
    ) -> None:
        self._send(server(self.table.primary[shard]), kind, step, tags, payload)
