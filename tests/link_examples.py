"""Links for tests: both ends in one process, with a record of what arrived."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed.errors import LinkError
from distributed.links.frames import Frame
from distributed.links.handshake import Identity
from distributed.links.link import LinkOptions, Peer
from distributed.links.listener import Membership, make_link
from distributed.links.shm import ShmLink
from distributed.links.socket_link import SocketLink
from distributed.links.stream import SocketStream
from distributed.links.tcp import TcpLink
from distributed.links.token import Token

SECONDS = 60.0  # far more than anything here takes, on a busy machine too
TOKEN = Token(b"a token that only these tests use")
SERVER, WORKER = Peer("server", 1), Peer("worker", 3)


def membership(peer: Peer, options: LinkOptions | None = None, **changes: Any) -> Membership:
    """How a process of the run `run` makes links."""
    identity = Identity(changes.pop("train_id", "run"), peer)
    token = changes.pop("token", TOKEN)
    return Membership(identity, token, options or LinkOptions(stall_seconds=SECONDS), **changes)


@dataclass
class End:
    """One end of a link, and what happened there. `place` and `deliver` may be replaced before `start`."""

    link: SocketLink
    place: Callable[[Frame], Any] = lambda frame: None
    deliver: Callable[[Frame, memoryview], None] | None = None
    frames: list[tuple[Frame, bytes]] = field(default_factory=list)
    views: list[memoryview] = field(default_factory=list)
    reasons: list[LinkError] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> End:
        self.link.start(lambda frame: self.place(frame), self._deliver, self._closed)
        return self

    def _deliver(self, frame: Frame, payload: memoryview) -> None:
        if self.deliver is not None:
            self.deliver(frame, payload)
        with self.changed:
            self.frames.append((frame, bytes(payload)))
            self.views.append(payload)
            self.changed.notify_all()

    def _closed(self, reason: LinkError) -> None:
        with self.changed:
            self.reasons.append(reason)
            self.changed.notify_all()

    def wait_frames(self, count: int) -> list[tuple[Frame, bytes]]:
        """The first `count` frames; fails when the link ends before."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.frames) >= count or self.reasons, SECONDS)
        assert len(self.frames) >= count, self.reasons
        return self.frames

    def wait_closed(self) -> LinkError:
        """Why the link ended."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.reasons, SECONDS), "the link did not end"
        return self.reasons[0]


def sockets(kind: str) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, of TCP over loopback or of Unix."""
    if kind == "shm":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    return client, server


@contextmanager
def link_pair(
    kind: str = "tcp", options: LinkOptions | None = None, server_options: LinkOptions | None = None, **tls: Any
) -> Iterator[tuple[End, End]]:
    """A worker's and a server's end of one link, after the handshake; not started."""
    client, server = sockets(kind)
    found: list[SocketLink] = []
    # The server's half runs beside this thread, because a handshake goes to and fro.
    there = membership(SERVER, server_options or options, **tls)
    thread = threading.Thread(
        target=lambda: found.append(make_link(server, there, SECONDS, lambda peer: None, server_side=True))
    )
    thread.start()
    worker = make_link(client, membership(WORKER, options, **tls), SECONDS, lambda peer: None, server_side=False)
    thread.join()
    ends = End(worker), End(found[0])
    try:
        yield ends
    finally:
        for end in ends:
            end.link.shutdown()
        for end in ends:
            end.link.close()


def resources() -> set[str]:
    """Descriptors and threads of this process. Those that are there before may end meanwhile, whoever's they are."""
    found = {f"{thread.name} ({thread.ident})" for thread in threading.enumerate()}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            found.add(f"{path.name} {path.readlink()}")
    return found


@contextmanager
def raw_peer(kind: str = "tcp", options: LinkOptions | None = None) -> Iterator[tuple[End, socket.socket]]:
    """A server's started end of a link, and the bare socket of a peer that may write anything."""
    client, server = sockets(kind)
    options = options or LinkOptions(stall_seconds=SECONDS)
    kinds: dict[str, type[SocketLink]] = {"tcp": TcpLink, "shm": ShmLink}
    end = End(kinds[kind](SocketStream(server, SECONDS), WORKER, options)).start()
    try:
        yield end, client
    finally:
        client.close()
        end.link.shutdown()
        end.link.close()
