"""A node's links: to its successor and from its predecessor, made and ended as the ring's membership wants it.

A link is made by the node that wants the other as its successor. Its first words are why (`Hello`) and what the other
says to that (`Answer`); both are for the thread that plays the node, so a link is nobody's until it has answered.
There is no way to send to any other node.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.errors import LinkError
from distributed.links.addresses import Addresses
from distributed.links.frames import Frame
from distributed.links.link import Link, Peer
from distributed.links.listener import Membership, connect
from distributed.member_links import MemberLinks
from distributed.parameter_server.messages import COORDINATOR, worker
from distributed.ring_tmp.mailbox import Key, Mailbox
from distributed.ring_tmp.membership import Answer, Hello
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.wire import PHASES, TO_TASKS, Assembler, frames_of


@dataclass(frozen=True)
class Dialled:
    """A link was tried: what came of it, unless `attempt` is over."""

    attempt: int
    number: int
    link: Link | None


class NeighbourLinks(MemberLinks):
    """The links of one node. All but the callbacks of links is called by the thread that plays it.

    What comes is posted to the mailbox as (link, what): a `Message`, the `LinkError` that ended the link, or with no
    link a `Dialled`.

    Parameters
    ----------
    job, control: the node's.
    mailbox: where everything goes.
    new_gradient: gives memory for the gradient of a stage, of so many elements.
    serve: starts a link that the coordinator has made.
    """

    def __init__(
        self,
        job: Job,
        control: Control,
        mailbox: Mailbox,
        new_gradient: Callable[[int, int], torch.Tensor],
        serve: Callable[[Link], None],
    ):
        super().__init__(job, control, PHASES)
        self._mailbox, self._new_gradient, self._serve = mailbox, new_gradient, serve
        self._changed = threading.Condition()  # guards the next three, which threads of links see
        self._made: set[Link] = set()
        self._book: dict[int, Mapping[str, Any]] = {}  # by number, where nodes can be reached
        self.next: Link | None = None
        self.before: Link | None = None
        self._candidate: Link | None = None  # dialled, and not answered
        self.wanted = 0
        """Which node was dialled last."""
        self._attempt = 0
        self._epoch = 0
        self._early: list[Message] | None = None  # for the first successor, to which there is no link yet
        self._listen(handshake_seconds=job.options["deadline_seconds"])

    def learn(self, book: Mapping[str, Mapping[str, Any]]) -> None:
        """Where nodes can be reached, by number as text; any thread may tell."""
        with self._changed:
            self._book.update({int(number): addresses for number, addresses in book.items()})
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------- membership

    def dial_first(self, number: int, hello: Hello) -> None:
        """As `dial`; what is to be sent before there is a link waits for it."""
        self.dial(number, hello)
        self._early = []

    def dial(self, number: int, hello: Hello) -> None:
        """See `membership.Network`."""
        self._hang_up(self.next, self._candidate)
        self.next = self._candidate = self._early = None
        self._attempt += 1
        self.wanted = number
        self._epoch = hello.epoch
        threading.Thread(target=self._connect, args=(self._attempt, number, hello), name="dial", daemon=True).start()

    def drop_predecessor(self) -> None:
        """See `membership.Network`."""
        self._hang_up(self.before)
        self.before = None

    @property
    def is_first(self) -> bool:
        """Whether the link that is being made is that of `dial_first`."""
        return self._early is not None

    def dialled(self, said: Dialled) -> bool:
        """A link was tried; returns whether that was in vain, and still matters."""
        if said.attempt != self._attempt:
            self._hang_up(said.link)
            return False
        self._candidate = said.link
        return said.link is None

    def answered(self, link: Link, answer: Answer) -> bool:
        """What the node says that was dialled; False where nobody wants to know any more."""
        if link is not self._candidate:
            return False
        self._candidate = None
        if not answer.is_accepted:
            self._hang_up(link)
            return True
        self.next = link
        early, self._early = self._early, None
        for message in early or ():
            self.transmit(link, message)
        return True

    def accept(self, link: Link, answer: Answer) -> None:
        """Answer a node that wants this one as its successor; if it may, it is the predecessor from now on."""
        if answer.is_accepted:
            self._hang_up(self.before)
            self.before = link
        self.transmit(link, Message(Kind.ANSWER, 0, payload=answer._asdict()))

    def ended(self, link: Link) -> str:
        """A link has ended: `next`, `before`, the `candidate` that was dialled, or none of any use."""
        for name in ("next", "before"):
            if getattr(self, name) is link:
                setattr(self, name, None)
                return name
        if link is self._candidate:
            self._candidate = None
            return "candidate"
        return ""

    def reset(self) -> None:
        """End both links."""
        self._hang_up(self.next, self.before, self._candidate)
        self.next = self.before = self._candidate = self._early = None
        self._attempt += 1

    # ------------------------------------------------------------------------------------------------- messages

    def to_successor(self, message: Message) -> None:
        """See `messages.Outbox`."""
        if self.next is not None:
            self.transmit(self.next, message)
        elif self._early is not None:
            self._early.append(message)

    def to_predecessor(self, message: Message) -> None:
        """See `messages.Outbox`."""
        if self.before is not None:
            self.transmit(self.before, message)

    def reach(self, number: int, first: Message, said: Callable[[Link | None], Any]) -> None:
        """Make a link to a node, say the first word over it, and post what is `said` of it; None: there is none.

        For a thread of its own, since it may take as long as a deadline.
        """
        deadline = self._job.options["deadline_seconds"]
        with self._changed:
            self._changed.wait_for(lambda: self._closing or number in self._book, deadline)
            addresses = self._book.get(number)
        link: Link | None = None
        if addresses is not None:
            with contextlib.suppress(LinkError):
                link = connect(
                    Addresses.from_dict(dict(addresses)),
                    self._membership(),
                    kind=self._job.options["link"],
                    seconds=deadline,
                )
        if link is not None and not self._take_note(link):
            link.close(0.0)
            return
        self._mailbox.post((None, said(link)))
        if link is not None:
            self._start(link)
            self.transmit(link, first)

    @staticmethod
    def transmit(link: Link, message: Message) -> None:
        """Send over a link; one that cannot be sent to any more ends, and says so."""
        try:
            for frame, payload in frames_of(message):
                link.send(frame, payload)
        except LinkError:
            link.shutdown()  # a frame is missing now, so that it must not go on

    def close(self) -> None:
        """End everything."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        super().close()

    # ------------------------------------------------------------------------------------------------- inside

    def _open_links(self) -> Iterable[Link]:
        with self._changed:
            return list(self._made)

    def _membership(self) -> Membership:
        heartbeat, deadline = self._job.options["heartbeat_seconds"], self._job.options["deadline_seconds"]
        return self._membership_of(
            self._epoch,
            silence_seconds=max(deadline, 3 * heartbeat),  # nobody else looks after nodes that stand still
            # The protocol bounds what waits. To wait for room would be to wait for the successor in the thread that
            # has to take in what the predecessor sends, and so all might wait round the ring.
            queued_frames=sys.maxsize,
        )

    def _admit(self, peer: Peer) -> str | None:
        return None if peer.role in ("worker", COORDINATOR.role) else f"{peer} is no node of the ring"

    def _accept(self, link: Link) -> None:
        if not self._take_note(link):
            link.close(0.0)
        elif link.peer.role == COORDINATOR.role:
            self._serve(link)
        else:
            self._start(link)

    def _connect(self, attempt: int, number: int, hello: Hello) -> None:
        first = Message(Kind.HELLO, 0, payload=hello._asdict())
        self.reach(number, first, lambda link: Dialled(attempt, number, link))

    def _take_note(self, link: Link) -> bool:
        """Note a link that is made; False where all is over."""
        peer = COORDINATOR if link.peer.role == COORDINATOR.role else worker(link.peer.id)
        with self._changed:
            if self._closing:
                return False
            self._made.add(link)
            self._count(peer, link)
        return True

    def _start(self, link: Link) -> None:
        assembler = Assembler(self._new_gradient)

        def deliver(frame: Frame, payload: memoryview) -> None:
            message = assembler.take(frame, payload)
            if message is None:
                return
            if message.kind in TO_TASKS:
                key = Key(message.step, message.kind, *message.tags)
                self._mailbox.put(message.epoch, key, message.payload)
            else:
                self._mailbox.post((link, message))

        def closed(reason: LinkError) -> None:
            with self._changed:
                self._made.discard(link)
            self._mailbox.post((link, reason))

        link.start(assembler.place, deliver, closed)

    def _hang_up(self, *links: Link | None) -> None:
        for link in links:
            if link is not None:
                link.shutdown()
