"""A member's links to other members: made as the table demands, and the outbox of its protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.errors import LinkError
from distributed.large_memory import large_zeros
from distributed.links.addresses import Addresses
from distributed.links.counters import Counters, total
from distributed.links.frames import Frame
from distributed.links.link import Link, Peer, Place
from distributed.links.listener import Listener, Membership, connect
from distributed.links.shared_memory import SharedArena
from distributed.parameter_server.messages import Kind, Member

PHASES = {Kind.PUSH: "push", Kind.REPLY: "reply", Kind.SHADOW: "shadow", Kind.SUMS: "sums", Kind.STATE: "state"}
"""What frames are called where faults are injected."""

Deliver = Callable[[Member, Frame, memoryview], None]


class DataLinks:
    """Links of one member by the other's role and number.

    Parameters
    ----------
    job, control: the member's.
    place: where payloads of arriving frames go.
    deliver: takes each frame; called by the thread that receives it.
    """

    def __init__(self, job: Job, control: Control, place: Place, deliver: Deliver, listen: bool):
        self._job, self._control, self._place, self._deliver = job, control, place, deliver
        self.arena = SharedArena() if job.options["link"] != "tcp" else None
        self._links: dict[Member, Link] = {}
        self._counters: dict[Member, list[Counters]] = {}  # of all links that there have been
        self._epoch = 0
        self._admitted: Callable[[Member], bool] = lambda member: True
        self._faults = job.faults()
        self._closing = False
        self._listener: Listener | None = None
        self.accepted: Callable[[Member], None] = lambda member: None
        if listen:
            bind = "127.0.0.1" if job.options["bind"] == "auto" else job.options["bind"]
            self._listener = Listener(
                self._membership,
                self._accept,
                bind=bind,
                shared=self.arena is not None,
                admit=self._admit,
            )

    @property
    def addresses(self) -> dict[str, Any]:
        """Where others reach this member."""
        assert self._listener is not None
        return self._listener.addresses.as_dict()

    def allocate(self, elements: int) -> torch.Tensor:
        """A buffer of zeros [elements] to send from: in shared memory, where links share some."""
        return self.arena.allocate(elements) if self.arena is not None else large_zeros(elements)

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
            self._tell_lost(member, error)
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

    def tell(self, message: dict[str, Any]) -> None:
        """Part of `Outbox`."""
        self._control.tell(message)

    def counters(self) -> dict[str, dict[str, Any]]:
        """What went to and from each member, over links that have ended, too."""
        return {str(member): total(links) for member, links in list(self._counters.items())}

    def shared_bytes(self) -> int:
        """Bytes of the shared memory that this member has made."""
        return self.arena.bytes if self.arena is not None else 0

    def close(self) -> None:
        """End everything."""
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        for link in list(self._links.values()):
            link.shutdown()
            link.close(1.0)
        self._links.clear()
        if self.arena is not None:
            self.arena.close()

    def _membership(self) -> Membership:
        return self._job.membership(
            self._epoch,
            arena=self.arena,
            beat_seconds=self._job.options["heartbeat_seconds"],  # shows that a frame is missing though none follows
            faults=self._faults,
            phases=PHASES,
        )

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
        self._counters.setdefault(member, []).append(link.counters)
        link.start(
            self._place,
            lambda frame, payload: self._deliver(member, frame, payload),
            lambda reason: self._closed(member, link, reason),
        )

    def _closed(self, member: Member, link: Link, reason: LinkError) -> None:
        if self._links.get(member) is link:
            del self._links[member]
            self._tell_lost(member, reason)

    def _tell_lost(self, member: Member, reason: LinkError) -> None:
        if not self._closing and member.role != "coordinator":
            about = {"say": "link lost", "role": member.role, "number": member.number, "reason": str(reason)}
            self._control.tell(about | {"epoch": self._epoch})
