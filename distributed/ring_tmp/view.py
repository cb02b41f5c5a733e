"""What the coordinator knows of a ring that looks after itself, from what its nodes tell.

Nodes tell of a change when they have gone on (`entered`), of a step when it is in their state (`applied`), and when all
states are where they are to be again (`protected`). No thread and no socket is here, and nothing is decided here.
"""

from __future__ import annotations

from distributed.ring.messages import Ring
from distributed.ring_tmp.placement import Placement

NOBODY = Placement(Ring(0, ()), ())


class RingView:
    """The newest ring that anybody has told of."""

    def __init__(self) -> None:
        self.placement = NOBODY
        self.known: set[int] = set()
        """Who has been a member and is not known to be gone."""
        self._entered: dict[int, int] = {}  # by node, the newest epoch
        self._protected: dict[int, int] = {}
        self._applied: dict[int, int] = {}  # by node, the newest step

    @property
    def epoch(self) -> int:
        """The newest; 0 before the run begins."""
        return self.placement.ring.epoch

    @property
    def members(self) -> list[int]:
        """Of the newest ring, in its order, those who live as far as is known."""
        return [number for number in self.placement.ring.order if number in self.known]

    @property
    def applied(self) -> int:
        """The newest step that all members have applied."""
        return min((self._applied.get(number, 0) for number in self.members), default=0)

    @property
    def open_step(self) -> int:
        """The first step that some member has not applied."""
        return self.applied + 1

    @property
    def at_work(self) -> bool:
        """Whether no change is under way: every member of the newest ring is in it, and has all that it is to have."""
        ring = self.placement.ring
        return set(ring.order) <= self.known and all(
            self._entered.get(one) == self._protected.get(one) == ring.epoch for one in ring.order
        )

    def begin(self, placement: Placement, applied: int) -> None:
        """All members have the state after a step, and know each other."""
        order = placement.ring.order
        self.placement, self.known = placement, set(order)
        self._entered = dict.fromkeys(order, self.epoch)
        self._protected = dict.fromkeys(order, self.epoch)
        self._applied = dict.fromkeys(order, applied)

    def enter(self, number: int, placement: Placement, applied: int) -> list[int] | None:
        """A node has gone on in an epoch.

        Returns, where nobody has told of this epoch before, the members of the one before that are left out of it.
        """
        left_out = None
        if placement.ring.epoch > self.epoch:
            left_out = [one for one in self.members if one not in placement.ring.order]
            self.placement = placement
            self.known.update(placement.ring.order)
        self._entered[number] = placement.ring.epoch
        self._applied[number] = max(applied, self._applied.get(number, 0))
        return left_out

    def protect(self, number: int, epoch: int) -> None:
        """A node has all that it is to have in an epoch, and has sent on what others lack."""
        self._protected[number] = epoch

    def apply(self, number: int, step: int) -> None:
        """A step is in a node's state."""
        self._applied[number] = max(step, self._applied.get(number, 0))

    def leave(self, number: int) -> None:
        """A node is gone; the ring finds out by itself."""
        self.known.discard(number)

    def again(self) -> None:
        """Nothing: nodes make their links anew by themselves."""

    def pending(self) -> str:
        """What a change that is under way waits for, as a clause; empty where none is."""
        ring = self.placement.ring
        for what, told in [("go on with the others", self._entered), ("be sent what it lacks", self._protected)]:
            late = [one for one in ring.order if told.get(one) != ring.epoch]
            if late:
                return f"node {', '.join(map(str, late))} to {what}"
        return ""
