"""Making links: who listens, and who connects."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from distributed.errors import DistributedError, LinkClosed, LinkError, LinkTimeout
from distributed.links.addresses import Addresses, machine_identity
from distributed.links.handshake import Admit, Handshake, Identity, hung_up
from distributed.links.link import LinkOptions
from distributed.links.shm import ShmLink
from distributed.links.socket_link import SocketLink
from distributed.links.stream import SocketStream
from distributed.links.tcp import TcpLink
from distributed.links.tls import TlsStream
from distributed.links.token import Token

KINDS = ("auto", "tcp", "shm")
HANDSHAKE_SECONDS = 10.0
_HANDSHAKES_AT_ONCE = 128
_WILDCARDS = ("", "0.0.0.0", "::")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Membership:
    """What a process needs to make links within its run.

    identity: who it is. Replaced as roles and epochs are given.
    token: the run's shared secret.
    options: how its links behave.
    server_tls, client_tls: contexts of `tls.tls_context` for TCP; None: without TLS.
    """

    identity: Identity
    token: Token
    options: LinkOptions = field(default_factory=LinkOptions)
    server_tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None


class Listener:
    """Accepts links of one run on a TCP port and, where memory may be shared, on an abstract Unix socket.

    membership: asked anew for every handshake, because roles and epochs change.
    accept: receives each link, not yet started, in a thread of its own.
    bind, port: where to listen; port 0 takes a free one.
    advertise: the host name or address under which others reach it; needed where it listens on every address.
    shared: whether to offer shared memory to processes of this machine.
    admit: whether a proved peer may join; see `Handshake`.
    refused: told of each handshake that failed; by default a line in the log.

    Raises DistributedError where the address cannot be used.
    """

    def __init__(
        self,
        membership: Callable[[], Membership],
        accept: Callable[[SocketLink], None],
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        shared: bool = True,
        admit: Admit = lambda peer: None,
        refused: Callable[[LinkError], None] | None = None,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ):
        if advertise is None and bind in _WILDCARDS:
            raise DistributedError(
                "listens on every address and does not know which of them others reach",
                where=f"bind={bind}",
                hint="name an address of this host, or the one to advertise",
            )
        self._membership, self._accept, self._admit = membership, accept, admit
        self._refused = refused or (lambda error: _log.warning("a link was refused: %s", error))
        self._seconds = handshake_seconds
        self._room = threading.BoundedSemaphore(_HANDSHAKES_AT_ONCE)
        self._lock = threading.Lock()
        self._shaking: set[socket.socket] = set()
        self._closed = False
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        try:
            self._sockets = [socket.create_server((bind, port), family=family, backlog=_HANDSHAKES_AT_ONCE)]
        except OSError as error:
            raise DistributedError(f"cannot listen: {error.strerror or error}", where=f"{bind}:{port}") from None
        unix = None
        if shared:
            # An abstract name leaves no file behind, and the kernel forgets it with the socket.
            unix = f"seq2seq-studies-{secrets.token_hex(8)}"
            self._sockets.append(socket.socket(socket.AF_UNIX))
            self._sockets[1].bind(f"\0{unix}")
            self._sockets[1].listen(_HANDSHAKES_AT_ONCE)
        actual = self._sockets[0].getsockname()[1]
        self.addresses = Addresses(advertise or bind, actual, unix, machine_identity())
        self._threads = [
            threading.Thread(target=self._listen, args=(listening,), name="link-listener", daemon=True)
            for listening in self._sockets
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self, listening: socket.socket) -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError as error:
                if self._closed:
                    return
                _log.warning("cannot accept a connection: %s", error)  # out of descriptors, say: others may be closed
                time.sleep(0.1)
                continue
            if not self._room.acquire(blocking=False):
                connected.close()
                continue
            with self._lock:
                self._shaking.add(connected)
            threading.Thread(target=self._shake, args=(connected,), name="link-handshake", daemon=True).start()

    def _shake(self, connected: socket.socket) -> None:
        """The handshake of one connection."""
        link = None
        try:
            membership = self._membership()
            link = make_link(connected, membership, self._seconds, self._admit, server_side=True)
        except LinkError as error:
            self._refused(error)
        finally:
            with self._lock:
                self._shaking.discard(connected)
                closed = self._closed
            self._room.release()
            if link is None:
                connected.close()
        if link is not None and closed:
            link.close()
        elif link is not None:
            try:
                self._accept(link)
            except BaseException:
                link.close(0.0)  # nobody has it
                raise

    def close(self) -> None:
        """Stop listening and end handshakes under way; links that were made live on. Safe to call twice."""
        with self._lock:
            self._closed = True
            shaking = list(self._shaking)
        for ended in (*self._sockets, *shaking):
            with contextlib.suppress(OSError):
                ended.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for listening in self._sockets:
            listening.close()


def connect(
    addresses: Addresses,
    membership: Membership,
    *,
    kind: str = "auto",
    admit: Admit = lambda peer: None,
    seconds: float = HANDSHAKE_SECONDS,
    patience: float = 0.0,
) -> SocketLink:
    """A link to whoever listens there, not yet started.

    kind: `auto` shares memory where both are on one machine, `tcp` never does, `shm` insists.
    admit: whether the listener is who was wanted; see `Handshake`.
    seconds: the deadline of connecting and of the handshake.
    patience: seconds to go on trying while nobody listens.

    Raises LinkError: HandshakeError, LinkTimeout, LinkClosed.
    """
    if kind not in KINDS:
        raise DistributedError(f"'{kind}' is no kind of link", where="link", allowed=KINDS)
    if kind == "shm" and not addresses.shared:
        raise DistributedError(f"{addresses} shares no memory with this process", where="link", allowed=("auto", "tcp"))
    shared = kind != "tcp" and addresses.shared
    until = time.monotonic() + patience
    while True:
        try:
            connected = _dial(addresses, shared, seconds)
            break
        except (ConnectionRefusedError, ConnectionResetError) as error:
            if time.monotonic() >= until:
                raise LinkClosed(f"cannot connect: {error.strerror}", where=str(addresses)) from None
            time.sleep(0.05)
        except TimeoutError:
            raise LinkTimeout(f"cannot connect within {seconds:g} s", where=str(addresses)) from None
        except OSError as error:
            raise LinkClosed(f"cannot connect: {error.strerror or error}", where=str(addresses)) from None
    try:
        return make_link(connected, membership, seconds, admit, server_side=False)
    except BaseException:
        connected.close()
        raise


def _dial(addresses: Addresses, shared: bool, seconds: float) -> socket.socket:
    if not shared:
        return socket.create_connection((addresses.host, addresses.port), seconds)
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(seconds)
        connected.connect(f"\0{addresses.unix}")
    except BaseException:
        connected.close()
        raise
    return connected


def make_link(
    connected: socket.socket, membership: Membership, seconds: float, admit: Admit, server_side: bool
) -> SocketLink:
    """A link over a connected socket, once both sides have proved themselves.

    Raises HandshakeError, LinkTimeout; the socket is still the caller's then.
    """
    until = time.monotonic() + seconds
    try:
        if connected.family == socket.AF_UNIX:
            kind: type[SocketLink] = ShmLink
            stream = SocketStream(connected, seconds)
        else:
            kind = TcpLink
            stream = _tcp_stream(connected, membership, seconds, until, server_side)
        handshake = Handshake(stream, membership.identity, membership.token, admit, seconds, until)
        peer = handshake.as_server() if server_side else handshake.as_client()
    except (LinkClosed, OSError):  # a socket that is gone fails where its options are set, too
        raise hung_up(str(membership.identity.peer)) from None
    except LinkError as error:
        error.where = error.where or str(membership.identity.peer)
        raise
    return kind(stream, peer, membership.options)


def _tcp_stream(
    connected: socket.socket, membership: Membership, seconds: float, until: float, server_side: bool
) -> SocketStream:
    context = membership.server_tls if server_side else membership.client_tls
    if context is None:
        return SocketStream(connected, seconds)
    stream = TlsStream(connected, context, server_side, seconds)
    stream.agree(until)
    return stream
