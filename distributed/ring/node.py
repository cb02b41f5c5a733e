"""A node of a ring: which shares of which step it computes, and how it goes on when members come and go.

A ring has as many *seats* as workers were configured, and a step as many shares: seat s adds share s, in the order of
the seats, whoever sits there (`distributed.ring.all_reduce`). As long as all workers live each has a seat; when one is
lost its neighbours take its seats over, so that the sum is the same to the bit. Between seats of one node nothing goes
over a link.

It has no thread and no socket. The process around it computes what `next_share` names, hands it to `ready` and
`contribute`, applies each sum to the state that it holds, and says so by `has_applied`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from distributed.buffers import BufferPool
from distributed.errors import FrameError
from distributed.links.frames import Frame
from distributed.links.link import DISCARD, Discard
from distributed.ring.all_reduce import RingAllReduce
from distributed.ring.messages import Kind, Outbox, Ring
from distributed.ring.segments import PART_BYTES, Part, Range, RingCut
from distributed.slot_tree import shares

Message = dict[str, Any]


class Share(NamedTuple):
    """What a node is to compute: these leaves of a step, for a seat of the ring of this epoch."""

    epoch: int
    step: int
    seat: int
    leaves: range


@dataclass
class _Arriving:
    """A sum or a state that comes from the predecessor: where its parts go, and which have come."""

    step: int
    buffers: Sequence[torch.Tensor]
    there: set[tuple[int, int]] = field(default_factory=set)  # part, buffer


class _NextSeat:
    """The outbox of a seat whose successor is a seat of the same node, to which frames are handed one by one."""

    def __init__(self, seat: int, waiting: deque[tuple[int, Frame, torch.Tensor | bytes]]):
        self._seat, self._waiting = seat, waiting

    def send(self, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        self._waiting.append((self._seat, frame, payload))

    def tell(self, message: dict[str, Any]) -> None:
        raise NotImplementedError("a sum has nothing to say to the coordinator")


class RingNode:
    """Node `number`.

    Parameters
    ----------
    number: which.
    seats: of the ring: configured workers.
    leaves: groups of a step, which are shared out over the seats.
    buckets: ranges of the flat gradient, numbered in the order in which they are to be summed.
    outbox: takes frames to the successor and messages to the coordinator.
    state: flat buffers [elements] that a joiner needs: parameters, then the optimizer's moments in their order.
    allocate, release: give a gradient buffer, and take it back.
    final: told of buckets that are final here before the sum is whole, as `(step, bucket, gradient)`: to be read.
    is_whole: whether the state is that of the run, rather than of a process that has just come.
    part_bytes: of a frame's payload, at most.
    sums: makes what sums the gradients of a seat.
    """

    def __init__(
        self,
        number: int,
        seats: int,
        leaves: int,
        buckets: Sequence[Range],
        outbox: Outbox,
        state: Sequence[torch.Tensor],
        allocate: Callable[[], torch.Tensor],
        release: Callable[[torch.Tensor], None],
        *,
        final: Callable[[int, int, torch.Tensor], None] = lambda step, bucket, gradient: None,
        is_whole: bool = True,
        part_bytes: int = PART_BYTES,
        sums: type[RingAllReduce] = RingAllReduce,
    ):
        self.number, self.state, self.is_whole = number, state, is_whole
        self._outbox, self._allocate, self._release, self._final = outbox, allocate, release, final
        self._buckets, self._part_bytes, self._sums = tuple(buckets), part_bytes, sums
        self._cut = RingCut(self._buckets, seats, part_bytes)
        self._shares = shares(leaves, seats)
        self.ring = Ring(0, ())
        self.pool = BufferPool()
        self._between: deque[tuple[int, Frame, torch.Tensor | bytes]] = deque()  # frames from seat to seat in here
        self._seats = [self._seat(0, outbox)]  # those of this node; before it is a member, what it knows is kept in one
        self.applied = 0
        """The newest step that is in the state."""
        self.updates = 0
        """How many updates are in the state: steps that were not finite are none."""
        self.through = 0
        """The last step that the trainer has asked for."""
        self._is_running = False
        self._has_rolled = False  # in this epoch, a sum was received
        self._begun = (0, 0)  # the newest step of this epoch of which shares were handed out, and how many
        self._arriving: dict[Kind, _Arriving] = {}
        self._owed_state = 0  # nodes that wait for a state until this node has applied what it has summed
        self._about: Message = {}  # what there is to say of the newest step that is in the state

    @property
    def summed(self) -> int:
        """The newest step whose sum is whole at a seat of this node."""
        return self._newest.summed

    @property
    def gradient(self) -> torch.Tensor | None:
        """That sum [elements], kept until the next one is whole; None where this node was given a state instead."""
        return self._newest.gradient

    @property
    def facts(self) -> Mapping[int, bytes]:
        """What was said of the shares of that step, by seat."""
        return self._newest.facts

    # ------------------------------------------------------------------------------------------------- coordinator

    def clear(self) -> None:
        """Forget what was summed, and the state with it: training goes on from another moment."""
        self._stop()
        self._install(0, None, {})
        self.applied = self.updates = self.through = 0
        self.is_whole = False

    def load(self, step: int, updates: int) -> None:
        """The state has been filled with that of the run after `step`."""
        self._install(step, None, {})
        self.applied, self.updates, self.is_whole = step, updates, True

    def reconfigure(self, ring: Ring) -> Message:
        """Stop, and be a member of a new epoch; returns where this node stands."""
        self._stop()
        newest = self._newest
        for seat in self._seats:
            seat.forget()
            if seat is not newest and seat.gradient is not None:
                self._release(seat.gradient)
        self.ring = ring
        mine = shares(len(self._shares), len(ring.order))[ring.position(self.number)]
        self._between.clear()
        self._seats = [
            self._seat(seat, self._outbox if seat == mine[-1] and len(ring.order) > 1 else self._to_next(index, mine))
            for index, seat in enumerate(mine)
        ]
        everybody = Ring(ring.epoch, tuple(range(len(self._shares))))
        for seat in self._seats:
            seat.enter(everybody)
            seat.install(newest.summed, newest.gradient if seat is self._seats[0] else None, newest.facts)
        return {
            "say": "status",
            "number": self.number,
            "epoch": ring.epoch,
            "summed": self.summed,
            "whole": self.is_whole,
        }

    def roll(self, epoch: int, nodes: int) -> None:
        """Send the newest sum, which all of the next `nodes` nodes lack, to the first of them."""
        if epoch != self.ring.epoch:
            return
        gradient = self.gradient
        assert gradient is not None
        for part in self._cut.parts:
            self._send(Kind.ROLL, self.summed, (part.index, nodes, 0), part.of(gradient))
        self._send(Kind.ROLL_FACTS, self.summed, (0, nodes, 0), json.dumps(self._facts()).encode())

    def transfer(self, epoch: int, nodes: int) -> None:
        """Send the state, which all of the next `nodes` nodes lack, to the first of them, once it is up to date."""
        if epoch == self.ring.epoch:
            self._owed_state = nodes
            self._send_owed_state()

    def resume(self, epoch: int, open_step: int) -> None:
        """Go on with `open_step`, of which nobody has anything."""
        if epoch != self.ring.epoch:
            return
        if open_step != self.summed + 1:
            raise RuntimeError(f"node {self.number} has summed {self.summed} steps, and is to open {open_step}")
        self._is_running = True

    # ------------------------------------------------------------------------------------------------- work

    def next_share(self) -> Share | None:
        """What to compute now: each share is named once; None while there is nothing to do."""
        step = self.summed + 1
        are_done = all(seat.summed == self.summed for seat in self._seats)
        if not self._is_running or self.applied != self.summed or not are_done or step > self.through:
            return None
        count = self._begun[1] if self._begun[0] == step else 0
        if count == len(self._seats):
            return None
        self._begun = (step, count + 1)
        seat = self._seats[count].number
        return Share(self.ring.epoch, step, seat, self._shares[seat])

    def wants(self, share: Share) -> bool:
        """Whether a share is still of use."""
        seat = self._seat_of(share)
        return seat is not None and seat.wants(share.epoch, share.step)

    def ready(self, share: Share, bucket: int, gradient: torch.Tensor) -> None:
        """Sum a bucket of a share's gradient; see `RingAllReduce.ready`."""
        seat = self._seat_of(share)
        if seat is not None:
            seat.ready(share.epoch, share.step, bucket, gradient)
            self._pass_between()

    def contribute(self, share: Share, gradient: torch.Tensor, facts: bytes) -> bool:
        """Give a share's gradient over; False where it is not wanted any more. See `RingAllReduce.contribute`."""
        seat = self._seat_of(share)
        taken = seat is not None and seat.contribute(share.epoch, share.step, gradient, facts)
        self._pass_between()
        return taken

    @property
    def owes_state(self) -> bool:
        """Whether others wait for the state until this node has applied what it has summed."""
        return self._owed_state > 0

    def has_applied(self, step: int, is_update: bool = True, about: Message | None = None) -> None:
        """Note that the newest sum is in the state, as an update or, where it is not finite, as none; say so.

        about: what else there is to say of the step, the same at every node; JSON data.
        """
        self.applied, self._about = step, about or {}
        self.updates += is_update
        self._say_applied()
        self._send_owed_state()

    # ------------------------------------------------------------------------------------------------- frames

    def place(self, frame: Frame) -> torch.Tensor | Discard | None:
        """Where the payload of a frame is to be put; called by the thread that receives it."""
        match frame.kind:
            case Kind.ROLL | Kind.STATE:
                return self._target(frame) if self._is_wanted(frame) else DISCARD
            case Kind.ROLL_FACTS | Kind.STATE_FACTS:
                return None
        return self._seats[0].place(frame)

    def receive(self, frame: Frame, payload: torch.Tensor | bytes) -> None:
        """Take in a frame from the predecessor."""
        kind = Kind(frame.kind)
        if kind in (Kind.REDUCE, Kind.GATHER, Kind.FACTS):
            self._seats[0].receive(frame, payload)
            self._pass_between()
        elif self._is_wanted(frame):
            if isinstance(payload, torch.Tensor):
                payload = self._put(frame, payload)
            self._pass_on(frame, payload)
            if kind == Kind.ROLL_FACTS:
                self._take_sum(frame.step, json.loads(bytes(payload)))
            elif kind == Kind.STATE_FACTS:
                self._take_state(frame.step, json.loads(bytes(payload)))

    # ------------------------------------------------------------------------------------------------- inside

    @property
    def _newest(self) -> RingAllReduce:
        """A seat that has the newest sum: others of this node may still wait for parts of it."""
        return max(self._seats, key=lambda seat: seat.summed)

    def _seat(self, seat: int, outbox: Outbox) -> RingAllReduce:
        def tell(step: int, bucket: int) -> None:
            gradient = one.open_gradient
            # Where another seat has the whole sum it may have been applied: nobody waits for parts of it any more.
            if one is self._seats[0] and gradient is not None and step > self.summed:
                self._final(step, bucket, gradient)

        one = self._sums(seat, self._buckets, outbox, self._release, tell, self._part_bytes, self.pool)
        return one

    def _to_next(self, index: int, mine: Sequence[int]) -> Outbox:
        return _NextSeat((index + 1) % len(mine), self._between)

    def _seat_of(self, share: Share) -> RingAllReduce | None:
        found = [seat for seat in self._seats if seat.number == share.seat]
        return found[0] if found and share.epoch == self.ring.epoch else None

    def _pass_between(self) -> None:
        """Hand frames from seat to seat until none is left: what a seat does with one may make others."""
        while self._between:
            index, frame, payload = self._between.popleft()
            self._seats[index].receive(frame, payload)

    def _install(self, step: int, gradient: torch.Tensor | None, facts: Mapping[int, bytes]) -> None:
        for seat in self._seats:
            seat.forget()
            seat.install(step, gradient if seat is self._seats[0] else None, facts)

    def _stop(self) -> None:
        self._is_running = self._has_rolled = False
        self._begun, self._owed_state = (0, 0), 0
        arriving = self._arriving.pop(Kind.ROLL, None)
        if arriving is not None:
            self._release(arriving.buffers[0])
        self._arriving.clear()

    def _is_wanted(self, frame: Frame) -> bool:
        """Whether this node lacks what a frame of a sum or of a state carries."""
        if frame.epoch != self.ring.epoch:
            return False
        if frame.kind in (Kind.STATE, Kind.STATE_FACTS):
            return not self.is_whole
        # One that joins passes a sum on to those behind it, wherever it stands itself.
        return frame.step == self.summed + 1 if self.is_whole else not self._has_rolled

    def _part(self, frame: Frame) -> Part:
        if frame.tags[0] >= len(self._cut.parts):
            raise FrameError(f"part {frame.tags[0]} of {len(self._cut.parts)}")
        return self._cut.parts[frame.tags[0]]

    def _target(self, frame: Frame) -> torch.Tensor:
        kind = Kind(frame.kind)
        if kind not in self._arriving:
            self._arriving[kind] = _Arriving(frame.step, [self._allocate()] if kind == Kind.ROLL else self.state)
        return self._part(frame).of(self._arriving[kind].buffers[frame.tags[2]])

    def _put(self, frame: Frame, payload: torch.Tensor) -> torch.Tensor:
        target = self._target(frame)
        if payload.data_ptr() != target.data_ptr():
            target.copy_(payload)
        self._arriving[Kind(frame.kind)].there.add((frame.tags[0], frame.tags[2]))
        return target

    def _pass_on(self, frame: Frame, payload: torch.Tensor | bytes) -> None:
        part, nodes, buffer = frame.tags
        if nodes > 1:
            self._send(Kind(frame.kind), frame.step, (part, nodes - 1, buffer), payload)

    def _take_sum(self, step: int, facts: Mapping[str, Any]) -> None:
        arrived = self._arrived(Kind.ROLL)
        self._has_rolled = True
        self._install(step, arrived.buffers[0], _facts_of(facts))
        self._say("rolled")

    def _take_state(self, step: int, facts: Mapping[str, Any]) -> None:
        self._arrived(Kind.STATE)
        self._install(step, None, _facts_of(facts["facts"]))
        self.applied, self.updates, self.is_whole = step, facts["updates"], True
        self._about = facts["about"]
        self._say_applied()  # who gave it the state may be lost before it could say so
        self._say("joined")

    def _arrived(self, kind: Kind) -> _Arriving:
        """What has come of a kind, all of which must be there: a link keeps the order of its frames."""
        arrived = self._arriving.pop(kind)
        missing = len(self._cut.parts) * len(arrived.buffers) - len(arrived.there)
        if missing:
            raise RuntimeError(f"node {self.number} lacks {missing} parts of what its predecessor sent it")
        return arrived

    def _send_owed_state(self) -> None:
        if not self._owed_state or self.applied != self.summed:
            return
        nodes, self._owed_state = self._owed_state, 0
        for number, buffer in enumerate(self.state):
            for part in self._cut.parts:
                self._send(Kind.STATE, self.applied, (part.index, nodes, number), part.of(buffer))
        facts = {"updates": self.updates, "facts": self._facts(), "about": self._about}
        self._send(Kind.STATE_FACTS, self.applied, (0, nodes, 0), json.dumps(facts).encode())

    def _facts(self) -> Message:
        """What was said of the newest step that is summed here, as JSON data."""
        return {str(number): json.loads(content) for number, content in self.facts.items()}

    def _say_applied(self) -> None:
        said = {"say": "applied", "number": self.number, "step": self.applied}
        self._outbox.tell(said | {"facts": self._facts(), "about": self._about})

    def _say(self, word: str) -> None:
        self._outbox.tell({"say": word, "number": self.number, "epoch": self.ring.epoch})

    def _send(self, kind: Kind, step: int, tags: tuple[int, int, int], payload: torch.Tensor | bytes) -> None:
        self._outbox.send(Frame(kind=kind, step=step, tags=tags, epoch=self.ring.epoch), payload)


def _facts_of(said: Mapping[str, Any]) -> dict[int, bytes]:
    return {int(number): json.dumps(content).encode() for number, content in said.items()}
