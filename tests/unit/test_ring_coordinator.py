"""The coordinator of a ring among members that are played: states that go round, workers that differ, spare workers."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distributed.agent import Job
from distributed.control import Agent
from distributed.errors import LinkClosed
from distributed.links.frames import Frame
from distributed.links.token import Token
from distributed.parameter_server import members, state_links
from distributed.parameter_server.messages import Kind, Member, worker
from distributed.ring.coordinator import RingCoordinator
from distributed.strategy import StateLost

OPTIONS: dict[str, Any] = {
    "name": "ring_allreduce", "workers": 2, "replace_lost": True, "link": "auto", "heartbeat_seconds": 1.0,
    "deadline_seconds": 30.0, "watchdog_seconds": 0.0, "tls_certificate": "", "tls_key": "", "checksum": "auto",
    "launcher": "auto", "bind": "auto", "faults": [], "run_directory": "nowhere",
}  # fmt: skip


class Players:
    """Control plane, launcher, and all members, who answer at once what they are told."""

    patience, address = 60.0, "127.0.0.1:1"

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.agents: dict[Member, Agent] = {}
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.whole: set[int] = set()
        self.digests: dict[int, int] = {}
        self.dies_of: dict[str, set[int]] = {}  # by word, who is lost instead of answering it
        self._numbers = itertools.count()

    # As a launcher

    def start(self, role: str, instead_of: str = "") -> str:
        name = f"agent {next(self._numbers)}"
        agent = Agent(SimpleNamespace(shutdown=lambda: None), None, role, {"name": name})  # type: ignore[arg-type]
        self.inbox.put(("here", agent))
        return name

    def ended(self) -> Mapping[str, str]:
        return {}

    # As a plane

    def send(self, agent: Agent, message: Mapping[str, Any]) -> None:
        word = dict(message)
        if "be" in word:
            member = Member(word["role"], word["number"])
            self.agents[member] = agent
            self.say(member.number, {"say": "ready", "addresses": {"worker": member.number}})
            return
        assert agent.member is not None
        number = agent.member.number
        self.told.append((number, word))
        if number in self.dies_of.get(word["do"], set()):
            self.dies_of[word["do"]].discard(number)
            self.lose(number)
            return
        match word["do"]:
            case "clear":
                self.whole.discard(number)
                self.say(number, {"say": "cleared"})
            case "reconfigure":
                epoch, whole = word["ring"]["epoch"], number in self.whole
                self.say(number, {"say": "status", "epoch": epoch, "summed": 4 if whole else 0, "whole": whole})
            case "transfer":
                order = [one for one, word in self.told if word["do"] == "reconfigure"]
                for one in {one for one in order if worker(one) in self.agents} - self.whole:
                    self.whole.add(one)
                    self.say(one, {"say": "joined", "epoch": word["epoch"]})
            case "digest":
                self.say(number, {"say": "digest", "digest": self.digests.get(number, 0)})

    def close(self) -> None:
        pass

    # As the members

    def say(self, number: int, message: Mapping[str, Any]) -> None:
        if worker(number) in self.agents:
            self.inbox.put(("said", self.agents[worker(number)], dict(message)))

    def lose(self, number: int) -> None:
        self.whole.discard(number)
        self.inbox.put(("gone", self.agents.pop(worker(number)), LinkClosed("the connection ended")))

    def connect(self, addresses: Any, membership: Any, kind: str) -> Any:
        """The coordinator's own link to a worker."""
        number, taken = addresses, SimpleNamespace(deliver=None)

        def start(place: Any, deliver: Any, closed: Any) -> None:
            taken.deliver = deliver

        def send(frame: Frame, payload: Any = b"") -> None:
            if frame.kind == Kind.PULL:
                for index in range(frame.tags[1]):
                    content = memoryview(bytearray(torch.full((4,), 1.0 + index).numpy()))
                    taken.deliver(Frame(kind=Kind.STATE, step=frame.step, tags=(0, index, 7)), content)
            elif frame.tags[1] == 1:  # the last buffer
                self.whole.add(number)
                self.say(number, {"say": "installed"})

        return SimpleNamespace(send=send, start=start, shutdown=lambda: None, close=lambda seconds: None)

    def orders(self) -> list[list[int]]:
        """The rings that workers were told of, in the order of their epochs."""
        found = {word["ring"]["epoch"]: list(word["ring"]["order"]) for _, word in self.told if "ring" in word}
        return [found[epoch] for epoch in sorted(found)]


