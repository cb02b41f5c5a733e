"""One node of a ring, told step by step: what it sends on, and what it keeps to itself until it is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed.links.frames import Frame
from distributed.links.link import DISCARD
from distributed.ring.messages import Kind, Ring
from distributed.ring.node import RingNode, Share
from distributed.ring.segments import RingCut

ELEMENTS = 32  # one bucket of two cache lines, so two parts for two nodes and three


class Outbox:
    def __init__(self) -> None:
        self.frames: list[tuple[str, int, tuple[int, int, int]]] = []
        self.told: list[dict[str, Any]] = []

    def send(self, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        self.frames.append((Kind(frame.kind).name, frame.step, frame.tags))

    def tell(self, message: dict[str, Any]) -> None:
        self.told.append(message)


class Alone:
    """Node 1 of a ring of three seats with what is around it."""

    def __init__(self, order: tuple[int, ...] = (1,), *, is_whole: bool = True):
        self.outbox = Outbox()
        self.given: list[torch.Tensor] = []
        self.released: list[torch.Tensor] = []
        self.state = [torch.zeros(ELEMENTS), torch.zeros(ELEMENTS)]
        self.final: list[tuple[int, int]] = []
        self.node = RingNode(
            1,
            3,
            4,
            [(0, ELEMENTS)],
            self.outbox,
            self.state,
            self.allocate,
            self.released.append,
            final=lambda step, bucket, gradient: self.final.append((step, bucket)),
            is_whole=is_whole,
        )
        self.node.reconfigure(Ring(1, order))

    def allocate(self) -> torch.Tensor:
        self.given.append(torch.zeros(ELEMENTS))
        return self.given[-1]

    def sum_alone(self) -> None:
        """Make the sum of step 1 in a ring of its own, on all of its seats."""
        self.node.through = 1
        self.node.resume(1, 1)
        for seat, leaves in enumerate((range(1), range(1, 2), range(2, 4))):
            share = Share(1, 1, seat, leaves)
            assert self.node.next_share() == share
            gradient = torch.full((ELEMENTS,), 1.0 + seat)
            self.node.ready(share, 0, gradient)
            assert self.node.summed == 0
            assert self.node.contribute(share, gradient, b'"mine"')
            assert not self.node.contribute(share, gradient, b'"mine"')  # once
        assert self.node.next_share() is None  # each is named once
        assert self.outbox.frames == []  # nothing of it goes over a link
        assert self.node.summed == 1
        assert self.node.gradient is not None and bool((self.node.gradient == 6.0).all())
        assert self.final == [(1, 0)]

    def arrive(self, kind: Kind, step: int, nodes: int, buffers: int, facts: bytes, epoch: int = 1) -> None:
        for buffer in range(buffers):
            for part in RingCut(((0, ELEMENTS),), 3).parts:
                frame = Frame(kind, step, (part.index, nodes, buffer), epoch)
                self.node.receive(frame, torch.full((part.elements,), float(buffer + 5)))
        self.node.receive(Frame(Kind(kind + 1), step, (0, nodes, 0), epoch), facts)


def test_a_node_computes_its_share_only_when_told_to_go_on() -> None:
    one = Alone((0, 1, 2))
    assert one.node.next_share() is None
    one.node.resume(1, 1)
    assert one.node.next_share() is None  # the trainer has asked for nothing
    one.node.through = 1
    assert one.node.next_share() == Share(1, 1, 1, range(1, 2))
    one.node.reconfigure(Ring(2, (0, 1)))
    assert one.node.next_share() is None
    one.node.resume(1, 1)  # a word of the epoch before
    assert one.node.next_share() is None
    one.node.resume(2, 1)
    assert [one.node.next_share(), one.node.next_share(), one.node.next_share()] == [
        Share(2, 1, 1, range(1, 2)),  # of two nodes and three seats the second has two
        Share(2, 1, 2, range(2, 4)),
        None,
    ]
    with pytest.raises(RuntimeError, match="node 1 has summed 0 steps, and is to open 3"):
        one.node.resume(2, 3)


def test_a_state_is_handed_on_only_once_the_newest_sum_is_in_it() -> None:
    one = Alone()
    one.sum_alone()
    one.node.reconfigure(Ring(2, (1, 2, 3)))
    one.node.transfer(2, 2)
    assert one.outbox.frames == []
    assert one.node.owes_state
    one.node.has_applied(1, about={"norm": 2.0})
    parts = [("STATE", 1, (part, 2, buffer)) for buffer in (0, 1) for part in (0, 1)]
    assert one.outbox.frames == [*parts, ("STATE_FACTS", 1, (0, 2, 0))]
    assert one.outbox.told == [
        {"say": "applied", "number": 1, "step": 1, "facts": dict.fromkeys("012", "mine"), "about": {"norm": 2.0}}
    ]
    one.node.has_applied(1)
    assert len(one.outbox.frames) == 5  # once


def test_a_node_that_joins_says_what_those_have_applied_who_gave_it_the_state() -> None:
    one = Alone((0, 1, 2), is_whole=False)
    one.arrive(Kind.STATE, 8, 2, 2, b'{"updates": 7, "facts": {"0": "a"}, "about": {"norm": 2.0}}')
    assert [float(buffer[0]) for buffer in one.state] == [5.0, 6.0]
    assert (one.node.applied, one.node.updates, one.node.is_whole) == (8, 7, True)
    assert one.outbox.told == [
        {"say": "applied", "number": 1, "step": 8, "facts": {"0": "a"}, "about": {"norm": 2.0}},
        {"say": "joined", "number": 1, "epoch": 1},
    ]
    passed_on = [("STATE", 8, (part, 1, buffer)) for buffer in (0, 1) for part in (0, 1)]
    assert one.outbox.frames == [*passed_on, ("STATE_FACTS", 8, (0, 1, 0))]
    assert one.node.place(Frame(Kind.STATE, 8, (0, 2, 0), 1)) is DISCARD  # it has one


def test_a_node_that_is_cleared_has_nothing_and_waits_for_a_state() -> None:
    one = Alone()
    one.sum_alone()
    one.node.has_applied(1)
    summed = one.node.gradient
    one.node.clear()
    assert (one.node.applied, one.node.updates, one.node.through, one.node.summed) == (0, 0, 0, 0)
    assert (one.node.is_whole, one.node.gradient) == (False, None)
    assert any(buffer is summed for buffer in one.released)
    one.node.load(4, 3)
    status = one.node.reconfigure(Ring(2, (1,)))
    assert (status["summed"], status["whole"]) == (4, True)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_sum_is_taken_over_and_passed_on_once(is_whole: bool) -> None:
    one = Alone((0, 1, 2), is_whole=is_whole)
    for _ in range(2):
        one.arrive(Kind.ROLL, 1, 2, 1, b'{"0": "a"}')
    assert one.node.summed == 1
    assert one.node.gradient is one.given[0]
    assert len(one.given) == 1
    assert bool((one.given[0] == 5.0).all())
    assert one.outbox.told == [{"say": "rolled", "number": 1, "epoch": 1}]
    assert one.outbox.frames == [
        ("ROLL", 1, (0, 1, 0)),
        ("ROLL", 1, (1, 1, 0)),
        ("ROLL_FACTS", 1, (0, 1, 0)),
    ]


def test_a_sum_that_did_not_come_whole_is_given_back_with_the_epoch() -> None:
    one = Alone((0, 1))
    one.node.receive(Frame(Kind.ROLL, 1, (0, 1, 0), 1), torch.ones(16))
    assert one.node.place(Frame(Kind.ROLL, 1, (1, 1, 0), 1)).data_ptr() == one.given[0][16:].data_ptr()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="lacks 1 parts"):
        one.node.receive(Frame(Kind.ROLL_FACTS, 1, (0, 1, 0), 1), b"{}")
    two = Alone((0, 1))
    two.node.receive(Frame(Kind.ROLL, 1, (0, 1, 0), 1), torch.ones(16))
    two.node.reconfigure(Ring(2, (0, 1)))
    assert two.released == two.given
    two.arrive(Kind.ROLL, 1, 1, 1, b"{}", epoch=1)  # of the epoch before
    assert two.node.summed == 0
