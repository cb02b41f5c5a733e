"""A node of a stage ring, word by word: what it refuses, and what it keeps for later."""

from __future__ import annotations

import pytest
import torch
from simulated_stage_ring import ToyWorkload

from distributed.errors import FrameError
from distributed.ring.messages import Ring
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.node import RingTmpNode
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.verdict import Stream, Verdict

SETUP = ToyWorkload().setup(0)
PLACEMENT = Placement(Ring(1, (0, 1)), (0, 0, 0, 1, 1, 1))


class Outbox:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []

    def to_successor(self, message: Message) -> None:
        self.sent.append(("next", message))

    def to_predecessor(self, message: Message) -> None:
        self.sent.append(("before", message))


def node(*stages: int) -> tuple[RingTmpNode, Outbox]:
    outbox = Outbox()
    return RingTmpNode(0, SETUP, outbox, {stage: SETUP.new_state(stage) for stage in stages}, PLACEMENT), outbox


def gradient(stage: int, step: int = 1, epoch: int = 1) -> Message:
    return Message(Kind.GRADIENT, epoch, step, (stage, 0), torch.zeros(SETUP.parts[stage].size))


def test_what_no_neighbour_would_send_is_refused() -> None:
    one, _ = node(*range(6))
    one.receive(gradient(3))
    for message, line in [
        (gradient(3), "the gradient of stage 3 of step 1 has come twice, or astray"),
        (gradient(0), "the gradient of stage 0 of step 1 has come twice, or astray"),
        (gradient(4, step=3), "GRADIENT of step 3 comes to a node that has applied 0"),
        (gradient(4)._replace(payload=torch.zeros(5)), "a gradient of 5 elements for stage 4"),
        (Message(Kind.SUMS, 1, 0, (1, 0), b""), "SUMS of step 0 comes to a node that has applied 0"),
        (Message(Kind.STATE, 1, 0, (3, 0), torch.zeros(1)), "nobody here waits for the state of stage 3"),
        (Message(Kind.WALK, 1), "a node of the ring does not say WALK"),
        (Message(Kind.BACKWARD, 1, 1, (3, 0)), "nobody here waits for BACKWARD for stage 3, slot 0 of step 1"),
    ]:
        with pytest.raises(FrameError, match=line):
            one.receive(message)
    one.receive(gradient(3, epoch=0))  # of an epoch that is over


def test_a_state_that_comes_before_the_verdict_is_kept_for_it() -> None:
    """From the node behind, which may have had the verdict first."""
    one, outbox = node(0, 1, 3, 4, 5)
    source = SETUP.new_state(2)
    for number, buffer in enumerate(source.buffers()):
        one.receive(Message(Kind.STATE, 2, 0, (2, number), buffer.fill_(number + 1.0)))
    one.receive(Message(Kind.STATE_END, 2, 0, (2, 0), source.facts()))
    assert one.next_task() is None  # a stage of its own is not here
    one.allow(1)
    placement = Placement(Ring(2, (0, 1)), PLACEMENT.owners)
    one.enter(Verdict(placement, 0, None, (Stream(2, 1, 0), Stream(2, 0, 1)), ()))
    assert one.is_protected
    assert all(map(torch.equal, one.states[2].buffers(), source.buffers()))
    assert one.next_task() is not None
    # It owed the copy of what it had to be sent itself.
    assert [(to, message.kind, message.tags) for to, message in outbox.sent] == [
        *(("next", Kind.STATE, (2, number)) for number in range(len(source.buffers()))),
        ("next", Kind.STATE_END, (2, 0)),
    ]


def test_a_state_of_another_size_or_step_is_refused() -> None:
    one, _ = node(0, 1, 3, 4, 5)
    one.enter(Verdict(Placement(Ring(2, (0, 1)), PLACEMENT.owners), 0, None, (Stream(2, 1, 0),), ()))
    assert not one.is_protected
    for message, line in [
        (Message(Kind.STATE, 2, 0, (2, 9), torch.zeros(1)), "buffer 9 of 1 elements is none of the state of stage 2"),
        (Message(Kind.STATE, 2, 0, (2, 0), torch.zeros(1)), "buffer 0 of 1 elements is none of the state of stage 2"),
        (
            Message(Kind.STATE_END, 2, 0, (2, 0), {"step": 4, "updates": 4}),
            "a state of step 4 comes to a node that has",
        ),
    ]:
        with pytest.raises(FrameError, match=line):
            one.receive(message)
