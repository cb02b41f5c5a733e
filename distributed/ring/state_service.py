"""A node's end of the coordinator's own link to it: whole buffers of the state, given or fetched while all rest."""

from __future__ import annotations

import contextlib
import threading

import torch

from distributed.agent import Control
from distributed.errors import LinkError
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Link
from distributed.parameter_server.messages import Kind
from distributed.ring.host_memory import HostMemory
from distributed.ring.node import RingNode


class StateService:
    """Takes a state in before training begins, and hands it out for checkpoints and evaluations.

    Parameters
    ----------
    node, memory: whose state it is.
    changed: guards both.
    control: tells the coordinator that a state has come.
    """

    def __init__(self, node: RingNode, memory: HostMemory, changed: threading.Condition, control: Control):
        self._node, self._memory, self._changed, self._control = node, memory, changed, control

    def serve(self, link: Link) -> None:
        """Start a link."""
        link.start(
            lambda frame: self._memory.state[frame.tags[1]],
            lambda frame, payload: self._deliver(link, frame, payload),
            lambda reason: None,  # the coordinator makes another
        )

    def _deliver(self, link: Link, frame: Frame, payload: memoryview) -> None:
        _, index, updates = frame.tags
        if frame.kind == Kind.PULL:
            self._send(link, frame.step, buffers=index)
            return
        content, target = as_tensor(payload, torch.float32), self._memory.state[index]
        if content.data_ptr() != target.data_ptr():
            target.copy_(content)
        if index == len(self._memory.state) - 1:
            with self._changed:
                self._memory.bring()
                self._node.load(frame.step, updates)
            self._control.tell({"say": "installed"})

    def _send(self, link: Link, step: int, buffers: int) -> None:
        with self._changed:
            self._memory.fetch()
        with contextlib.suppress(LinkError):  # the coordinator asks again
            for index, buffer in enumerate(self._memory.state[:buffers]):
                link.send(Frame(kind=Kind.STATE, step=step, tags=(0, index, self._node.updates)), buffer)
