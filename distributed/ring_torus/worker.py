"""The process of a node of several rings: that of a ring, which also takes in what comes across."""

from __future__ import annotations

from typing import Any

from distributed.errors import LinkError
from distributed.links.link import Link
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Decision
from distributed.ring_tmp.worker import Worker
from distributed.ring_torus.links import Reached
from distributed.ring_torus.member import TorusMember


class TorusWorker(Worker):
    """Node `job.number`."""

    _member: TorusMember
    member = TorusMember

    def _handle(self, link: Link | None, event: Any) -> None:
        if isinstance(event, Reached):
            self._member.reached(event)
            return
        super()._handle(link, event)
        if isinstance(event, LinkError) and link is not None:
            self._member.ended(link)

    def _hear(self, link: Link, message: Message) -> None:
        if message.kind >= Kind.ACROSS_HELLO:
            self._member.hear_across(link, message)
        else:
            super()._hear(link, message)

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "begin":
                placement = Placement.from_dict(message["placement"])
                self._member.begin_among(message["rings"], placement, self._states.taken())
                self._answer()
            case "halt":
                self._member.halt()
            case "follow":
                self._member.follow(Decision.from_dict(message["decision"]))
            case _:
                super()._obey(message)
