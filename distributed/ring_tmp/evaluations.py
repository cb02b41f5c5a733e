"""A node's share in evaluating sentences that the trainer sends: forward passes of its stages, nothing kept of them.

The trainer tells every node of a batch; activations go from node to node, as in training, and what the last stage makes
goes to the trainer. Nothing is trained meanwhile. A batch of an epoch that is over is forgotten: it will be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distributed.agent import Control
from distributed.links.faults import Faults
from distributed.progress import Progress
from distributed.ring_tmp.messages import Kind, Message, Outbox
from distributed.ring_tmp.node import RingTmpNode
from distributed.ring_tmp.passes import Passes
from distributed.ring_tmp.placement import StageRange
from distributed.ring_tmp.wire import DTYPES

Tensors = Mapping[str, torch.Tensor]


class Evaluations:
    """Batches that have not passed all ranges of node `number`, in the order of their numbers."""

    def __init__(self, number: int, passes: Passes, outbox: Outbox, control: Control, faults: Faults):
        self._number, self._passes, self._outbox = number, passes, outbox
        self._control, self._faults = control, faults
        self._batches: dict[tuple[int, int], Tensors] = {}  # by epoch and number
        self._left: dict[tuple[int, int], list[StageRange]] = {}  # the same: ranges that are still to be passed
        self._arrived: dict[tuple[int, int, int], Tensors] = {}  # by epoch, number and the first stage of the range

    def ask(self, word: Mapping[str, Any]) -> None:
        """The trainer tells of a batch."""
        self._batches[word["epoch"], word["number"]] = from_plain(word["batch"])

    def arrive(self, message: Message) -> None:
        """The predecessor hands activations on."""
        stage, number = message.tags
        self._arrived[message.epoch, number, stage] = message.payload

    def forget(self, before: int | None = None) -> None:
        """Give up what is of epochs below `before`, or everything."""
        everything: tuple[dict[Any, Any], ...] = (self._batches, self._left, self._arrived)
        for kept in everything:
            for key in [one for one in kept if before is None or one[0] < before]:
                del kept[key]

    def work(self, node: RingTmpNode | None, progress: Progress) -> bool:
        """Take one batch through one range, if there is one to take."""
        if node is None or not self._batches or not node.is_protected:
            return False
        epoch = node.placement.ring.epoch
        self.forget(before=epoch)
        for at in sorted(one for one in self._batches if one[0] == epoch):
            left = self._left.setdefault(at, node.placement.ranges_of(self._number))
            one = next((one for one in left if one.is_first or (*at, one.start) in self._arrived), None)
            if one is not None:
                progress.work("evaluate", node.applied)
                self._faults.reach("score", node.applied)
                self._pass(node, at, one)
                left.remove(one)
                if not left:
                    del self._batches[at], self._left[at]
                return True
        return False

    def _pass(self, node: RingTmpNode, at: tuple[int, int], one: StageRange) -> None:
        epoch, number = at
        arrived = {} if one.is_first else self._arrived.pop((*at, one.start))
        made = self._passes.score(one, self._batches[at], arrived, node.states)
        if one.is_last:
            self._control.tell({"say": "scored", "number": number, "scores": to_plain(made)})
        else:
            self._outbox.to_successor(Message(Kind.SCORED, epoch, node.applied, (one.stop, number), made))


def to_plain(tensors: Tensors) -> dict[str, Any]:
    """Tensors by name as plain data; floats keep their bits."""
    return {
        name: [str(one.dtype).removeprefix("torch."), list(one.shape), one.flatten().tolist()]
        for name, one in tensors.items()
    }


def from_plain(data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What `to_plain` was given."""
    return {
        name: torch.tensor(values, dtype=DTYPES[dtype]).view(shape) for name, (dtype, shape, values) in data.items()
    }
