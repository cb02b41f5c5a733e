"""A node's share in evaluating what the trainer sends: batches of sentences, and calls of a search.

The trainer tells every node of each; activations go from node to node, as in training, and what the last stage makes
goes to the trainer. Nothing is kept of a batch; of a search each stage keeps what the next calls need. Nothing is
trained meanwhile. What is of an epoch that is over is forgotten: it will be sent again, a search from its last
sentences on.
"""

from __future__ import annotations

import base64
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
    """Batches and calls that have not passed all ranges of node `number`, in the order of their numbers."""

    def __init__(self, number: int, passes: Passes, outbox: Outbox, control: Control, faults: Faults):
        self._number, self._passes, self._outbox = number, passes, outbox
        self._control, self._faults = control, faults
        self._words: dict[tuple[int, int], Mapping[str, Any]] = {}  # by epoch and number
        self._left: dict[tuple[int, int], list[StageRange]] = {}  # the same: ranges that are still to be passed
        self._arrived: dict[tuple[int, int, int], Tensors] = {}  # by epoch, number and the first stage of the range

    def ask(self, word: Mapping[str, Any]) -> None:
        """The trainer tells of a batch or a call."""
        self._words[word["epoch"], word["number"]] = {**word, "given": from_plain(word["given"])}

    def arrive(self, message: Message) -> None:
        """The predecessor hands activations on."""
        stage, number = message.tags
        self._arrived[message.epoch, number, stage] = message.payload

    def forget(self, before: int | None = None) -> None:
        """Give up what is of epochs below `before`, or everything."""
        everything: tuple[dict[Any, Any], ...] = (self._words, self._left, self._arrived)
        for kept in everything:
            for key in [one for one in kept if before is None or one[0] < before]:
                del kept[key]

    def end_search(self) -> None:
        """Give up what stages keep of a search."""
        self._passes.end_search()

    def work(self, node: RingTmpNode | None, progress: Progress) -> bool:
        """Take one batch or call through one range, if there is one to take."""
        if node is None or not self._words or not node.is_protected:
            return False
        epoch = node.placement.ring.epoch
        self.forget(before=epoch)
        for at in sorted(one for one in self._words if one[0] == epoch):
            left = self._left.setdefault(at, node.placement.ranges_of(self._number))
            one = next((one for one in left if one.is_first or (*at, one.start) in self._arrived), None)
            if one is not None:
                progress.work("evaluate", node.applied)
                self._faults.reach(self._words[at]["call"] or "score", node.applied)
                self._pass(node, at, one)
                left.remove(one)
                if not left:
                    del self._words[at], self._left[at]
                return True
        return False

    def _pass(self, node: RingTmpNode, at: tuple[int, int], one: StageRange) -> None:
        epoch, number = at
        arrived = {} if one.is_first else self._arrived.pop((*at, one.start))
        word = self._words[at]
        if word["call"]:
            search = (epoch, word["search"])
            made = self._passes.answer(one, search, word["call"], word["given"], arrived, node.states)
        else:
            made = self._passes.score(one, word["given"], arrived, node.states)
        if one.is_last:
            self._control.tell({"say": "scored", "number": number, "scores": to_plain(made)})
        else:
            self._outbox.to_successor(Message(Kind.SCORED, epoch, node.applied, (one.stop, number), made))


def to_plain(tensors: Tensors) -> dict[str, Any]:
    """Tensors by name as plain data; they keep their bits."""
    return {name: [str(one.dtype).removeprefix("torch."), list(one.shape), _text(one)] for name, one in tensors.items()}


def from_plain(data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What `to_plain` was given."""
    return {name: _tensor(text, DTYPES[dtype]).view(shape) for name, (dtype, shape, text) in data.items()}


def _text(tensor: torch.Tensor) -> str:
    flat = tensor.detach().contiguous().flatten()
    return base64.b64encode(flat.view(torch.uint8).numpy().data if flat.numel() else b"").decode("ascii")


def _tensor(text: str, dtype: torch.dtype) -> torch.Tensor:
    read = bytearray(base64.b64decode(text))
    return torch.frombuffer(read, dtype=dtype) if read else torch.empty(0, dtype=dtype)
