"""Nobody joins a run by accident: handshakes, tokens, listeners."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from link_examples import SECONDS, SERVER, TOKEN, WORKER, End, membership, resources, sockets

from distributed.errors import DistributedError, HandshakeError, LinkClosed, LinkError, LinkTimeout
from distributed.links import handshake
from distributed.links.addresses import Addresses, machine_identity
from distributed.links.frames import VERSION, Frame
from distributed.links.handshake import PROTOCOL
from distributed.links.link import Peer
from distributed.links.listener import Listener, Membership, connect, make_link
from distributed.links.shm import ShmLink
from distributed.links.tcp import TcpLink
from distributed.links.token import Token

OTHER = Token(b"the token of some other run")

both_kinds = pytest.mark.parametrize("kind", ["tcp", "shm"])


def everybody(peer: Peer) -> str | None:
    return None


def shake(
    client: Membership,
    server: Membership,
    admit: Callable[[Peer], str | None] = everybody,
    client_admit: Callable[[Peer], str | None] = everybody,
    kind: str = "tcp",
) -> tuple[Any, Any]:
    """What each side makes of a handshake: a link or an error."""
    ours, theirs = sockets(kind)
    found: list[Any] = []

    def side(connected: socket.socket, own: Membership, admitted: Any, server_side: bool) -> Any:
        try:
            return make_link(connected, own, SECONDS, admitted, server_side=server_side)
        except LinkError as error:
            connected.close()
            return error

    thread = threading.Thread(target=lambda: found.append(side(theirs, server, admit, True)))
    thread.start()
    mine = side(ours, client, client_admit, False)
    thread.join(SECONDS)
    for link in (mine, found[0]):
        if not isinstance(link, LinkError):
            link.close()
    return mine, found[0]


@both_kinds
def test_each_side_learns_who_the_other_is(kind: str) -> None:
    worker, server = Peer("worker", 3, incarnation=2, epoch=7), Peer("server", 1)
    mine, theirs = shake(membership(worker), membership(server), kind=kind)
    assert (mine.peer, theirs.peer) == (server, worker)
    assert str(theirs.peer) == "worker3.2"
    assert isinstance(mine, TcpLink if kind == "tcp" else ShmLink)


@pytest.mark.parametrize(
    ("client", "server", "theirs", "mine"),
    [
        (
            membership(WORKER, token=OTHER),
            membership(SERVER),
            "server1: the client does not hold this run's token",
            "worker3: refused by the peer: the client does not hold this run's token",
        ),
        (
            membership(WORKER, train_id="another"),
            membership(SERVER),
            "server1: worker3 belongs to run another, not to run",
            "worker3: refused by the peer: worker3 belongs to run another, not to run",
        ),
    ],
    ids=["token", "run"],
)
def test_both_sides_say_why_they_are_not_joined(client: Membership, server: Membership, theirs: str, mine: str) -> None:
    found = shake(client, server)
    assert all(isinstance(error, HandshakeError) for error in found)
    assert [str(error) for error in found] == [mine, theirs]


def test_each_side_may_refuse_a_proved_peer() -> None:
    def young(peer: Peer) -> str | None:
        return None if peer.epoch >= 4 else f"{peer} is of epoch {peer.epoch}, the run has reached 4"

    mine, theirs = shake(membership(Peer("worker", 3, epoch=3)), membership(SERVER), admit=young)
    assert str(theirs) == "server1: worker3 is of epoch 3, the run has reached 4"
    assert str(mine) == "worker3: refused by the peer: worker3 is of epoch 3, the run has reached 4"

    def only_two(peer: Peer) -> str | None:
        return None if (peer.role, peer.id) == ("server", 2) else f"wanted server2, found {peer}"

    mine, theirs = shake(membership(WORKER), membership(SERVER), client_admit=only_two)
    assert str(mine) == "worker3: wanted server2, found server1"
    assert str(theirs) == "server1: refused by the peer: wanted server2, found server1"


class Stranger:
    """A bare connection to a server that makes a handshake, message by message."""

    def __init__(self, seconds: float = SECONDS):
        self.socket, server = sockets("tcp")
        self.socket.settimeout(SECONDS)
        self._found: list[LinkError] = []
        self._thread = threading.Thread(target=self._serve, args=(server, seconds))
        self._thread.start()

    def _serve(self, server: socket.socket, seconds: float) -> None:
        with server:
            try:
                make_link(server, membership(SERVER), seconds, everybody, server_side=True)
            except LinkError as error:
                self._found.append(error)

    def say(self, message: object) -> None:
        data = json.dumps(message).encode()
        self.socket.sendall(struct.pack("<I", len(data)) + data)

    def hear(self) -> dict[str, Any]:
        (length,) = struct.unpack("<I", self.socket.recv(4, socket.MSG_WAITALL))
        return json.loads(self.socket.recv(length, socket.MSG_WAITALL))

    def end(self) -> LinkError:
        """What the server makes of it."""
        self.socket.close()
        self._thread.join(SECONDS)
        return self._found[0]


HELLO = {"protocol": PROTOCOL, "version": VERSION, "nonce": "0" * 32, "train_id": "run", **asdict(WORKER)}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"protocol": "SSH-2.0"}, "the peer is not a process of this program"),
        ({"version": VERSION + 1}, f"one side speaks version {VERSION + 1} of the links, the other {VERSION}"),
        ({"id": -1}, "malformed"),
        ({"id": "3"}, "malformed"),
        ({"id": True}, "malformed"),
        ({"epoch": 2**32}, "malformed"),
        ({"role": 3}, "malformed"),
        ({"train_id": None}, "malformed"),
        ({"nonce": []}, "malformed"),
    ],
)
def test_hellos_that_are_wrong(changes: dict[str, object], what: str) -> None:
    stranger = Stranger()
    stranger.say({**HELLO, **changes})
    assert what in stranger.hear()["refused"]
    assert what in str(stranger.end())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 5000) + bytes(5000),
        struct.pack("<I", 4) + b"nope",
        struct.pack("<I", 4000) + b"[" * 4000,
        struct.pack("<I", 2) + b"[]",
    ],
)
def test_what_is_no_handshake_at_all(data: bytes) -> None:
    stranger = Stranger()
    stranger.socket.sendall(data)
    assert "the peer is not a process of this program" in str(stranger.end())


def test_a_refusal_stays_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is closed over unread bytes is reset, and takes the refusal along."""
    monkeypatch.setattr(handshake, "_REFUSED_SECONDS", SECONDS)
    stranger = Stranger()
    stranger.say({**HELLO, "version": VERSION + 1})
    assert "refused" in stranger.hear()
    stranger._thread.join(0.05)
    assert stranger._thread.is_alive()
    stranger.end()
    assert not stranger._thread.is_alive()


