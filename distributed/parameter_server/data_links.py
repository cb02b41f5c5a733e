"""A member's links to other members: made as the table demands, and the outbox of its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.errors import LinkError
from distributed.links.addresses import Addresses
from distributed.links.frames import Frame
from distributed.links.link import Link, Peer, Place
from distributed.links.listener import Membership, connect
from distributed.member_links import MemberLinks
from distributed.parameter_server.messages import Kind, Member

PHASES = {Kind.PUSH: "push", Kind.REPLY: "reply", Kind.SHADOW: "shadow", Kind.SUMS: "sums", Kind.STATE: "state"}
"""What frames are called where faults are injected."""

Deliver = Callable[[Member, Frame, memoryview], None]


class DataLinks(MemberLinks):
    """Links of one member by the other's role and number.

    Parameters
    ----------
    job, control: the member's.
    place: where payloads of arriving frames go.
    deliver: takes each frame; called by the thread that receives it.
    """

    def __init__(self, job: Job, control: Control, place: Place, deliver: Deliver, listen: bool):
        super().__init__(job, control, PHASES)
        self._place, self._deliver = place, deliver
        self._links: dict[Member, Link] = {}
        self._epoch = 0
        self._admitted: Callable[[Member], bool] = lambda member: True
        self.accepted: Callable[[Member], None] = lambda member: None
        if listen:
            self._listen()

    def admit(self, epoch: int, admitted: Callable[[Member], bool]) -> None:
        """From now on be of this epoch, and let only those in."""
        self._epoch, self._admitted = epoch, admitted

    def has(self, member: Member) -> bool:
        """Whether there is a link to a member."""
        return member in self._links

    def connect(self, member: Member, addresses: dict[str, Any]) -> bool:
        """Make a link to a member, if there is none; False where that fails, which the coordinator is told."""
        if member in self._links:
            return True
        try:
            link = connect(Addresses.from_dict(addresses), self._membership(), kind=self._job.options["link"])
        except LinkError as error:
            self._tell_lost(self._epoch, member, error)
            return False
        self._take(member, link)
        return True

    def drop(self, keep: Callable[[Member], bool]) -> None:
        """End the links to members that are gone."""
        for member in [member for member in self._links if not keep(member)]:
            self._links.pop(member).shutdown()

    def send(self, to: Member, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        """Part of `Outbox`. Where there is no link, nothing is said: whoever needs it asks again in the next epoch."""
        link = self._links.get(to)
        if link is not None:
            try:
                link.send(frame, payload)
            except (
                LinkError
            ):  # also of a peer that takes nothing: a frame is missing now, so that the link must not go on
                link.shutdown()

    def close(self) -> None:
        """End everything."""
        super().close()
        self._links.clear()

    def _open_links(self) -> Iterable[Link]:
        return self._links.values()

    def _membership(self) -> Membership:
        return self._membership_of(self._epoch)

    def _admit(self, peer: Peer) -> str | None:
        member = Member(peer.role, peer.id)
        if self._admitted(member):
            return None
        return f"{member} is no member of epoch {self._epoch}: it was given up, and has to join anew"

    def _accept(self, link: Link) -> None:
        member = Member(link.peer.role, link.peer.id)
        self._take(member, link)
        self.accepted(member)

    def _take(self, member: Member, link: Link) -> None:
        old = self._links.pop(member, None)
        if old is not None:
            old.shutdown()
        self._links[member] = link
        self._count(member, link)
        link.start(
            self._place,
            lambda frame, payload: self._deliver(member, frame, payload),
            lambda reason: self._closed(member, link, reason),
        )

    def _closed(self, member: Member, link: Link, reason: LinkError) -> None:
        if self._links.get(member) is link:
            del self._links[member]
            self._tell_lost(self._epoch, member, reason)