@pytest.fixture
def players(monkeypatch: pytest.MonkeyPatch) -> Players:
    players = Players()
    monkeypatch.setattr(members, "ControlPlane", lambda job: players)
    monkeypatch.setattr(members, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(state_links, "connect", players.connect)
    monkeypatch.setattr(state_links.Addresses, "from_dict", lambda addresses: addresses["worker"])
    return players


@pytest.fixture
def coordinator(players: Players) -> Iterator[RingCoordinator]:
    one = RingCoordinator(Job("coordinator", 0, "abc/s1", Token.generate(), OPTIONS, {}), {})
    one.start(players)
    yield one
    one.close()


def begin(coordinator: RingCoordinator) -> None:
    coordinator.begin(5, [torch.zeros(4), torch.zeros(4)], 4)


def until(coordinator: RingCoordinator, holds: Callable[[], bool]) -> None:
    coordinator._wait(holds, lambda: "the test", seconds=60.0)


def applied(number: int, step: int, finite: bool = True) -> dict[str, Any]:
    return {"say": "applied", "number": number, "step": step, "facts": {}, "about": {"finite": finite}}


def test_the_first_is_given_the_state_and_the_others_get_it_from_it(
    coordinator: RingCoordinator, players: Players
) -> None:
    begin(coordinator)
    words = [(number, word["do"]) for number, word in players.told]
    assert words[-4:] == [(1, "reconfigure"), (0, "transfer"), (0, "resume"), (1, "resume")]
    assert players.told[-1][1]["open"] == 5
    for number in (0, 1):
        players.say(number, applied(number, 5))
    assert coordinator.wait_for(5)["step"] == 5


def test_one_that_dies_with_the_only_state_is_no_loss_of_it(coordinator: RingCoordinator, players: Players) -> None:
    players.dies_of = {"reconfigure": {0}}
    begin(coordinator)
    assert players.whole == set(players.orders()[-1])
    assert 0 not in players.orders()[-1]


def test_a_worker_that_comes_in_addition_waits_until_one_is_lost(
    coordinator: RingCoordinator, players: Players
) -> None:
    begin(coordinator)
    players.start("worker")
    until(coordinator, lambda: worker(2) in coordinator._ready)
    for number in (0, 1):
        players.say(number, applied(number, 5))
    coordinator.wait_for(5)
    assert players.orders() == [[0, 1]]
    players.lose(0)
    until(coordinator, lambda: players.orders()[-1] == [1, 2])


def test_workers_that_do_not_have_the_same_bits_are_a_lost_state(
    coordinator: RingCoordinator, players: Players
) -> None:
    begin(coordinator)
    buffers = [torch.zeros(4), torch.zeros(4)]
    assert coordinator.pull(4, buffers) == 7
    assert [float(one[0]) for one in buffers] == [1.0, 2.0]
    players.digests = {1: 5}
    with pytest.raises(StateLost, match="after step 4 the workers' parameters are not the same"):
        coordinator.pull(4, buffers)


def test_nobody_is_sent_on_behind_a_step_that_was_not_finite(coordinator: RingCoordinator, players: Players) -> None:
    begin(coordinator)
    coordinator.grant(4, 8, 1.0, 0)
    for number in (0, 1):
        players.say(number, applied(number, 5, finite=False))
    coordinator.wait_for(5)
    players.start("worker")
    until(coordinator, lambda: worker(2) in coordinator._ready)
    grants = [word for number, word in players.told if number == 2 and word["do"] == "grant"]
    assert [word["through"] for word in grants] == [5]
