"""A node's end of the coordinator's own link to it: states of stages, given before training and fetched while it rests.

Threads of links only hand on what comes; the thread that plays the node takes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch

from distributed.agent import Control, Job
from distributed.errors import LinkError
from distributed.links.frames import Frame, as_tensor, read_json
from distributed.links.link import Link
from distributed.parameter_server.messages import Kind as StateKind
from distributed.ring_tmp.mailbox import Mailbox
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState


class StateService:
    """Takes in the states that a placement gives to this node, and hands out those that it has."""

    def __init__(self, job: Job, mailbox: Mailbox, control: Control):
        self._number, self._mailbox, self._control = job.number, mailbox, control
        self._expected: dict[int, PartState] = {}
        self._missing: set[tuple[int, int]] = set()  # stage and buffer
        self._epoch = 0

    def serve(self, link: Link) -> None:
        """Start a link that the coordinator has made."""

        def deliver(frame: Frame, payload: memoryview) -> None:
            if frame.kind == StateKind.PULL:
                self._mailbox.post((link, {"do": "pull", "step": frame.step, "buffers": frame.tags[1]}))
            elif frame.kind == Kind.TAKE:
                self._mailbox.post((None, {"do": "take", "step": frame.step, "placement": read_json(payload)}))
            else:
                content = as_tensor(payload, torch.float32)
                self._mailbox.post((None, {"do": "state", "frame": frame, "content": content}))

        # The coordinator makes another where this one ends.
        link.start(lambda frame: None, deliver, lambda reason: None)

    def expect(self, setup: Setup, placement: Placement, step: int) -> None:
        """Wait for the states that this node is to have, after `step`."""
        held = {*placement.stages_of(self._number), *(placement.shadowed_by(self._number) if setup.shadows else ())}
        self._epoch = placement.ring.epoch
        self._expected = {stage: setup.new_state(stage, step) for stage in sorted(held)}
        self._missing = {
            (stage, index) for stage, state in self._expected.items() for index in range(len(state.buffers()))
        }

    def take(self, frame: Frame, content: torch.Tensor) -> None:
        """A buffer of a state has come; says so once all have."""
        stage, index, updates = frame.tags
        if frame.epoch != self._epoch or (stage, index) not in self._missing:
            return  # of an attempt that was given up
        state = self._expected[stage]
        state.buffers()[index].copy_(content)
        state.take_facts({"step": frame.step, "updates": updates})
        self._missing.discard((stage, index))
        if not self._missing:
            self._control.tell({"say": "installed", "epoch": self._epoch})

    def taken(self) -> dict[int, PartState]:
        """The states, which are the node's from now on."""
        found, self._expected = self._expected, {}
        return found

    def send(self, link: Link, step: int, count: int, states: Mapping[int, PartState]) -> None:
        """Send so many buffers of each state: parameters, then moments."""
        with contextlib.suppress(LinkError):  # the coordinator asks again
            for stage, state in states.items():
                for index, buffer in enumerate([state.values, *state.moments().values()][:count]):
                    tags = (stage, index, state.updates)
                    link.send(Frame(kind=StateKind.STATE, step=step, tags=tags), buffer)
