"""The coordinator's end of the control links: agents come, are given roles, and go."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed.agent import Job
from distributed.errors import LinkError
from distributed.launchers.choose import where_to_listen
from distributed.links.frames import Frame, json_payload
from distributed.links.handshake import Identity
from distributed.links.link import Link, LinkOptions, Payload, Peer
from distributed.links.listener import Listener, Membership
from distributed.links.tls import tls_contexts
from distributed.parameter_server.messages import Kind, Member, read_control


@dataclass
class Agent:
    """A process that has connected. `wanted` is the role that it came for, `about` what it says of itself."""

    link: Link
    member: Member | None = None
    wanted: str = "any"
    about: Mapping[str, Any] | None = None


class ControlPlane:
    """Listens for agents and carries messages to and from them, within TLS where the run has a certificate.

    `inbox` receives `("here", agent)`, `("said", agent, message)` and `("gone", agent, reason)`.

    Parameters
    ----------
    job: the coordinator's: its run, token and options, which say where to listen and when an agent counts as lost.
    """

    def __init__(self, job: Job):
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        beat, deadline = job.options["heartbeat_seconds"], job.options["deadline_seconds"]
        options = LinkOptions(
            beat_seconds=beat,
            silence_seconds=max(deadline, 3 * beat),
            stall_seconds=deadline,
            checksum="always",
        )
        tls = tls_contexts(job.options["tls_certificate"], job.options["tls_key"])
        membership = Membership(Identity(job.run, Peer("coordinator")), job.token, options, *tls)
        bind, port = where_to_listen(job.options)
        self._links: list[Link] = []
        self._lock = threading.Lock()  # agents come in threads of their own
        self._closed = False
        self._listener = Listener(lambda: membership, self._accept, bind=bind, port=port, shared=False)
        self.address = str(self._listener.addresses)

    def send(self, agent: Agent, message: Mapping[str, Any]) -> None:
        """Say something to an agent; if it is gone, `inbox` says so."""
        with contextlib.suppress(LinkError):
            agent.link.send(Frame(kind=Kind.CONTROL), json_payload(message))

    def send_frame(self, agent: Agent, frame: Frame, payload: Payload) -> None:
        """Send an agent a frame of another kind; the payload must stay as it is until it is written."""
        with contextlib.suppress(LinkError):
            agent.link.send(frame, payload)

    def close(self) -> None:
        """End all control links, at which the agents end."""
        self._listener.close()
        with self._lock:
            self._closed = True
            links, self._links = self._links, []
        for link in links:
            link.close(1.0)

    def _accept(self, link: Link) -> None:
        agent = Agent(link)
        with self._lock:
            if not self._closed:
                self._links.append(link)
        if self._closed:
            link.close(0.0)
            return

        def deliver(frame: Frame, payload: memoryview) -> None:
            message = read_control(frame, payload)
            if message["say"] == "here":
                agent.wanted, agent.about = message["wanted"], message
                self.inbox.put(("here", agent))
            else:
                self.inbox.put(("said", agent, message))

        link.start(lambda frame: None, deliver, lambda reason: self.inbox.put(("gone", agent, reason)))