def test_whoever_hangs_up_or_says_nothing_holds_nothing_up() -> None:
    assert "the peer hung up during the handshake" in str(Stranger().end())
    silent = Stranger(seconds=0.05)
    silent._thread.join(SECONDS)
    assert isinstance(silent._found[0], LinkTimeout)
    assert str(silent.end()) == "server1: no handshake within 0.05 s"


def test_bytes_that_drip_do_not_stretch_the_deadline() -> None:
    slow = Stranger(seconds=0.1)
    slow.socket.sendall(struct.pack("<I", 4000))  # which would take them eighty seconds
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            try:
                slow.socket.send(b"\1")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    slow._thread.join(SECONDS)
    assert isinstance(slow._found[0], LinkTimeout)
    stop.set()
    thread.join()
    slow.end()


def test_what_was_heard_cannot_be_said_again() -> None:
    """A proof of one handshake is none in the next, and the server's own cannot be turned round."""
    first = Stranger()
    first.say(HELLO)
    hello = first.hear()
    digest = hashlib.sha256(json.dumps([HELLO, hello], sort_keys=True).encode()).digest()
    proof = TOKEN.proof("client", digest)
    first.say({"proof": proof})
    answer = first.hear()
    assert TOKEN.proves(answer["proof"], "server", digest)
    assert "hung up" in str(first.end())
    for said in (proof, answer["proof"], "", None):
        again = Stranger()
        again.say(HELLO)
        again.hear()
        again.say({"proof": said})
        assert again.hear() == {"refused": "the client does not hold this run's token"}
        again.end()


def test_a_server_without_the_token_is_refused_too() -> None:
    """A client that is lured to a stranger tells it nothing and leaves."""
    client, server = sockets("tcp")
    found: list[BaseException] = []

    def lured() -> None:
        with client:
            try:
                make_link(client, membership(WORKER), SECONDS, everybody, server_side=False)
            except LinkError as error:
                found.append(error)

    thread = threading.Thread(target=lured)
    thread.start()
    stranger = Stranger.__new__(Stranger)
    stranger.socket = server
    hello = stranger.hear()
    stranger.say({**HELLO, **asdict(SERVER)})
    proof = stranger.hear()["proof"]
    stranger.say({"proof": proof})
    assert stranger.hear() == {"refused": "the server does not hold this run's token"}
    server.close()
    thread.join(SECONDS)
    assert str(found[0]) == "worker3: the server does not hold this run's token"
    assert TOKEN.reveal() not in json.dumps([hello, proof])


