"""Control links between a coordinator and its agents: within TLS where the run has a certificate, and how they end."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from link_examples import SECONDS, TOKEN
from parameter_server_examples import IMPATIENT, STEPS, Undisturbed, running, train, undisturbed

from distributed import agent
from distributed.agent import Control, Job, serve
from distributed.control import Agent, ControlPlane
from distributed.errors import DistributedError, HandshakeError
from distributed.links.handshake import Identity
from distributed.links.link import LinkOptions, Peer
from distributed.links.listener import Listener, Membership

OPTIONS: dict[str, Any] = {
    "heartbeat_seconds": 0.2, "deadline_seconds": SECONDS, "bind": "auto", "launcher": "processes",
    "tls_certificate": "", "tls_key": "", "checksum": "auto", "faults": [],
}  # fmt: skip
SECRET = "the-corpus-of-somebody"


class Played:
    """A role that does nothing until the run is over."""

    def __init__(self, job: Job, control: Control):
        self._control = control
        control.tell({"say": "ready", "content": job.content})

    def run(self) -> None:
        self._control.inbox.get()


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(agent.ROLES, "played", f"{__name__}:Played")


class Wire:
    """A TCP relay that keeps what passes."""

    def __init__(self, address: str):
        host, port = address.rsplit(":", 1)
        self._there, self._listening = (host, int(port)), socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.passed = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        far = socket.create_connection(self._there)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passed += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Joined:
    """An agent in a thread of this process. `error`: what its `serve` raised."""

    def __init__(self, address: str, **options: Any):
        self.error: DistributedError | None = None
        self._thread = threading.Thread(target=self._serve, args=(address, options), daemon=True)
        self._thread.start()

    def _serve(self, address: str, options: dict[str, Any]) -> None:
        try:
            serve(address, TOKEN, "abc/s1", "worker", 0.2, "agent 0", patience=0.0, **options)
        except DistributedError as error:
            self.error = error

    def wait(self) -> DistributedError | None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.error


@contextlib.contextmanager
def plane(**options: Any) -> Iterator[ControlPlane]:
    one = ControlPlane(Job("coordinator", 0, "abc/s1", TOKEN, OPTIONS | options, {}))
    try:
        yield one
    finally:
        one.close()


def give_role(one: ControlPlane) -> Agent:
    """Take the next agent in; returns it once it plays."""
    what, joined = one.inbox.get(timeout=SECONDS)
    assert what == "here"
    word = {"role": "worker", "number": 0, "be": "played", "options": OPTIONS, "content": {"data": SECRET}}
    one.send(joined, word)
    what, same, said = one.inbox.get(timeout=SECONDS)
    assert (what, same, said) == ("said", joined, {"say": "ready", "content": {"data": SECRET}})
    return joined


@pytest.mark.parametrize("guarded", [False, True])
def test_with_a_certificate_nobody_on_the_way_reads_the_configuration(guarded: bool, certificates: Path) -> None:
    files = str(certificates / "run.pem"), str(certificates / "run.key")
    tls = {"tls_certificate": files[0], "tls_key": files[1]} if guarded else {}
    with plane(**tls) as one:
        wire = Wire(one.address)
        joined = Joined(wire.address, **({"tls": files} if guarded else {}))
        give_role(one)
    assert joined.wait() is None  # the run is over
    assert (SECRET.encode() in wire.passed) is not guarded
    assert len(wire.passed) > 500


def test_who_uses_no_tls_is_refused_where_the_run_does(certificates: Path) -> None:
    files = {"tls_certificate": str(certificates / "run.pem"), "tls_key": str(certificates / "run.key")}
    with plane(**files) as one:
        assert isinstance(Joined(one.address).wait(), HandshakeError)


def test_an_agent_whose_link_is_cut_says_so_and_ends(certificates: Path) -> None:
    with plane() as one:
        joined = Joined(one.address)
        give_role(one).link.shutdown()
        assert str(joined.wait()).startswith("run abc/s1: the coordinator is gone or has given this process up: ")


def test_an_agent_gives_a_silent_coordinator_up() -> None:
    """One whose machine has vanished closes no connection."""
    links: list[Any] = []
    membership = Membership(Identity("abc/s1", Peer("coordinator")), TOKEN, LinkOptions(beat_seconds=None))
    listener = Listener(lambda: membership, links.append, shared=False)
    error = Joined(str(listener.addresses), silence_seconds=0.3).wait()
    listener.close()
    for link in links:
        link.close(0.0)
    assert error is not None
    assert "the peer has been silent for 0.3 s" in str(error)


@pytest.mark.exhaustive
def test_a_run_whose_links_all_use_tls(certificates: Path) -> None:
    files = [f"tls_certificate={certificates / 'run.pem'}", f"tls_key={certificates / 'run.key'}"]
    wanted: Undisturbed = undisturbed()
    with running("workers=2", "servers=2", "link=tcp", *IMPATIENT, *files) as strategy:
        wanted.assert_equal(train(strategy, 1, STEPS), strategy.state())
