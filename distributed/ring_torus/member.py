"""A node's life in one of several rings. Nobody goes on without anybody: whoever is lost is known at once to all.

The nodes that hold the same stages have the same state, but who is behind in a step would have to be told by the other
rings what his own has lost; that is not there (yet). So any link that ends, in a ring or across, ends all rings: the
coordinator is told, and training goes back to the last checkpoint with new processes.
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
            self._lost(f"does not reach worker {said.number}")

    def ended(self, link: Link) -> None:
        """A link has ended, perhaps one across."""
        if self._across.ended(link):
            self._lost(f"has lost its link to worker {link.peer.id}")

    def successor_lost(self) -> None:
        """The link to the next node of its ring has ended."""
        self._lost("has lost its link to the next node of its ring")

    def refused(self, number: int, is_first: bool, answer: Answer | None) -> None:
        """The next node of its ring cannot be reached."""
        self._lost(f"does not reach worker {number}")

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

    def _lost(self, what: str) -> None:
        """Stop, and say why: once, and not where it is in no ring."""
        node = self._node
        if node is None or node.is_fenced:
            return
        node.fenced()
        self._control.tell({"say": "broken", "epoch": node.placement.ring.epoch, "what": what})
