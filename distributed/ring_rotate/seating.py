"""Who has which seats of a ring, and the way from seat to seat that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from distributed.ring.messages import Ring


@dataclass(frozen=True)
class Seating:
    """The nodes of an epoch, and whose each seat is.

    A ring has as many seats as nodes were configured, whoever is lost: a seat has a shard of the parameters and
    computes a share of each step. The seats of a node are neighbours, and nodes follow each other as their seats do.

    ring: of the nodes.
    owners: by seat, a node.
    """

    ring: Ring
    owners: tuple[int, ...]

    def seats_of(self, number: int) -> list[int]:
        """The seats of a node, in the order of the ring; where they go over its end, those before it come first."""
        own = [seat for seat, owner in enumerate(self.owners) if owner == number]
        begins = [seat for seat in own if self.owners[seat - 1] != number]
        if not begins:
            return own
        return own[own.index(begins[0]) :] + own[: own.index(begins[0])]

    def shadowed_by(self, number: int) -> list[int]:
        """The seats of whose shards a node has the second copy: those of the node before it."""
        before = self.ring.predecessor(number)
        return [] if before == number else self.seats_of(before)

    @cached_property
    def is_alone(self) -> bool:
        """Whether there is one node only."""
        return len(self.ring.order) == 1
