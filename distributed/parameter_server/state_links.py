"""The coordinator's own links to the servers, over which whole states go: at the start, and to a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from distributed.agent import Job
from distributed.links.addresses import Addresses
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Link
from distributed.links.listener import connect


class StateLinks:
    """Made when they are needed, and made anew where they have ended.

    Parameters
    ----------
    job: the coordinator's.
    changed: guards `received`, and is told of what arrives.
    ended: called by a link's thread with a server's number and its link.
    """

    def __init__(self, job: Job, changed: threading.Condition, ended: Callable[[int, Link], None]):
        self._job, self._changed, self._ended = job, changed, ended
        self._links: dict[int, Link] = {}
        self.received: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}
        """By shard and buffer, what has come: its content, and how many updates it has had."""

    def to(self, number: int, addresses: Mapping[str, Any]) -> Link:
        """The link to a server. Raises LinkError where it cannot be reached."""
        if number in self._links:
            return self._links[number]
        options = self._job.options
        link = connect(
            Addresses.from_dict(dict(addresses)),
            self._job.membership(beat_seconds=options["heartbeat_seconds"]),
            kind="auto" if options["link"] == "auto" else "tcp",
        )
        self._links[number] = link
        link.start(lambda frame: torch.empty(frame.length // 4), self._take, lambda reason: self._ended(number, link))
        return link

    def lead_to(self, numbers: frozenset[int]) -> bool:
        """Whether there is a link to each of these servers."""
        return numbers <= self._links.keys()

    def drop(self, number: int) -> None:
        """A server is lost."""
        link = self._links.pop(number, None)
        if link is not None:
            link.shutdown()

    def forget(self, number: int, link: Link) -> None:
        """A link has ended."""
        if self._links.get(number) is link:
            del self._links[number]

    def close(self) -> None:
        """End all of them."""
        for link in list(self._links.values()):
            link.shutdown()
            link.close(1.0)

    def _take(self, frame: Frame, payload: memoryview) -> None:
        shard, buffer, updates = frame.tags
        content = as_tensor(payload, torch.float32).clone()
        with self._changed:
            self.received[shard, buffer] = (content, updates)
            self._changed.notify_all()
