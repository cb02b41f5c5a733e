"""A node's life in one of several rings: where a link ends, in its ring or across, it stands still and says so.

No ring closes by itself then, since the others would not know of its open step. The coordinator has all nodes stand
still, and begins rings anew (`distributed.ring_torus.coordinator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.errors import FrameError
from distributed.links.link import Link
from distributed.ring_tmp.member import RingMember
from distributed.ring_tmp.membership import Answer
from distributed.ring_tmp.messages import Message
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Decision
from distributed.ring_tmp.shadow import PartState
from distributed.ring_torus.links import CrossLinks, Reached
from distributed.ring_torus.node import TorusNode


class TorusMember(RingMember):
    """Parameters are those of `RingMember`."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self._across = CrossLinks(self._links, self._number)
        self._column: tuple[int, ...] = ()

    def begin_among(self, rings: Sequence[Sequence[int]], placement: Placement, states: dict[int, PartState]) -> None:
        """Be a node of the first epoch of several rings, given the nodes of each of them in their order."""
        at = next(ring.index(self._number) for ring in rings if self._number in ring)
        self._column = tuple(ring[at] for ring in rings)
        self._across.enter(self._column, placement.ring.epoch)  # a node may have something to send as it begins
        self.begin(placement, states)
        self._control.tell({"say": "playing", "epoch": placement.ring.epoch})

    def halt(self) -> None:
        """Stand still until new rings begin, and say behind which step."""
        node = self._node
        if node is not None:
            node.fenced()
            self._faults.reach("halt", node.applied + 1)
            decision = node.decision and node.decision.to_dict()
            self._control.tell({"say": "halted", "applied": node.applied, "decision": decision})

    def follow(self, decision: Decision) -> None:
        """Apply the step that others have applied, and say so."""
        node = self._node
        if isinstance(node, TorusNode):
            self._faults.reach("follow", decision.step)
            node.follow(decision)
            self._tell_applied(node)
            self._control.tell({"say": "followed"})

    def leave(self) -> int:
        """Be in no ring any more; returns the highest epoch that it has heard of."""
        self._across.reset()
        return super().leave()

    def hear_across(self, link: Link, message: Message) -> None:
        """Take in what came across rings; a link over which something comes that should not is ended."""
        number = self._across.hear(link, message)
        node = self._node
        if number is None or not isinstance(node, TorusNode):
            return
        try:
            with self._timeline.main.busy:
                node.receive_across(number, message)
        except FrameError:
            link.shutdown()  # its end is an event

    def reached(self, said: Reached) -> None:
        """A link across was tried."""
        if self._across.reached(said):
            self._lost()

    def ended(self, link: Link) -> None:
        """A link has ended, perhaps one across."""
        if self._across.ended(link):
            self._lost()

    def successor_lost(self) -> None:
        """The link to the next node of its ring has ended."""
        self._lost()

    def refused(self, number: int, is_first: bool, answer: Answer | None) -> None:
        """The next node of its ring cannot be reached."""
        self._lost()

    def _new_node(self, placement: Placement, states: dict[int, PartState]) -> TorusNode:
        send = self._across.send
        return TorusNode(
            self._number,
            self.setup,
            self._links,
            states,
            placement,
            self._gradients,
            self._mailbox,
            self._column,
            send,
        )

    def _lost(self) -> None:
        """Stop, and say so: once, and not where it is in no ring."""
        node = self._node
        if node is None or node.is_fenced:
            return
        node.fenced()
        self._control.tell({"say": "broken", "epoch": node.placement.ring.epoch})
