"""Which node of the ring runs which stages: a pure function of the members and of the owners that were agreed on.

Stages are numbered in the order in which a forward pass comes to them. A *range* is a run of neighbouring stages of one
node: it is computed in one piece, without messages. A node may have several ranges, as in a looped map (several shorter
ranges a node, round after round) or behind a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from distributed.ring.messages import Ring


@dataclass(frozen=True)
class StageRange:
    """Stages `start` to `stop` of one node, number `index` of all ranges in the order of a forward pass.

    limit: micro-batches that may have gone forward here and not yet back: the number of ranges behind it, and one. This
        is the bound of 1F1B (Narayanan et al. 2019): with fewer the last range would have to wait, more would only be
        kept in memory.
    """

    index: int
    node: int
    start: int
    stop: int
    limit: int
    is_last: bool

    @property
    def is_first(self) -> bool:
        """Whether nothing comes before it."""
        return self.index == 0


@dataclass(frozen=True)
class Placement:
    """The members of an epoch, and the node of each stage.

    owners: by stage, the number of its node.

    Raises ValueError where a stage's successor lies neither on the same node nor on the next one: then activations
    would have to go to a node that is no neighbour.
    """

    ring: Ring
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        for stage, (one, other) in enumerate(zip(self.owners, self.owners[1:], strict=False)):
            if other not in (one, self.ring.successor(one)):
                raise ValueError(f"stage {stage + 1} on node {other} does not follow stage {stage} on node {one}")

    @cached_property
    def ranges(self) -> tuple[StageRange, ...]:
        """All ranges, in the order of a forward pass."""
        runs = [
            (node, [stage for stage, _ in run]) for node, run in groupby(enumerate(self.owners), lambda one: one[1])
        ]
        return tuple(
            StageRange(index, node, stages[0], stages[-1] + 1, len(runs) - index, index == len(runs) - 1)
            for index, (node, stages) in enumerate(runs)
        )

    def ranges_of(self, node: int) -> list[StageRange]:
        """A node's ranges, the last first: the order in which it prefers them."""
        return [one for one in reversed(self.ranges) if one.node == node]

    def stages_of(self, node: int) -> list[int]:
        """A node's stages."""
        return [stage for stage, owner in enumerate(self.owners) if owner == node]

    def shadow_of(self, stage: int) -> int | None:
        """Who holds the second copy of a stage: the node after its owner; None in a ring of one."""
        return self.ring.successor(self.owners[stage]) if len(self.ring.order) > 1 else None

    def shadowed_by(self, node: int) -> list[int]:
        """The stages of which a node holds the second copy: those of the node before it."""
        return [stage for stage in range(len(self.owners)) if self.shadow_of(stage) == node]

    def without(self, live: Sequence[int], epoch: int) -> Placement:
        """The placement of the nodes that are left: a stage goes to the first of them at or behind its owner."""
        order = self.ring.order

        def heir(node: int) -> int:
            start = order.index(node)
            return next(one for one in (*order[start:], *order[:start]) if one in live)

        ring = Ring(epoch, tuple(one for one in order if one in live))
        return Placement(ring, tuple(heir(owner) for owner in self.owners))

    def admitting(self, number: int, after: int, stages: Sequence[int]) -> Placement:
        """The placement with another node behind `after`, which takes some stages from its neighbours."""
        order = self.ring.order
        at = order.index(after) + 1
        owners = tuple(number if stage in stages else owner for stage, owner in enumerate(self.owners))
        return Placement(Ring(self.ring.epoch, (*order[:at], number, *order[at:])), owners)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {"ring": self.ring.to_dict(), "owners": list(self.owners)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Placement:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(Ring.from_dict(data["ring"]), tuple(data["owners"]))


def newcomer(number: int, stages: int) -> Placement:
    """What a node says of itself that belongs to no ring yet: epoch 0."""
    return Placement(Ring(0, (number,)), (number,) * stages)
