"""The sum of a step's gradients at one seat of a ring, without threads or sockets.

A node is here whoever has a seat; that a process may have several is known to `distributed.ring.node` alone.

The process around it computes a step's gradient and calls `ready` for each bucket as a backward pass completes it, in
any order; buckets are begun in the order of their numbers, which all nodes share. Sums are made in place, in the
gradient that was handed in. See `distributed.ring.segments` for who adds what, and why the bits are fixed.

Why nobody reads a buffer that is overwritten
---------------------------------------------
A frame's payload is the gradient's own memory: the link writes from it later, and a successor that shares memory reads
it later still, without ever saying that it has. It may, because what overwrites comes after what reads:

- Within a step a part is changed only by its final sum (GATHER). The successor has added what was sent to it (REDUCE)
  by then: without that there is no final sum. After that the gradient is changed by nobody: it is read only, so that
  clipping takes place in a copy of a chunk.
- The gradient of step t is released when the sum of step t + 1 is whole here. That sum, or the facts that belong to it,
  hold a share of the successor's, and it takes none of step t + 1 from its process before its own sum of step t is
  whole, to which it has read every part of step t that was sent to it. So two gradients are in use in turn, at any
  number of nodes, and no acknowledgement is ever sent.
- In a new epoch (`enter`) everything of the open step is forgotten, and read by nobody: frames of the old epoch are
  not looked at any more. Buffers that are released then are used only after every member has entered the epoch, since
  the coordinator lets nobody compute or send before.

The same argument makes the kept gradient of step t a safe place to roll forward from: a member that lacks it exists
only while no sum of step t + 1 is whole anywhere.

Frames that come early
----------------------
A predecessor may send step t + 1 while this node still computes it. Its parts wait here, in buffers of `pool`, or in
shared memory where they are, until the bucket is ready. Nothing of a still later step can come: it would need this
node's share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from distributed.buffers import BufferPool
from distributed.errors import FrameError
from distributed.links.frames import Frame
from distributed.links.link import DISCARD, Discard
from distributed.ring.messages import Kind, Outbox, Ring
from distributed.ring.segments import PART_BYTES, Part, Range, RingCut, adds_last, receives_last


@dataclass
class _OpenStep:
    """What is there of the step that is being summed."""

    gradient: torch.Tensor | None = None
    is_mine: bool = False  # the gradient was given over to be released here
    ready: set[int] = field(default_factory=set)  # buckets that are complete in the gradient
    begun: int = 0  # buckets that take part; those after them wait for their turn
    early: dict[int, torch.Tensor] = field(default_factory=dict)  # sums by part, for buckets that have not begun
    added: set[int] = field(default_factory=set)  # parts whose sum came and was added to
    final: set[int] = field(default_factory=set)  # parts
    facts: dict[int, bytes] = field(default_factory=dict)


class RingAllReduce:
    """Node `number` of a ring.

    Parameters
    ----------
    number: which node.
    buckets: ranges of the flat gradient, numbered in the order in which they are to be summed.
    outbox: takes frames to the successor.
    release: takes a gradient back that nobody reads any more.
    final: told of each bucket, as `(step, bucket)`, when its sum is final here: to be read, not to be changed.
    part_bytes: of a frame's payload, at most.
    pool: of buffers for what comes early.
    """

    def __init__(
        self,
        number: int,
        buckets: Sequence[Range],
        outbox: Outbox,
        release: Callable[[torch.Tensor], None],
        final: Callable[[int, int], None] = lambda step, bucket: None,
        part_bytes: int = PART_BYTES,
        pool: BufferPool | None = None,
    ):
        self.number, self._buckets, self._outbox = number, tuple(buckets), outbox
        self._release, self._final, self._part_bytes = release, final, part_bytes
        self.pool = pool or BufferPool()
        self.ring = Ring(0, ())
        self.cut = RingCut(self._buckets, 1, part_bytes)
        self.summed = 0
        """The newest step whose sum is whole here."""
        self.gradient: torch.Tensor | None = None
        """That sum [elements], kept until the next one is whole; None where this node was given a state instead."""
        self.facts: Mapping[int, bytes] = {}
        """What each node said of that step, by its number."""
        self._position = 0
        self._open = _OpenStep()
        self._left: list[int] = []  # by bucket, parts of the open step that are not final

    # ------------------------------------------------------------------------------------------------- membership

    def enter(self, ring: Ring) -> None:
        """Go over to a new epoch, and forget the open step: it is computed anew by the members of this one.

        Links of the old epoch have ended before, with their threads: none of them writes to a gradient any more.
        """
        self.ring, self._position = ring, ring.position(self.number)
        self.cut = RingCut(self._buckets, len(ring.order), self._part_bytes)
        self.forget()

    def forget(self) -> None:
        """Forget what there is of the open step; as in `enter`, no link is left that reads any of it."""
        forgotten = self._open
        for payload in forgotten.early.values():
            self.pool.give_back(payload)
        if forgotten.gradient is not None and forgotten.is_mine:
            self._release(forgotten.gradient)
        self._new_step()

    def install(self, step: int, gradient: torch.Tensor | None, facts: Mapping[int, bytes]) -> None:
        """Take over the sum of a step that others have made; the gradient is released here in the end."""
        if self.gradient is not None:
            self._release(self.gradient)
        self.summed, self.gradient, self.facts = step, gradient, facts

    @property
    def open_gradient(self) -> torch.Tensor | None:
        """What is being summed; buckets of it that are final may be read."""
        return self._open.gradient

    # ------------------------------------------------------------------------------------------------- own share

    def wants(self, epoch: int, step: int) -> bool:
        """Whether a share of a step that was begun in an epoch is still of use."""
        return epoch == self.ring.epoch and step == self.summed + 1 and not self._open.is_mine

    def ready(self, epoch: int, step: int, bucket: int, gradient: torch.Tensor) -> None:
        """Sum a bucket of this node's gradient, given as the whole flat buffer of it, from now on in place.

        Nothing is done for a share that is not wanted any more.
        """
        if not self.wants(epoch, step):
            return
        self._open.gradient = gradient
        self._open.ready.add(bucket)
        while self._open.begun in self._open.ready:
            self._open.begun += 1
            self._begin(self._open.begun - 1)

    def contribute(self, epoch: int, step: int, gradient: torch.Tensor, facts: bytes) -> bool:
        """Give over a gradient of which all buckets were ready, and say what else there is to say of this share.

        False where it is not wanted any more: then the gradient stays the caller's.
        """
        if not self.wants(epoch, step):
            return False
        self._open.is_mine = True
        self._take_facts(self.number, facts)
        return True

    # ------------------------------------------------------------------------------------------------- frames

    def place(self, frame: Frame) -> torch.Tensor | Discard | None:
        """Where the payload of a frame is to be put; called by the thread that receives it."""
        if not self._is_of_open_step(frame):
            return DISCARD
        if frame.kind == Kind.FACTS:
            return None
        part = self.part(frame)
        if frame.kind == Kind.REDUCE:
            return self.pool.take(part.elements)
        gradient = self._open.gradient
        return DISCARD if gradient is None or part.index in self._open.final else part.of(gradient)

    def receive(self, frame: Frame, payload: torch.Tensor | bytes) -> None:
        """Take in a frame from the predecessor; one that has come before changes nothing."""
        if not self._is_of_open_step(frame):
            self.pool.give_back(payload)
        elif isinstance(payload, torch.Tensor):
            part = self.part(frame)
            (self._reduce if frame.kind == Kind.REDUCE else self._gather)(part, payload)
        else:
            self._take_facts(frame.tags[0], bytes(payload))

    def part(self, frame: Frame) -> Part:
        """What a frame carries."""
        if frame.tags[0] >= len(self.cut.parts):
            raise FrameError(f"part {frame.tags[0]} of a gradient of {len(self.cut.parts)}")
        return self.cut.parts[frame.tags[0]]

    # ------------------------------------------------------------------------------------------------- inside

    def _is_of_open_step(self, frame: Frame) -> bool:
        return frame.epoch == self.ring.epoch and frame.step == self.summed + 1

    def _new_step(self) -> None:
        self._open = _OpenStep()
        self._left = [len(parts) for parts in self.cut.of_bucket]

    def _begin(self, bucket: int) -> None:
        """Send the segment that begins here, and add to those that have come already."""
        assert self._open.gradient is not None
        for part in self.cut.of_bucket[bucket]:
            if part.segment == self._position:
                if len(self.ring.order) == 1:
                    self._finish(part)
                else:
                    self._send(Kind.REDUCE, part)
            elif part.index in self._open.early:
                self._add(part, self._open.early.pop(part.index))

    def _reduce(self, part: Part, payload: torch.Tensor) -> None:
        if part.index in self._open.added or part.index in self._open.early:
            self.pool.give_back(payload)
        elif part.bucket < self._open.begun:
            self._add(part, payload)
        else:
            self._open.early[part.index] = payload

    def _add(self, part: Part, payload: torch.Tensor) -> None:
        assert self._open.gradient is not None
        part.of(self._open.gradient).add_(payload)
        self.pool.give_back(payload)
        self._open.added.add(part.index)
        if adds_last(self._position, part.segment, len(self.ring.order)):
            self._send(Kind.GATHER, part)
            self._finish(part)
        else:
            self._send(Kind.REDUCE, part)

    def _gather(self, part: Part, payload: torch.Tensor) -> None:
        if part.index in self._open.final:
            return
        assert self._open.gradient is not None  # this node's share is in the sum
        target = part.of(self._open.gradient)
        if payload.data_ptr() != target.data_ptr():
            target.copy_(payload)
        if not receives_last(self._position, part.segment, len(self.ring.order)):
            self._send(Kind.GATHER, part)
        self._finish(part)

    def _take_facts(self, number: int, facts: bytes) -> None:
        if number in self._open.facts:
            return
        self._open.facts[number] = facts
        if self.ring.successor(self.number) != number:
            self._outbox.send(self._frame(Kind.FACTS, number), facts)
        self._complete()

    def _finish(self, part: Part) -> None:
        self._open.final.add(part.index)
        self._left[part.bucket] -= 1
        if not self._left[part.bucket]:
            self._final(self.summed + 1, part.bucket)
            self._complete()

    def _complete(self) -> None:
        """Close the step, once all its buckets are final and all nodes' facts are there."""
        done = self._open
        if any(self._left) or len(done.facts) < len(self.ring.order):
            return
        self.install(self.summed + 1, done.gradient, done.facts)
        self._new_step()

    def _send(self, kind: Kind, part: Part) -> None:
        assert self._open.gradient is not None
        self._outbox.send(self._frame(kind, part.index), part.of(self._open.gradient))

    def _frame(self, kind: Kind, tag: int) -> Frame:
        return Frame(kind=kind, step=self.summed + 1, tags=(tag, 0, 0), epoch=self.ring.epoch)
