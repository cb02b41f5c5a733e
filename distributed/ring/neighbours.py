"""A node's links: to its successor and from its predecessor. There is no way to be linked to another node.

They are made anew in each epoch. A node connects to its successor as soon as it has entered the epoch itself; the
successor lets it in once it has entered, too, and lets in nobody else. What is sent before the link is there waits.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distributed.agent import Control, Job
from distributed.errors import LinkError
from distributed.links.addresses import Addresses
from distributed.links.frames import Frame
from distributed.links.link import Deliver, Link, Payload, Peer, Place
from distributed.links.listener import HANDSHAKE_SECONDS, Membership, connect
from distributed.member_links import MemberLinks
from distributed.parameter_server.messages import COORDINATOR, worker
from distributed.ring.messages import Kind, Ring

PHASES: dict[int, str] = {
    Kind.REDUCE: "reduce",
    Kind.GATHER: "gather",
    Kind.FACTS: "facts",
    Kind.ROLL: "roll",
    Kind.ROLL_FACTS: "rolled",
    Kind.STATE: "state",
    Kind.STATE_FACTS: "joined",
}
"""What frames are called where faults are injected."""

NOBODY = Ring(0, ())

_Sent = tuple[Frame, Payload, Callable[[], None] | None]


class Neighbours(MemberLinks):
    """The links of one node, and a listener for its predecessor and for the coordinator, who fetches whole states.

    Parameters
    ----------
    job, control: the node's.
    place: where payloads from the predecessor go.
    deliver: takes each of its frames; called by the thread that receives it.
    serve: starts a link that the coordinator has made.
    phases: what frames are called where faults are injected.
    """

    def __init__(
        self,
        job: Job,
        control: Control,
        place: Place,
        deliver: Deliver,
        serve: Callable[[Link], None],
        phases: Mapping[int, str] = PHASES,
    ):
        super().__init__(job, control, phases)
        self._place, self._deliver, self._serve = place, deliver, serve
        self._changed = threading.Condition()  # guards what follows
        self._ring = NOBODY
        self._to: Link | None = None
        self._from: Link | None = None
        self._early: list[_Sent] = []  # sent before there is a link
        self._early_back: list[_Sent] = []
        self._served: list[Link] = []
        self._listen()

    # ------------------------------------------------------------------------------------------------- epochs

    def leave(self) -> None:
        """End both links, with their threads: afterwards nothing is read or written for the epoch any more."""
        with self._changed:
            self._ring = NOBODY
            ended, self._to, self._from = [self._to, self._from], None, None
            self._early.clear()
            self._early_back.clear()
        for link in ended:
            if link is not None:
                link.shutdown()
                link.close(0.0)

    def enter(self, ring: Ring, addresses: Mapping[str, Any]) -> None:
        """Be of this epoch: let the predecessor in, and begin to connect to the successor.

        addresses: of all members, by number as text.
        """
        with self._changed:
            self._ring = ring
            self._changed.notify_all()
        successor = ring.successor(self._job.number)
        if successor != self._job.number:
            arguments = (ring.epoch, successor, addresses[str(successor)])
            threading.Thread(target=self._connect, args=arguments, name="ring-connect", daemon=True).start()

    # ------------------------------------------------------------------------------------------------- messages

    def send(self, frame: Frame, payload: Payload = b"", done: Callable[[], None] | None = None) -> None:
        """Part of `Outbox`. What is of another epoch, or cannot be sent any more, is of no use to anybody.

        done: called once the payload is written; maybe never where the epoch ends.
        """
        with self._changed:
            if frame.epoch != self._ring.epoch:
                return
            if self._to is None:
                self._early.append((frame, payload, done))
            else:
                _send(self._to, frame, payload, done)

    def send_back(self, frame: Frame) -> None:
        """The same to the predecessor, of a frame without payload."""
        with self._changed:
            if frame.epoch != self._ring.epoch:
                return
            if self._from is None:
                self._early_back.append((frame, b"", None))
            else:
                _send(self._from, frame, b"", None)

    def close(self) -> None:
        """End everything."""
        self._closing = True
        with self._changed:
            self._changed.notify_all()
        self.leave()
        super().close()

    # ------------------------------------------------------------------------------------------------- inside

    def _open_links(self) -> Iterable[Link]:
        return self._served

    def _membership(self) -> Membership:
        return self._membership_of(self._ring.epoch)

    def _membership_of(self, epoch: int, **options: Any) -> Membership:
        # The protocol bounds what waits: two steps' parts, in memory that is there anyway. To wait for room would be to
        # wait for the successor under the lock of the sums, which it may be waiting for in turn.
        return super()._membership_of(epoch, queued_frames=sys.maxsize, **options)

    def _admit(self, peer: Peer) -> str | None:
        """The predecessor, also where it has entered the epoch before this node has; and the coordinator."""
        if peer.role == COORDINATOR.role:
            return None
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._ring.epoch >= peer.epoch, HANDSHAKE_SECONDS / 2)
            if peer.epoch != self._ring.epoch:
                return f"{peer} is of epoch {peer.epoch}, and this node of another"
            if (peer.role, peer.id) != ("worker", self._ring.predecessor(self._job.number)):
                return f"{peer} is not the predecessor of worker {self._job.number}"
        return None

    def _accept(self, link: Link) -> None:
        if link.peer.role == COORDINATOR.role:
            self._served.append(link)
            self._count(COORDINATOR, link)
            self._serve(link)
            return
        with self._changed:
            is_wanted = link.peer.epoch == self._ring.epoch and self._from is None
            if is_wanted:
                self._from = link
                self._start(link)
                for early in self._early_back:
                    _send(link, *early)
                self._early_back.clear()
        if not is_wanted:
            link.close(0.0)

    def _connect(self, epoch: int, successor: int, addresses: dict[str, Any]) -> None:
        try:
            membership = self._membership_of(epoch)
            link: Link = connect(Addresses.from_dict(addresses), membership, kind=self._job.options["link"])
        except LinkError as error:
            self._tell_ended(epoch, successor, error)
            return
        with self._changed:
            is_wanted = epoch == self._ring.epoch
            if is_wanted:
                self._to = link
                self._start(link)
                for early in self._early:
                    _send(link, *early)
                self._early.clear()
        if not is_wanted:
            link.close(0.0)

    def _start(self, link: Link) -> None:
        epoch, number = self._ring.epoch, link.peer.id
        self._count(worker(number), link)
        link.start(self._place, self._deliver, lambda reason: self._tell_ended(epoch, number, reason))

    def _tell_ended(self, epoch: int, number: int, reason: LinkError) -> None:
        """Say that a link of the present epoch has ended, or was never made."""
        if epoch == self._ring.epoch:
            self._tell_lost(epoch, worker(number), reason)


def _send(link: Link, frame: Frame, payload: Payload, done: Callable[[], None] | None) -> None:
    try:
        link.send(frame, payload, done)
    except LinkError:
        link.shutdown()  # a frame is missing now, so that it must not go on
