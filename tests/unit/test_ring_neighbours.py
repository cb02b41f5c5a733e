"""Links of nodes of a ring, in one process: who is let in, when, and what becomes of frames meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from distributed.agent import Job
from distributed.errors import HandshakeError
from distributed.links.addresses import Addresses
from distributed.links.frames import Frame
from distributed.links.listener import connect
from distributed.links.token import Token
from distributed.ring.messages import Kind, Ring
from distributed.ring.neighbours import Neighbours

OPTIONS: dict[str, Any] = {
    "link": "auto", "bind": "auto", "faults": [], "heartbeat_seconds": 5.0, "deadline_seconds": 60.0,
    "checksum": "auto", "tls_certificate": "", "tls_key": "",
}  # fmt: skip
SECONDS = 60.0
TOKEN = Token.generate()


class Node:
    """A node's links; what arrives is put into `arrived`, what it tells the coordinator into `told`."""

    def __init__(self, number: int, link: str = "auto", **options: Any):
        self.arrived: queue.SimpleQueue[tuple[Frame, bytes]] = queue.SimpleQueue()
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.job = Job("worker", number, "abc/s1", TOKEN, OPTIONS | {"link": link} | options, {})
        control: Any = type("Control", (), {"tell": lambda _, message: self.told.put(message)})()
        self.links = Neighbours(
            self.job,
            control,
            lambda frame: None,
            lambda frame, payload: self.arrived.put((frame, bytes(payload))),
            lambda link: link.close(0.0),
        )

    def send(self, step: int, epoch: int, payload: torch.Tensor | bytes = b"x") -> None:
        self.links.send(Frame(kind=Kind.FACTS, step=step, epoch=epoch), payload)


@pytest.fixture
def make() -> Iterator[Callable[..., list[Node]]]:
    made: list[Node] = []

    def several(count: int, **options: Any) -> list[Node]:
        made.extend(Node(number, **options) for number in range(count))
        return made

    yield several
    for one in made:
        one.links.close()


def enter(nodes: list[Node], epoch: int, order: tuple[int, ...]) -> None:
    addresses = {str(number): node.links.addresses for number, node in enumerate(nodes)}
    for number in order:
        nodes[number].links.leave()
        nodes[number].links.enter(Ring(epoch, order), addresses)


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_frames_go_to_the_successor_and_to_nobody_else(link: str, make: Callable[..., list[Node]]) -> None:
    nodes = make(3, link=link)
    enter(nodes, 1, (0, 1, 2))
    for number, node in enumerate(nodes):
        node.send(number, 1)  # before there is a link, perhaps
        shared = node.links.allocate(4).fill_(number)
        node.send(10 + number, 1, shared)
    for number, node in enumerate(nodes):
        before = (number - 1) % 3
        assert node.arrived.get(timeout=SECONDS)[0].step == before
        frame, payload = node.arrived.get(timeout=SECONDS)
        assert (frame.step, payload) == (10 + before, bytes(torch.full((4,), float(before)).numpy()))
    for number, node in enumerate(nodes):
        assert node.links.counters().keys() == {f"worker {one}" for one in range(3) if one != number}
        assert node.arrived.empty()


def test_a_predecessor_that_is_in_the_epoch_first_is_let_in_when_its_successor_is(
    make: Callable[..., list[Node]],
) -> None:
    nodes = make(2)
    addresses = {str(number): node.links.addresses for number, node in enumerate(nodes)}
    nodes[0].links.enter(Ring(3, (0, 1)), addresses)
    nodes[0].send(1, 3)
    nodes[0].send(2, 2)  # of an epoch that is over: dropped
    assert nodes[1].arrived.empty()
    nodes[1].links.enter(Ring(3, (0, 1)), addresses)
    assert nodes[1].arrived.get(timeout=SECONDS)[0].step == 1
    assert nodes[1].arrived.empty()


def test_only_the_predecessor_is_let_in(make: Callable[..., list[Node]]) -> None:
    nodes = make(4)
    enter(nodes, 1, (0, 1, 2, 3))
    for number in (2, 3):
        with pytest.raises(HandshakeError, match=r"worker\d is not the predecessor of worker 1"):
            connect(Addresses.from_dict(nodes[1].links.addresses), nodes[number].links._membership_of(1))
    with pytest.raises(HandshakeError, match="worker0 is of epoch 0, and this node of another"):
        connect(Addresses.from_dict(nodes[1].links.addresses), nodes[0].links._membership_of(0))


def test_an_epoch_ends_with_its_threads_and_what_waited(make: Callable[..., list[Node]]) -> None:
    nodes = make(3)
    enter(nodes, 1, (0, 1, 2))
    for node in nodes:
        node.send(1, 1)
    for node in nodes:
        assert node.arrived.get(timeout=SECONDS)[0].step == 1
    enter(nodes, 2, (0, 2))
    nodes[1].links.leave()
    nodes[0].send(5, 1)
    nodes[0].send(6, 2)
    assert nodes[2].arrived.get(timeout=SECONDS)[0].step == 6
    assert nodes[1].arrived.empty()
    for node in nodes:
        node.links.leave()
    assert not [one for one in threading.enumerate() if one.name.startswith("link-worker")]


def test_a_link_that_ends_within_its_epoch_is_told_by_both_ends(make: Callable[..., list[Node]]) -> None:
    nodes = make(2, faults=["corrupt@worker0.facts:7"])
    enter(nodes, 4, (0, 1))
    nodes[0].send(7, 4)
    told = [node.told.get(timeout=SECONDS) for node in nodes]
    assert [(one["say"], one["role"], one["epoch"]) for one in told] == [("link lost", "worker", 4)] * 2
    assert "checksum is wrong" in told[1]["reason"]