# Tokens


def test_a_token_never_shows_itself() -> None:
    client, server = shake(membership(WORKER), membership(SERVER, token=OTHER))
    shown = [repr(TOKEN), str(TOKEN), f"{TOKEN}", repr(membership(WORKER)), str(client), repr(server)]
    assert not any(TOKEN.reveal() in text or OTHER.reveal() in text for text in shown)
    assert repr(TOKEN) == "Token(…)"


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    monkeypatch.setenv("S2S_LINK_TOKEN_FILE", str(path))
    monkeypatch.delenv("S2S_LINK_TOKEN", raising=False)
    assert Token.from_environment().reveal() == "0123456789abcdef"
    monkeypatch.setenv("S2S_LINK_TOKEN", "fedcba9876543210")
    assert Token.from_environment().reveal() == "fedcba9876543210"


@pytest.mark.parametrize(
    ("content", "mode", "what"),
    [
        ("", 0o600, "is missing; make one with: python -c"),
        ("short", 0o600, "has fewer than 16 characters"),
        ("0123456789abcdef", 0o640, "others may read it; chmod 600 makes it yours alone"),
        (None, 0, "No such file or directory"),
    ],
)
def test_tokens_that_are_none(tmp_path: Path, content: str | None, mode: int, what: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(DistributedError, match=what) as caught:
        Token.from_file(path)
    assert not content or content not in str(caught.value)


def test_a_missing_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S2S_LINK_TOKEN", raising=False)
    monkeypatch.delenv("S2S_LINK_TOKEN_FILE", raising=False)
    with pytest.raises(
        DistributedError, match=r"^the link token \(S2S_LINK_TOKEN or S2S_LINK_TOKEN_FILE\): is missing"
    ):
        Token.from_environment()


def test_generated_tokens_differ() -> None:
    assert len({Token.generate().reveal() for _ in range(3)}) == 3


# Listeners


class Hall:
    """A listener whose links and refusals are kept."""

    def __init__(self, **arguments: Any):
        self.links: list[Any] = []
        self.refused: list[LinkError] = []
        self.changed = threading.Condition()
        self.membership = membership(SERVER)
        self.listener = Listener(
            lambda: self.membership, self._keep(self.links), refused=self._keep(self.refused), **arguments
        )

    def _keep(self, kept: list[Any]) -> Callable[[Any], None]:
        def keep(one: Any) -> None:
            with self.changed:
                kept.append(one)
                self.changed.notify_all()

        return keep

    def wait(self, kept: list[Any], count: int = 1) -> Any:
        with self.changed:
            assert self.changed.wait_for(lambda: len(kept) >= count, SECONDS)
        return kept[count - 1]

    def __enter__(self) -> Hall:
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.close()
        for link in self.links:
            link.close()


def wait_for_handshakes() -> None:
    """Until the threads of listeners that made them have ended."""
    for thread in threading.enumerate():
        if thread.name == "link-handshake":
            thread.join(SECONDS)


def test_the_kind_of_link_is_found_or_asked_for() -> None:
    with Hall() as hall:
        for kind, expected in (("auto", ShmLink), ("shm", ShmLink), ("tcp", TcpLink)):
            link = connect(hall.listener.addresses, membership(WORKER), kind=kind)
            assert type(link) is expected
            link.close(0.0)
        elsewhere = Addresses.from_dict({**hall.listener.addresses.as_dict(), "machine": "another"})
        link = connect(elsewhere, membership(WORKER))
        assert type(link) is TcpLink
        link.close(0.0)
        with pytest.raises(DistributedError, match="shares no memory with this process; allowed: auto, tcp"):
            connect(elsewhere, membership(WORKER), kind="shm")
        with pytest.raises(DistributedError, match="'rdma' is no kind of link; allowed: auto, tcp, shm"):
            connect(elsewhere, membership(WORKER), kind="rdma")


def test_a_listener_may_offer_tcp_alone() -> None:
    with Hall(shared=False) as hall:
        assert hall.listener.addresses.unix is None
        link = connect(hall.listener.addresses, membership(WORKER))
        assert type(link) is TcpLink
        link.close(0.0)


def test_frames_flow_over_what_listen_and_connect_made() -> None:
    with Hall() as hall:
        worker = End(connect(hall.listener.addresses, membership(WORKER))).start()
        server = End(hall.wait(hall.links)).start()
        worker.link.send(Frame(1, step=5), b"hello")
        assert server.wait_frames(1) == [(Frame(1, 5, length=5), b"hello")]
        worker.link.close()


def test_refusals_are_told_on_both_sides_and_others_still_come_in() -> None:
    with Hall(admit=lambda peer: "no more workers" if peer.id > 3 else None) as hall:
        with pytest.raises(HandshakeError, match="refused by the peer: no more workers"):
            connect(hall.listener.addresses, membership(Peer("worker", 4)))
        assert str(hall.wait(hall.refused)) == "server1: no more workers"
        silent = socket.create_connection((hall.listener.addresses.host, hall.listener.addresses.port))
        connect(hall.listener.addresses, membership(WORKER)).close(0.0)
        assert hall.wait(hall.links).peer == WORKER
        silent.close()


def test_what_nobody_listens_to_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with Hall() as hall, caplog.at_level(logging.WARNING):
        addresses = hall.listener.addresses
        hall.membership = membership(SERVER, token=OTHER)
        listener = Listener(lambda: hall.membership, lambda link: None)
        with pytest.raises(HandshakeError):
            connect(listener.addresses, membership(WORKER))
        listener.close()
        wait_for_handshakes()  # the listener's side says why when the other has hung up
    assert caplog.messages == ["a link was refused: server1: the client does not hold this run's token"]
    for kind in ("tcp", "shm"):
        with pytest.raises(LinkClosed, match="cannot connect: Connection refused"):
            connect(addresses, membership(WORKER), kind=kind)


def test_a_link_that_its_owner_cannot_take_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_type))

    def fail(link: Any) -> None:
        raise KeyError("no room")

    listener = Listener(lambda: membership(SERVER), fail)
    worker = End(connect(listener.addresses, membership(WORKER))).start()
    assert isinstance(worker.wait_closed(), LinkClosed)
    listener.close()
    wait_for_handshakes()
    assert told == [KeyError]


