"""States that are sent to a neighbour behind a change, so that each stage has its owner and its copy again.

It happens while the open step is computed: a state does not change before the next step is applied, and none is applied
before all nodes have spoken, which nobody does who still waits for a state or owes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.errors import FrameError
from distributed.ring_tmp.messages import Kind, Message, Outbox
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState
from distributed.ring_tmp.verdict import Stream


class StateStreams:
    """What node `number` sends and receives of the `streams` of a verdict; all states are those after `step`."""

    def __init__(
        self, number: int, setup: Setup, placement: Placement, streams: Sequence[Stream], outbox: Outbox, step: int
    ):
        self._number, self._ring, self._outbox = number, placement.ring, outbox
        self._arriving = {one.stage: setup.new_state(one.stage, step) for one in streams if one.target == number}
        self._owed = [one for one in streams if one.source == number]

    @property
    def are_done(self) -> bool:
        """Whether nothing is waited for, nor owed."""
        return not self._arriving and not self._owed

    def send(self, states: Mapping[int, PartState]) -> None:
        """Send what neighbours lack, as far as this node has it itself."""
        for one in [one for one in self._owed if one.stage in states]:
            self._owed.remove(one)
            state = states[one.stage]
            for number, buffer in enumerate(state.buffers()):
                self._send(one, Kind.STATE, state.step, number, buffer)
            self._send(one, Kind.STATE_END, state.step, 0, state.facts())

    def take_buffer(self, stage: int, number: int, content: torch.Tensor) -> None:
        """A buffer of a state has come. Raises FrameError where nobody waits for it, or for one of its size."""
        buffers = self._expected(stage).buffers()
        if number >= len(buffers) or content.numel() != buffers[number].numel():
            raise FrameError(f"buffer {number} of {content.numel()} elements is none of the state of stage {stage}")
        buffers[number].copy_(content)

    def take_end(self, stage: int, facts: Mapping[str, Any], step: int) -> PartState:
        """All of a state has come, and must be that after `step`; returns it."""
        state = self._expected(stage)
        state.take_facts(facts)
        if state.step != step:
            raise FrameError(f"a state of step {state.step} comes to a node that has applied {step}")
        return self._arriving.pop(stage)

    def _expected(self, stage: int) -> PartState:
        if stage not in self._arriving:
            raise FrameError(f"nobody here waits for the state of stage {stage}")
        return self._arriving[stage]

    def _send(self, one: Stream, kind: Kind, step: int, number: int, payload: Any) -> None:
        is_next = self._ring.successor(self._number) == one.target
        send = self._outbox.to_successor if is_next else self._outbox.to_predecessor
        send(Message(kind, self._ring.epoch, step, (one.stage, number), payload))
