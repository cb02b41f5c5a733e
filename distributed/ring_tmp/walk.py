"""A walk round the ring: the words that it has collected, and its number, which is that of the epoch behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from distributed.ring_tmp.verdict import Status

NODES_LIMIT = 1024
"""Numbers of nodes are below this: an epoch's number holds that of the node that began it."""


def epoch_above(epoch: int, number: int) -> int:
    """The number of an epoch that node `number` begins: higher than `epoch`, and nobody else's."""
    return (epoch // NODES_LIMIT + 1) * NODES_LIMIT + number


def beginner_of(epoch: int) -> int:
    """The node that began an epoch."""
    return epoch % NODES_LIMIT


class Walk(NamedTuple):
    """Words on their way.

    gone: nodes that could not be reached, as far as those know who have spoken.
    statuses: of who has spoken, in the order of the ring from its beginner on.
    """

    epoch: int
    gone: frozenset[int]
    statuses: tuple[Status, ...]

    @property
    def origin(self) -> int:
        """Who began it."""
        return beginner_of(self.epoch)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without the epoch, which is the message's."""
        return {"gone": sorted(self.gone), "statuses": [one.to_dict() for one in self.statuses]}

    @classmethod
    def from_dict(cls, epoch: int, data: Mapping[str, Any]) -> Walk:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(epoch, frozenset(data["gone"]), tuple(map(Status.from_dict, data["statuses"])))
