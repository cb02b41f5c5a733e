"""The handshake: two processes prove the shared token to each other and say who they are, before any frame.

    client                                      server
    hello (version, nonce, run, role, …)  ─▶
                                          ◀─    hello
    proof of the token                    ─▶
                                          ◀─    proof of the token, or a refusal
    verdict: accepted, or a refusal       ─▶

Each message is a JSON object behind its length. A proof is an HMAC-SHA256 under the token over both hellos, so neither
the token nor anything that could be replayed is on the wire, and what the hellos claim is proved with it. Both sides
learn why the other refuses. What follows is not authenticated any more: where the network is not trusted, use TLS.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from distributed.errors import HandshakeError, LinkClosed, LinkTimeout
from distributed.links.frames import VERSION
from distributed.links.link import Peer
from distributed.links.stream import SocketStream
from distributed.links.token import Token

PROTOCOL = "seq2seq-studies link"
_LENGTH = struct.Struct("<I")
_MOST_BYTES = 4096
_TLS_HELLO = b"\x16\x03"  # how every TLS connection begins
_STRANGER = "the peer is not a process of this program"
_LARGEST_NUMBER = (1 << 32) - 1
_REFUSED_SECONDS = 1.0  # that a peer has to read why it is refused

Admit = Callable[[Peer], str | None]


@dataclass(frozen=True)
class Identity:
    """What a process says of itself in a handshake.

    train_id: of the run; only processes of one run are joined.
    peer: its place in the run.
    """

    train_id: str
    peer: Peer


class Handshake:
    """A handshake over a connected stream, within a deadline.

    seconds, until: how long it may take, and when that is over by `time.monotonic()`.
    admit: asked whether the proved peer may join; answers None, or in a clause why not. Both sides get to read it.
    """

    def __init__(
        self, stream: SocketStream, identity: Identity, token: Token, admit: Admit, seconds: float, until: float
    ):
        self._stream, self._identity, self._token, self._admit = stream, identity, token, admit
        self._seconds, self._deadline = seconds, until

    def as_client(self) -> Peer:
        """The side that connected. Raises HandshakeError, LinkTimeout, LinkClosed."""
        own = self._hello()
        self._send(own)
        theirs = self._accepted(self._receive())
        peer = self._read_hello(theirs)
        transcript = _transcript(own, theirs)
        self._send({"proof": self._token.proof("client", transcript)})
        answer = self._accepted(self._receive())
        if not self._token.proves(answer.get("proof"), "server", transcript):
            self._refuse("the server does not hold this run's token")
        self._judge(theirs, peer)
        self._send({"accepted": True})
        return peer

    def as_server(self) -> Peer:
        """The side that was connected to. Raises HandshakeError, LinkTimeout, LinkClosed."""
        theirs = self._accepted(self._receive())
        peer = self._read_hello(theirs)
        own = self._hello()
        self._send(own)
        transcript = _transcript(theirs, own)
        answer = self._accepted(self._receive())
        if not self._token.proves(answer.get("proof"), "client", transcript):
            self._refuse("the client does not hold this run's token")
        self._judge(theirs, peer)
        self._send({"proof": self._token.proof("server", transcript)})
        self._accepted(self._receive())
        return peer

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": VERSION,
            "nonce": secrets.token_hex(16),
            "train_id": self._identity.train_id,
            **asdict(self._identity.peer),
        }

    def _read_hello(self, hello: dict[str, Any]) -> Peer:
        """Who a hello claims to come from."""
        if hello.get("protocol") != PROTOCOL:
            self._refuse(_STRANGER)
        if hello.get("version") != VERSION:
            self._refuse(f"one side speaks version {hello.get('version')!r:.20} of the links, the other {VERSION}")
        numbers = {name: hello.get(name) for name in ("id", "incarnation", "epoch")}
        if not all(type(number) is int and 0 <= number <= _LARGEST_NUMBER for number in numbers.values()):
            self._refuse("a hello is malformed")
        if not all(isinstance(hello.get(name), str) for name in ("role", "train_id", "nonce")):
            self._refuse("a hello is malformed")
        return Peer(hello["role"][:64], hello["id"], hello["incarnation"], hello["epoch"])

    def _judge(self, hello: dict[str, Any], peer: Peer) -> None:
        """Refuse a proved peer of another run, or one that is not admitted."""
        if hello["train_id"] != self._identity.train_id:
            self._refuse(f"{peer} belongs to run {hello['train_id']:.64}, not to {self._identity.train_id}")
        reason = self._admit(peer)
        if reason is not None:
            self._refuse(reason)

    def _refuse(self, reason: str) -> NoReturn:
        try:
            self._send({"refused": reason})
            # A socket that is closed before all is read is reset, and the refusal lost with it on a network that drops
            # packets: read until the peer hangs up.
            until = min(self._deadline, time.monotonic() + _REFUSED_SECONDS)
            self._stream.receive(memoryview(bytearray(_MOST_BYTES)), until=until)
        except (LinkClosed, LinkTimeout):
            pass  # it is refused all the same
        raise HandshakeError(reason, where=str(self._identity.peer))

    def _accepted(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message that is no refusal."""
        if "refused" in message:
            reason = "".join(sign if sign.isprintable() else "?" for sign in str(message["refused"])[:300])
            raise HandshakeError(f"refused by the peer: {reason}", where=str(self._identity.peer))
        return message

    def _send(self, message: dict[str, Any]) -> None:
        self._bound_wait()
        data = json.dumps(message).encode()
        self._stream.send(_LENGTH.pack(len(data)) + data)

    def _receive(self) -> dict[str, Any]:
        first = self._read(_LENGTH.size)
        (length,) = _LENGTH.unpack(first)
        if length > _MOST_BYTES:
            what = "the peer speaks TLS and this side does not" if first[:2] == _TLS_HELLO else _STRANGER
            raise HandshakeError(what, where=str(self._identity.peer))
        try:
            message = json.loads(self._read(length))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise HandshakeError(_STRANGER, where=str(self._identity.peer))
        return message

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        self._bound_wait()
        try:
            count = self._stream.receive(memoryview(data), until=self._deadline)
        except LinkTimeout:
            raise self._late() from None
        if count < length:
            raise hung_up(str(self._identity.peer))
        return data

    def _bound_wait(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self._late()
        self._stream.wait_at_most(remaining)

    def _late(self) -> LinkTimeout:
        return LinkTimeout(f"no handshake within {self._seconds:g} s", where=str(self._identity.peer))


def hung_up(where: str) -> HandshakeError:
    """A connection that ended before the handshake did."""
    return HandshakeError("the peer hung up during the handshake", where=where, hint="its own output says why")


def _transcript(client: dict[str, Any], server: dict[str, Any]) -> bytes:
    """A digest of both hellos."""
    return hashlib.sha256(json.dumps([client, server], sort_keys=True).encode()).digest()
