"""Who belongs to the ring, agreed by the ring itself: the end of a link, and a walk round the ring. Nobody presides.

A node notices the end of the link to its successor, dials the next nodes until one answers, and sends a *walk*. Each
node stops at it, adds where it stands, and passes it on; so it comes back with the words of all that live, in order.
From these words follows how to go on (`distributed.ring_tmp.verdict`); so the one that began sends them round again,
and each node goes on as soon as it has them: who is faster waits at the next prepare barrier, not here.

- A walk has a number that no other has, and higher than all that its beginner has heard of: it is the number of the new
  epoch. A node stops for the highest and forgets the others, so of several walks at a time one ends well.
- A node that dies on the way takes a walk with it. The node before it, which has passed the walk on, notices and begins
  a higher one. A walk whose beginner is dead is replaced by whoever gets it and knows.
- A node that could not be reached is *gone*, which walks tell: if it lives after all (it stood still, or the network
  was cut), it is sent away when it dials, learns that it is gone, and ends. It never comes back under its number.
- A node that comes is admitted by the one that it is to follow: that one makes it its successor and begins a walk.
- The process that trains, or started the nodes, plays no part.

What cannot be told from inside is which side of a cut network is the dead one. Both halves of a ring of two would go
on alone; in a larger ring the half that lacks two neighbours' stages stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from distributed.ring.messages import Ring
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.verdict import Status, Verdict, newest, verdict_of
from distributed.ring_tmp.walk import NODES_LIMIT, Walk, beginner_of, epoch_above


class Hello(NamedTuple):
    """What a node says to the one that it wants as its successor.

    epoch: the newest that it has entered.
    after: of a node that belongs to no ring yet, the one that admits it.
    """

    number: int
    gone: tuple[int, ...]
    epoch: int
    after: int | None = None


class Answer(NamedTuple):
    """What that one says.

    is_gone: the node that dials is gone.
    instead: another that it has to dial, which stands between the two.
    """

    is_accepted: bool
    is_gone: bool = False
    instead: int | None = None


class Node(Protocol):
    """What is to stop, and to go on."""

    def freeze(self) -> Status:
        """Do nothing more until `enter`, and say where you stand; may be called again before."""

    def enter(self, verdict: Verdict) -> None:
        """Go on as was decided."""

    def lost(self, verdict: Verdict, old: Placement) -> None:
        """A state is gone for good: load checkpoints, and go on as `verdict.placement` says. `old` is that before."""

    def fenced(self) -> None:
        """The others went on without this node: end."""


class Network(Protocol):
    """How a node gets a successor, and what it says to it."""

    def dial(self, number: int, hello: Hello) -> None:
        """Try to make a link to a node, and answer by `linked` or `refused`; an old link to a successor ends."""

    def to_successor(self, message: Message) -> None:
        """Send over the link that was made last."""

    def drop_predecessor(self) -> None:
        """End the link from the predecessor."""


class RingMembership:
    """Node `number`'s part in agreeing on who there is.

    Parameters
    ----------
    placement: that of the first epoch, whose links are made already; `placement.newcomer` for a node that has none.
    shadows: whether second copies are to be kept.
    """

    def __init__(self, number: int, placement: Placement, node: Node, network: Network, *, shadows: bool = True):
        if max(placement.ring.order) >= NODES_LIMIT:
            raise ValueError(f"nodes are numbered below {NODES_LIMIT}")
        self.number, self.placement = number, placement
        self.gone: set[int] = set()
        self._node, self._network, self._shadows = node, network, shadows
        self._promised = placement.ring.epoch
        self._walk: Walk | None = None  # the one that this node has stopped for
        self._is_linked, self._is_dialling = len(placement.ring.order) > 1, False
        self._order, self._known = placement.ring.order, placement.ring.epoch  # where successors are looked for
        self._admits: tuple[int, tuple[int, ...]] | None = None
        self._after: int | None = None  # of a node that is new: who admits it
        self._guest: int | None = None  # the predecessor, while no verdict has admitted it
        self._is_over = False

    @property
    def promised(self) -> int:
        """The highest epoch that this node has heard of."""
        return self._promised

    @property
    def at_work(self) -> bool:
        """Whether no change is under way, as far as this node knows."""
        return self._walk is None and not self._is_over

    # ------------------------------------------------------------------------------------------------- links

    def successor_lost(self) -> None:
        """The link to the successor has ended, for whatever reason."""
        if not self._is_over:
            self._is_linked = False
            self._begin()
            self._dial()

    def admit(self, number: int, stages: Sequence[int]) -> bool:
        """Make a node that is new the successor, to take these stages from this node or from the one behind it.

        False while a change is under way: ask again later, best behind a step, since the open one is done anew.
        """
        if not self.at_work or number in self.gone:
            return False
        at = self._order.index(self.number) + 1
        self._order = (*self._order[:at], number, *self._order[at:])
        self._admits = (number, tuple(stages))
        self._is_linked = False
        self._begin()
        self._dial()
        return True

    def dialled(self, hello: Hello) -> Answer:
        """A node wants this one as its successor. If it may, the link from the old predecessor ends."""
        epoch, is_stranger = self.placement.ring.epoch, hello.number not in self._order and hello.after is None
        if self._is_over or hello.number in self.gone or (is_stranger and hello.epoch < epoch):
            return Answer(False, is_gone=True)
        self.gone |= set(hello.gone)
        if self.number in self.gone:
            self._end()
            return Answer(False)
        if hello.after is not None:
            if hello.after in self.gone:
                self.gone.add(hello.number)
                return Answer(False, is_gone=True)
            self._guest = hello.number
            return Answer(True)
        if hello.epoch < epoch:
            before = self._others()[-1:]  # the nearest before this node
            if before and before[0] != hello.number:
                return Answer(False, instead=before[0])
        self._guest = None  # its place is taken: who admitted it is gone, and it will be told when it dials again
        return Answer(True)

    def linked(self) -> None:
        """The node that was dialled is the successor now."""
        self._is_linked, self._is_dialling = True, False
        if self._walk is not None:
            self._send(Kind.WALK, self._walk)

    def refused(self, number: int, answer: Answer | None) -> None:
        """The node that was dialled cannot be reached (None), or does not accept."""
        if self._is_over:
            return
        if answer is not None and answer.is_gone:
            self._end()
        elif answer is not None and answer.instead is not None:
            self._network.dial(answer.instead, self._hello())
        else:
            self.gone.add(number)
            self._dial()

    # ------------------------------------------------------------------------------------------------- walks

    def receive(self, message: Message) -> None:
        """Take in a walk or a verdict from the predecessor."""
        walk = Walk.from_dict(message.epoch, message.payload)
        if self._is_over:
            return
        self.gone |= walk.gone
        sender = walk.statuses[-1].number
        is_stranger = message.kind == Kind.WALK and sender not in (*self._order, self._guest)
        if self.number in self.gone:
            self._end()
        elif is_stranger and newest(walk.statuses).ring.epoch < self.placement.ring.epoch:
            self.gone.add(sender)  # it was let in before this node went on without it
            self._network.drop_predecessor()
        elif message.kind == Kind.WALK:
            self._take(walk)
        elif walk.epoch == self._promised and self._walk is not None and walk.origin != self.number:
            self._go_on(walk)

    def _take(self, walk: Walk) -> None:
        if walk.epoch < self._promised:
            if beginner_of(self._promised) in self.gone:
                self._begin()  # what this node has stopped for cannot end well, and the lower one was stopped by it
        elif walk.epoch == self._promised:
            if walk.origin != self.number:
                self._begin()  # it went round, and its beginner is not there any more
            elif self._walk is not None:
                self._go_on(walk)
        elif walk.origin in self.gone:
            self._promised = walk.epoch
            self._begin()
        else:
            self._stop_for(walk._replace(statuses=(*walk.statuses, self._status())))
            self._learn(walk.statuses)

    def _learn(self, statuses: Sequence[Status]) -> None:
        """Look for successors among the members of a newer ring, if the walk tells of one that was not entered here.

        A node that is new learns its place in this way. One that was alone, as far as it knew, dials again.
        """
        ring = newest(statuses).ring
        if self.number not in ring.order and not self.placement.ring.epoch:
            self._after = statuses[-1].number
            at = ring.order.index(self._after) + 1
            ring = Ring(ring.epoch, (*ring.order[:at], self.number, *ring.order[at:]))
        if ring.epoch <= self._known or self.number not in ring.order:
            return
        self._order, self._known = ring.order, ring.epoch
        if not self._is_linked and not self._is_dialling:
            self._dial()

    def _begin(self) -> None:
        """Begin a walk that is higher than all others."""
        self._stop_for(Walk(epoch_above(self._promised, self.number), frozenset(self.gone), (self._status(),)))

    def _stop_for(self, walk: Walk) -> None:
        self._promised = walk.epoch
        self._walk = walk._replace(gone=walk.gone | self.gone)
        if self._is_linked:
            self._send(Kind.WALK, self._walk)

    def _go_on(self, walk: Walk) -> None:
        """All who live have spoken."""
        old = newest(walk.statuses)
        verdict = verdict_of(walk.epoch, walk.statuses, shadows=self._shadows)
        self.placement, self._walk = verdict.placement, None
        ring = verdict.placement.ring
        self.gone |= {*old.ring.order, *(one.number for one in walk.statuses)} - set(ring.order)
        if self.number in self.gone:
            self._end()
            return
        if self._guest is not None and self._guest not in ring.order:
            self.gone.add(self._guest)  # who admitted it was lost: it may come again under another number
            self._network.drop_predecessor()
        self._order, self._known = ring.order, ring.epoch
        self._admits = self._after = self._guest = None
        if self._is_linked and ring.successor(self.number) != walk.origin:
            self._send(Kind.VERDICT, walk._replace(gone=frozenset(self.gone)))
        if verdict.lost:
            self._node.lost(verdict, old)
        else:
            self._node.enter(verdict)

    # ------------------------------------------------------------------------------------------------- inside

    def _others(self) -> Sequence[int]:
        """The nodes that are not gone, beginning behind this one."""
        at = self._order.index(self.number)
        return [one for one in (*self._order[at + 1 :], *self._order[:at]) if one not in self.gone]

    def _status(self) -> Status:
        return replace(self._node.freeze(), admits=self._admits)

    def _hello(self) -> Hello:
        return Hello(self.number, tuple(sorted(self.gone)), self.placement.ring.epoch, self._after)

    def _dial(self) -> None:
        others = self._others()
        self._is_dialling = bool(others)
        if others:
            self._network.dial(others[0], self._hello())
        elif not self.placement.ring.epoch:  # nobody is left who could admit this node
            self._end()
        elif self._walk is not None:  # nobody else is left
            self._stop_for(Walk(self._promised, frozenset(self.gone), (self._status(),)))
            self._go_on(self._walk)

    def _end(self) -> None:
        self._is_over = True
        self._node.fenced()

    def _send(self, kind: Kind, walk: Walk) -> None:
        self._network.to_successor(Message(kind, walk.epoch, payload=walk.to_dict()))
