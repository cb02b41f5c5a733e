"""A node's end of the coordinator's own link to it: states of stages, given before training and fetched while it rests.

What is given goes from the link to its place, in the link's thread, so that nothing of it is here twice; the thread
that plays the node takes it once all is here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping

import torch

from distributed.agent import Control, Job
from distributed.errors import FrameError, LinkError
from distributed.links.frames import Frame, as_tensor, read_json
from distributed.links.link import DISCARD, Discard, Link
from distributed.parameter_server.messages import Kind as StateKind
from distributed.ring_tmp.mailbox import Mailbox
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState


class StateService:
    """Takes in the states that a placement gives to this node, and hands out those that it has.

    setup: what all agree on; there once the node has said that it is ready.
    """

    def __init__(self, job: Job, mailbox: Mailbox, control: Control, setup: Callable[[], Setup]):
        self._number, self._mailbox, self._control, self._setup = job.number, mailbox, control, setup
        self._lock = threading.Lock()  # of two links, the older may still be at its last frame
        self._expected: dict[int, PartState] = {}
        self._missing: set[tuple[int, int]] = set()  # stage and buffer
        self._epoch = 0

    def serve(self, link: Link) -> None:
        """Start a link that the coordinator has made."""

        def deliver(frame: Frame, payload: memoryview) -> None:
            if frame.kind == StateKind.PULL:
                which, count, _ = frame.tags
                stage = which - 1 if which else None
                self._mailbox.post((link, {"do": "pull", "step": frame.step, "buffers": count, "stage": stage}))
            elif frame.kind == Kind.TAKE:
                self._expect(frame.epoch, Placement.from_dict(read_json(payload)), frame.step)
            else:
                self._take(frame, payload)

        # The coordinator makes another where this one ends.
        link.start(self._place, deliver, lambda reason: None)

    def taken(self) -> dict[int, PartState]:
        """The states, which are the node's from now on."""
        with self._lock:
            found, self._expected = self._expected, {}
            return found

    def send(self, link: Link, step: int, count: int, states: Mapping[int, PartState]) -> None:
        """Send so many buffers of each state, in the order of `PartState.buffers`."""
        with contextlib.suppress(LinkError):  # the coordinator asks again
            for stage, state in states.items():
                for index, buffer in enumerate(state.buffers()[:count]):
                    tags = (stage, index, state.updates)
                    link.send(Frame(kind=StateKind.STATE, step=step, tags=tags), buffer)

    def _expect(self, epoch: int, placement: Placement, step: int) -> None:
        """Make room for the states that this node is to have, after `step`."""
        setup = self._setup()
        held = {*placement.stages_of(self._number), *(placement.shadowed_by(self._number) if setup.shadows else ())}
        expected = {stage: setup.new_state(stage, step) for stage in sorted(held)}
        with self._lock:
            self._epoch, self._expected = epoch, expected
            self._missing = {
                (stage, index) for stage, state in expected.items() for index in range(len(state.buffers()))
            }

    def _place(self, frame: Frame) -> torch.Tensor | Discard | None:
        """Where a payload goes: that of a state to the state, unless it is of an attempt that was given up."""
        if frame.kind != StateKind.STATE:
            return None
        wanted = self._wanted(frame)
        return DISCARD if wanted is None else wanted

    def _wanted(self, frame: Frame) -> torch.Tensor | None:
        stage, index, _ = frame.tags
        with self._lock:
            is_missing = frame.epoch == self._epoch and (stage, index) in self._missing
            return self._expected[stage].buffers()[index] if is_missing else None

    def _take(self, frame: Frame, payload: memoryview) -> None:
        """A buffer of a state has come; says so once all have."""
        target, content = self._wanted(frame), as_tensor(payload, torch.float32)
        if target is None:
            return
        if content.numel() != target.numel():
            raise FrameError(f"{content.numel()} elements come for {target.numel()} of stage {frame.tags[0]}")
        if content.data_ptr() != target.data_ptr():
            target.copy_(content)
        stage, index, updates = frame.tags
        with self._lock:
            self._expected[stage].take_facts({"step": frame.step, "updates": updates})
            self._missing.discard((stage, index))
            is_whole = not self._missing
        if is_whole:
            self._control.tell({"say": "installed", "epoch": frame.epoch})
