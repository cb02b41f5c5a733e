"""What nodes of a ring say to their successors, and the ring itself.

What nodes and the coordinator say to each other is JSON: `RingNode` and `RingMembership` list it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch

from distributed.links.frames import Frame


class Kind(IntEnum):
    """Kinds of frames from a node to its successor. In brackets: what the three tags say."""

    REDUCE = 32
    """A part of a gradient, summed over the nodes where it has been [part]."""
    GATHER = 33
    """A part of a gradient, summed over all nodes [part]."""
    FACTS = 34
    """What there is to say of a share of a step beside the gradient (JSON) [its seat]."""
    ROLL = 35
    """A part of the summed gradient of a step, for a node that lacks it [part, how many nodes it is for]."""
    ROLL_FACTS = 36
    """All shares' facts of that step (JSON), after its parts [0, how many nodes it is for]."""
    STATE = 37
    """A part of a buffer of the state, for a node that joins [part, how many nodes it is for, number of the buffer]."""
    STATE_FACTS = 38
    """What belongs to a state beside its buffers (JSON), after them [0, how many nodes it is for]."""


@dataclass(frozen=True)
class Ring:
    """Who is a member in an epoch, by number, in their order round the ring: each sends to the next."""

    epoch: int
    order: tuple[int, ...]

    def position(self, number: int) -> int:
        """Where a member stands in the order."""
        return self.order.index(number)

    def successor(self, number: int) -> int:
        """The only member that `number` sends to; itself in a ring of one."""
        return self.order[(self.position(number) + 1) % len(self.order)]

    def predecessor(self, number: int) -> int:
        """The only member that `number` receives from; itself in a ring of one."""
        return self.order[self.position(number) - 1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ring:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(data["epoch"], tuple(data["order"]))


class Outbox(Protocol):
    """Where a node's messages go: there is no way to send a frame to anyone but the successor.

    Nothing here waits; what cannot be delivered is noticed by the link.
    """

    def send(self, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        """A frame to the successor. A tensor keeps its content until the successor has read it; see `all_reduce`."""

    def tell(self, message: dict[str, Any]) -> None:
        """A JSON message to the coordinator."""