def test_patience_waits_for_a_listener() -> None:
    halls: list[Hall] = []
    with socket.socket() as kept:  # bound, so that nobody else is given the port meanwhile; a listener may have it too
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        timer = threading.Timer(0.1, lambda: halls.append(Hall(port=port)))
        timer.start()
        link = connect(Addresses("127.0.0.1", port), membership(WORKER), patience=SECONDS)
        timer.join()
    assert link.peer == SERVER
    link.close(0.0)
    halls[0].__exit__()


def test_a_closed_listener_leaves_nothing() -> None:
    before = resources()
    hall = Hall()
    silent = socket.create_connection((hall.listener.addresses.host, hall.listener.addresses.port))
    connect(hall.listener.addresses, membership(WORKER)).close(0.0)  # so the silent one has been accepted before
    hall.wait(hall.links)
    hall.__exit__()
    hall.listener.close()
    hall.wait(hall.refused)
    silent.close()
    wait_for_handshakes()
    assert resources() <= before


def test_addresses_that_cannot_be_used() -> None:
    with pytest.raises(DistributedError, match=r"^bind=0\.0\.0\.0: listens on every address and does not know"):
        Hall(bind="0.0.0.0")
    with Hall() as hall, pytest.raises(DistributedError, match="cannot listen: Address already in use"):
        Hall(port=hall.listener.addresses.port)
    with Hall(bind="0.0.0.0", advertise="127.0.0.1", shared=False) as hall:
        link = connect(hall.listener.addresses, membership(WORKER))
        assert link.local_host() == "127.0.0.1"
        link.close(0.0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("node7:7000", "node7", 7000), ("[::1]:80", "::1", 80), ("10.0.0.1:65535", "10.0.0.1", 65535)],
)
def test_addresses_as_people_write_them(text: str, host: str, port: int) -> None:
    addresses = Addresses.parse(text)
    assert (addresses.host, addresses.port, addresses.shared, str(addresses)) == (host, port, False, text)


@pytest.mark.parametrize("text", ["", "node7", "node7:", ":80", "node7:0", "node7:65536", "node7:-1", "node7:8o"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(DistributedError, match=r"coordinator: '.*' is no address; allowed: HOST:PORT, \[IPV6\]:PORT"):
        Addresses.parse(text, where="coordinator")


def test_machines_are_told_apart_by_kernel_and_network_namespace() -> None:
    boot, namespace = machine_identity().split("/")
    assert len(boot) == 36 and int(namespace) == Path("/proc/self/ns/net").stat().st_ino
