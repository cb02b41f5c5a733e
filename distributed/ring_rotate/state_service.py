"""A node's end of the coordinator's own link to it: shards, given before training and fetched while all rest."""

from __future__ import annotations

import contextlib
import threading

import torch

from distributed.agent import Control
from distributed.errors import LinkError
from distributed.links.frames import Frame, as_tensor, read_json
from distributed.links.link import Link
from distributed.parameter_server.messages import Kind as StateKind
from distributed.ring_rotate.messages import Kind
from distributed.ring_rotate.node import RotateNode


class StateService:
    """Takes shards in before training begins, and hands them out for checkpoints and evaluations.

    Parameters
    ----------
    node: whose shards they are.
    changed: guards it.
    control: tells the coordinator that shards have come.
    """

    def __init__(self, node: RotateNode, changed: threading.Condition, control: Control):
        self._node, self._changed, self._control = node, changed, control

    def serve(self, link: Link) -> None:
        """Start a link that the coordinator has made."""
        # The coordinator makes another where this one ends.
        link.start(self._place, lambda frame, payload: self._deliver(link, frame, payload), lambda reason: None)

    def _place(self, frame: Frame) -> torch.Tensor | None:
        if frame.kind != Kind.STATE:
            return None
        with self._changed:
            return self._node.given.place(frame.tags[0], frame.tags[1])

    def _deliver(self, link: Link, frame: Frame, payload: memoryview) -> None:
        match frame.kind:
            case StateKind.PULL:
                self._send(link, frame)
            case Kind.STATE:
                with self._changed:
                    place = self._node.given.place(frame.tags[0], frame.tags[1])
                content = as_tensor(payload, torch.float32)
                if content.data_ptr() != place.data_ptr():  # it came through shared memory
                    place.copy_(content)
            case Kind.STATE_END:
                with self._changed:
                    self._node.load(frame.step, read_json(payload)["updates"])
                self._control.tell({"say": "installed"})

    def _send(self, link: Link, frame: Frame) -> None:
        seat, count, _ = frame.tags
        with self._changed:
            shard = self._node.shards[seat]
        with contextlib.suppress(LinkError):  # the coordinator asks again
            for index, buffer in enumerate(shard.buffers[:count]):
                link.send(Frame(kind=StateKind.STATE, step=frame.step, tags=(seat, index, shard.updates)), buffer)
