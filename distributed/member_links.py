"""What the links of any member of a run have in common: where it listens, its shared memory, what it counts and tells.

Whom it is linked to, and when, is up to whoever derives from this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.errors import LinkError
from distributed.links.counters import Counters, total
from distributed.links.link import Link, Peer
from distributed.links.listener import HANDSHAKE_SECONDS, Listener, Membership
from distributed.links.shared_memory import SharedArena
from distributed.parameter_server.messages import COORDINATOR, Member


class MemberLinks:
    """Links of one member to others.

    Parameters
    ----------
    job, control: the member's.
    phases: by kind of frame, what it is called where faults are injected.
    """

    def __init__(self, job: Job, control: Control, phases: Mapping[Any, str]):
        self._job, self._control, self._phases = job, control, phases
        self.arena = SharedArena() if job.options["link"] != "tcp" else None
        self._faults = job.faults()
        self._counters: dict[Member, list[Counters]] = {}  # of all links that there have been
        self._closing = False
        self._listener: Listener | None = None

    @property
    def addresses(self) -> dict[str, Any]:
        """Where others reach this member."""
        assert self._listener is not None
        return self._listener.addresses.as_dict()

    def allocate(self, elements: int) -> torch.Tensor:
        """A buffer of zeros [elements] to send from: in shared memory, where links share some."""
        return self.arena.allocate(elements) if self.arena is not None else torch.zeros(elements)

    def tell(self, message: dict[str, Any]) -> None:
        """Say something to the coordinator."""
        self._control.tell(message)

    def counters(self) -> dict[str, dict[str, Any]]:
        """What went to and from each peer, over links that have ended, too."""
        return {str(member): total(links) for member, links in list(self._counters.items())}

    def shared_bytes(self) -> int:
        """Bytes of the shared memory that this member has made."""
        return self.arena.bytes if self.arena is not None else 0

    def close(self) -> None:
        """End everything."""
        self._closing = True
        if self._listener is not None:
            self._listener.close()
        for link in list(self._open_links()):
            link.shutdown()
            link.close(1.0)
        if self.arena is not None:
            self.arena.close()

    # ------------------------------------------------------------------------------------------------- for subclasses

    def _listen(self, handshake_seconds: float = HANDSHAKE_SECONDS) -> None:
        """Let others in from now on, as `_admit` says."""
        bind = "127.0.0.1" if self._job.options["bind"] == "auto" else self._job.options["bind"]
        self._listener = Listener(
            self._membership,
            self._accept,
            bind=bind,
            shared=self.arena is not None,
            admit=self._admit,
            handshake_seconds=handshake_seconds,
        )

    def _membership_of(self, epoch: int, **options: Any) -> Membership:
        """What a link needs that is made in an epoch; options of `distributed.links.link.LinkOptions`."""
        return self._job.membership(
            epoch,
            arena=self.arena,
            beat_seconds=self._job.options["heartbeat_seconds"],  # shows that a frame is missing though none follows
            faults=self._faults,
            phases=self._phases,
            **options,
        )

    def _count(self, peer: Member, link: Link) -> None:
        """Count what goes over a link."""
        self._counters.setdefault(peer, []).append(link.counters)

    def _tell_lost(self, epoch: int, peer: Member, reason: LinkError) -> None:
        """Tell the coordinator that a link has ended, or was never made, unless it is the coordinator's."""
        if not self._closing and peer.role != COORDINATOR.role:
            about = {"say": "link lost", "role": peer.role, "number": peer.number, "reason": str(reason)}
            self._control.tell(about | {"epoch": epoch})

    def _membership(self) -> Membership:
        """What a link needs that is made now."""
        raise NotImplementedError

    def _admit(self, peer: Peer) -> str | None:
        """Why a peer is not let in; None where it is."""
        raise NotImplementedError

    def _accept(self, link: Link) -> None:
        """Take a link that a peer has made."""
        raise NotImplementedError

    def _open_links(self) -> Iterable[Link]:
        """What `close` has to end."""
        raise NotImplementedError
