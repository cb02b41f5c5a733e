"""What nodes of the stage ring say to their neighbours. To nobody else do they say anything."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol


class Kind(IntEnum):
    """Kinds of messages. In brackets: what the two tags say, and the direction."""

    FORWARD = 48
    """What a range of stages puts out for a micro-batch: tensors by name [stage that it is for, slot; successor]."""
    BACKWARD = 49
    """The gradients of that [the same; predecessor]."""
    GRADIENT = 50
    """A stage's gradient of a step, before clipping, for its second copy: a flat tensor [stage; successor]."""
    SUMS = 51
    """What a node has to say of a step, see `scalars.Contribution`: bytes [its number, round; successor]."""
    STATE = 52
    """A buffer of a stage's state: a flat tensor [stage, number of the buffer; either neighbour]."""
    STATE_END = 53
    """What belongs to a state beside its buffers: plain data, after them [stage; either neighbour]."""
    WALK = 54
    """Who lives, collected from node to node: plain data [; successor]."""
    VERDICT = 55
    """How the ring goes on: plain data [; successor]."""
    HELLO = 56
    """A node wants the one at the other end as its successor, see `membership.Hello`: plain data, first on a link."""
    ANSWER = 57
    """What that one says to it, see `membership.Answer`: plain data."""
    TAKE = 58
    """From the coordinator, before states: the placement that they are for: plain data."""
    SCORED = 59
    """What a range of stages makes of a batch that is evaluated: tensors by name [stage that it is for, number of the
    batch; successor]."""

    # Between nodes that hold the same stages in neighbouring rings (`distributed.ring_torus`).
    ACROSS_HELLO = 80
    """A node wants to be linked to the one at the other end: plain data, first on a link."""
    ACROSS_ANSWER = 81
    """It is."""
    ACROSS_REDUCE = 82
    """A part of a stage's gradient, summed over some groups: a flat tensor [stage, part and which of several sums]."""
    ACROSS_GATHER = 83
    """A part of a stage's gradient, summed over all groups: a flat tensor [stage, part]."""
    ACROSS_WORD = 84
    """All sums of a step are whole at a node, and what its ring knows of the step: plain data [its ring, 0]."""


class Message(NamedTuple):
    """A message, before it is made into frames.

    payload: by kind, a mapping of tensors by name, a flat tensor, bytes, or plain data (JSON). It belongs to the
        receiver. A tensor that is sent stays as it is until it has been read; see `node`.
    """

    kind: Kind
    epoch: int
    step: int = 0
    tags: tuple[int, int] = (0, 0)
    payload: Any = None


class Outbox(Protocol):
    """Where a node's messages go: there is no way to send to anyone but the two neighbours.

    Nothing here waits; what cannot be delivered is noticed by the link. In a ring of one nothing is sent.
    """

    def to_successor(self, message: Message) -> None:
        """Send to the next node of the ring."""

    def to_predecessor(self, message: Message) -> None:
        """Send to the node before."""
