"""What coordinator, servers and workers say to each other over their links.

Data frames carry numbers (`distributed.links.frames.Frame`: step and three tags); what is small and structured travels
as JSON. Floats in JSON come back to the bit: Python writes the shortest digits that do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch

from distributed.links.frames import Frame, read_json


class Kind(IntEnum):
    """Kinds of frames. In brackets: what the three tags say."""

    CONTROL = 1
    """A JSON message between the coordinator and an agent."""
    CONTRIBUTION = 16
    """Worker to server, and in a new epoch server to all servers: losses and tokens of leaves of a step (JSON)."""
    PUSH = 17
    """Worker to server: a piece of a node of a step's gradient [first leaf, end of its leaves, piece]; without BSP a
    piece of a ticket's [share, part, piece]."""
    PULL = 18
    """Send me a shard once it has applied this step [shard, how many buffers of its state; 0: by REPLY]; without BSP,
    from a worker: when the clock rule lets me begin this ticket [shard, part, share]."""
    REPLY = 19
    """Server to worker: a piece of the parameters as this step left them [piece]; without BSP, those to compute a
    ticket of this step from [piece, updates since the last horizon, share]."""
    SHADOW = 20
    """Server to the next: a piece of a shard's whole gradient, to be applied to the shadow of that shard [0, 0, piece];
    without BSP a piece of a ticket's [share, part, piece]."""
    SUMS = 21
    """Server to all servers: a shard's gradient is whole; the square sums of its chunks in fp64 [shard]."""
    HELD = 22
    """Server to all servers: the shadow of a shard has the whole gradient of this step [shard]."""
    CLIPPED = 23
    """Server to all servers: square sums of the shard's parts of parameters clipped one by one (JSON) [shard]."""
    STATE = 24
    """A whole buffer of a shard [shard, number of the buffer: 0 parameters, then the optimizer's; updates so far]."""
    CLOSE = 25
    """Leader to all servers: the leaves that this step is made of (JSON)."""
    PARK = 26
    """Worker to server: I have no ticket; do not wait for me [0, part]."""
    TICKET = 27
    """Worker to server, with the pieces of a push: its rate, and the updates that its values had (JSON)
    [share, part, shard]."""
    SHARD = 29
    """What belongs to a shard beside its buffers, which came before (JSON) [shard]."""
    MEMORY = 30
    """On the control link, both ways: a block of what a worker keeps back of its gradients [part, buffer, block]."""
    SAFE = 28
    """Server to worker, and shadow to primary: the push of a ticket is applied [share, part, shard]."""


class Member(NamedTuple):
    """A process of a run: its role (`coordinator`, `worker`, `server`) and its number in that role."""

    role: str
    number: int

    def __str__(self) -> str:
        return self.role if self.role == "coordinator" else f"{self.role} {self.number}"


COORDINATOR = Member("coordinator", 0)


def worker(number: int) -> Member:
    """Worker `number`."""
    return Member("worker", number)


def server(number: int) -> Member:
    """Server `number`."""
    return Member("server", number)


@dataclass(frozen=True)
class Table:
    """Who is a member in an epoch, and who has which shard.

    workers: the live ones.
    primary: by shard, the server that has it.
    shadow: by shard, the server that applies the same updates to a copy; None where there is none.
    """

    epoch: int
    workers: tuple[int, ...]
    primary: tuple[int, ...]
    shadow: tuple[int | None, ...]

    @property
    def servers(self) -> tuple[int, ...]:
        """The live servers, ascending."""
        return tuple(sorted({*self.primary, *(one for one in self.shadow if one is not None)}))

    @property
    def members(self) -> set[Member]:
        """All of them, but for the coordinator."""
        return {*map(worker, self.workers), *map(server, self.servers)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Table:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(data["epoch"], tuple(data["workers"]), tuple(data["primary"]), tuple(data["shadow"]))


class Outbox(Protocol):
    """Where a member's messages go. Nothing here waits; what cannot be delivered is noticed by the link."""

    def send(self, to: Member, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        """A frame to a member. A tensor must keep its content until the protocol says that it has been read."""

    def tell(self, message: dict[str, Any]) -> None:
        """A JSON message to the coordinator."""


def read_control(frame: Frame, payload: memoryview) -> dict[str, Any]:
    """A message of a control link: JSON, or a frame of another kind with its payload as one that says `memory`."""
    if frame.kind == Kind.MEMORY:
        return {"do": "memory", "say": "memory", "frame": frame, "payload": payload}
    return read_json(payload)
