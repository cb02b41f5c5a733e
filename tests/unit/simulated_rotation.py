"""A ring among which parameters rotate, in one process: frames in every order that links allow, nodes that die at any.

Payloads are read when they are delivered, from the sender's memory, and only then count as written: parameters that
were given back too early, and gradients that were overwritten, show. The model is that of `staged_toy`, and computed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from simulated_ring import AnyRingNetwork
from staged_toy import staged_spec

from distributed.arithmetic import FlatParameters
from distributed.links.frames import Frame
from distributed.parameter_server.messages import COORDINATOR, worker
from distributed.ring.messages import Ring
from distributed.ring_rotate.computation import Computation
from distributed.ring_rotate.membership import RotateMembership
from distributed.ring_rotate.messages import Kind
from distributed.ring_rotate.node import RotateNode
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.shard import gathered, scatter
from distributed.ring_rotate.step import Steps, Wait
from distributed.strategy import WorkloadSpec
from distributed.timeline import Timeline

TOY = staged_spec()
SHARED = staged_spec(shared=True)  # a table that the first and the last stage read
PART_BYTES = 16384
Done = Callable[[], None] | None


class Box:
    """A node's outbox."""

    def __init__(self, network: RotationNetwork, number: int):
        self.network, self.number = network, number

    def send(self, frame: Frame, payload: Any = b"", done: Done = None) -> None:
        to = self.network.nodes[self.number].seating.ring.successor(self.number)
        self._put(to, (frame, payload, done))
        size = payload.nbytes if isinstance(payload, torch.Tensor) else 0
        counted = (self.number, frame.step, Kind(frame.kind))
        self.network.sent[counted] = self.network.sent.get(counted, 0) + size

    def send_back(self, frame: Frame) -> None:
        self._put(self.network.nodes[self.number].seating.ring.predecessor(self.number), (frame, b"", None))

    def tell(self, message: dict[str, Any]) -> None:
        self.network.queue(worker(self.number), COORDINATOR).append(json.dumps(message))

    def _put(self, to: int, item: Any) -> None:
        # Forward and back are two links, also where there are two nodes.
        back = item[0].kind == Kind.ROOM
        self.network.queue(worker(self.number), worker(to)._replace(role="back" if back else "worker")).append(item)


class RotationNetwork(AnyRingNetwork):
    """A run of `nodes` over simulated links, up to step `through`; step `probe` is looked into."""

    def __init__(
        self, nodes: int, seed: int, through: int, spec: WorkloadSpec = TOY, *, shadows: bool = True, probe: int = 0
    ):
        super().__init__(seed)
        self.seats, self._through, self._shadows, self._probe = nodes, through, shadows, probe
        self._spec, self.workload = spec, spec.build()
        self.nodes: dict[int, RotateNode] = {}
        self.steps: dict[int, Steps] = {}
        self.applied: dict[int, list[dict[str, Any]]] = {}
        """What the trainer was told, by step."""
        self.late = -1
        """A node that computes, and hears of the coordinator, only when nobody else has anything to do."""
        self.state_lost = ""
        self.sent: dict[tuple[int, int, Kind], int] = {}  # bytes by sender, step and kind
        self._walks: dict[int, tuple[Iterator[Wait], Wait]] = {}
        self._computations: dict[int, Computation] = {}
        for number in range(nodes):
            self.add(number)
        self.plan = self.nodes[0].plan
        self.membership = RotateMembership(self._order, self._was_applied, self._lost, nodes, shadows=shadows)
        seating = self.membership.first_seating(range(nodes), nodes)
        values = FlatParameters(self.workload.build_model()).values
        for number, node in self.nodes.items():
            copies = seating.shadowed_by(number) if shadows else []
            for seat in [*seating.seats_of(number), *copies]:
                node.given.place(seat, 0).copy_(gathered(self.plan, seat, values))
            node.load(0, 0)
        self.membership.begin_with(seating, list(range(nodes)), 1)

    def add(self, number: int) -> None:
        """A process that has come, and has nothing yet."""
        computation = self._computations[number] = Computation(self._spec.build(), self.seats, part_bytes=PART_BYTES)
        node = self.nodes[number] = RotateNode(
            number,
            computation.plan,
            self.workload.optimizer,
            computation.memories,
            Box(self, number),
            shadows=self._shadows,
        )
        lane = Timeline(f"worker {number}").main
        self.steps[number] = Steps(
            node, computation, self.workload.optimizer, contextlib.nullcontext(), lane, lambda what, step: None
        )
        self.live.add(worker(number))

    def run(self, until: Callable[[], bool], before_move: Callable[[], None] = lambda: None, most: int = 60000) -> None:
        """Move frames, phases and updates, drawn one at a time, until something holds or nothing moves."""
        for _ in range(most):
            if until():
                return
            before_move()
            moves: list[tuple[Callable[[Any], None], Any]] = [
                (self._deliver, key)
                for key, queue in self.queues.items()
                if queue and (key[1] == COORDINATOR or worker(key[1].number) in self.live)
                if COORDINATOR in key or queue[0][0].epoch <= self.nodes[key[1].number].seating.ring.epoch
            ]
            moves += [(self._go_on, number) for number in self.nodes if self._can_go_on(number)]
            moves += [(self._report_dead, one) for one in self.unreported]
            if not moves:
                raise AssertionError(f"nothing moves; {self.membership.pending()}")
            moves = [one for one in moves if one[1] not in (self.late, (COORDINATOR, worker(self.late)))] or moves
            move, what = self.pick.choice(moves)
            move(what)
        raise AssertionError("too many moves")

    def buffers(self) -> list[torch.Tensor]:
        """Parameters and moments of the whole model, from the owners of all seats."""
        shards = [self.nodes[owner].shards[seat] for seat, owner in enumerate(self.membership.seating.owners)]
        found = [torch.zeros(FlatParameters(self.workload.build_model()).values.numel()) for _ in shards[0].buffers]
        for seat, shard in enumerate(shards):
            for index, buffer in enumerate(shard.buffers):
                scatter(self.plan, seat, buffer, found[index])
        return found

    # ------------------------------------------------------------------------------------------------- moves

    def _can_go_on(self, number: int) -> bool:
        node = self.nodes[number]
        if worker(number) not in self.live or not node.is_running or node.applied >= self._through:
            return False
        return number not in self._walks or self._walks[number][1].is_over()

    def _go_on(self, number: int) -> None:
        """A node goes on to what it has to wait for next; behind the last it applies the step."""
        node = self.nodes[number]
        if number in self._walks:
            walk = self._walks[number][0]
        else:
            walk = self.steps[number].walk(node.applied + 1, 1.0, node.applied + 1 == self._probe)
        wait = next(walk, None)
        if wait is not None:
            self._walks[number] = (walk, wait)
            return
        del self._walks[number]
        Box(self, number).tell(node.apply())

    def _deliver(self, key: Any) -> None:
        sender, to = key
        item = self.queues[key].popleft()
        if to == COORDINATOR:
            if sender in self.live:
                self._coordinate(json.loads(item))
        elif sender == COORDINATOR:
            self._obey(self.nodes[to.number], json.loads(item))
        elif item[0].epoch == self.nodes[to.number].seating.ring.epoch:
            self._hand_over(self.nodes[to.number], *item)

    def _hand_over(self, node: RotateNode, frame: Frame, payload: Any, done: Done) -> None:
        content: Any = bytes(payload) if not isinstance(payload, torch.Tensor) else payload.numpy().tobytes()
        frame = frame._replace(length=len(content))
        place = node.place(frame) if content else None
        if isinstance(place, torch.Tensor):
            place.copy_(torch.from_numpy(np.frombuffer(content, np.float32).copy()))
            content = place
        if done is not None:
            done()
        node.receive(frame, content)

    def _coordinate(self, said: dict[str, Any]) -> None:
        match said["say"]:
            case "status":
                self.membership.on_status(said["number"], said)
            case "settled":
                self.membership.on_settled(said["number"], said["epoch"])
            case "applied":
                self.membership.on_applied(said["number"], said["step"], said)

    def _obey(self, node: RotateNode, word: dict[str, Any]) -> None:
        match word["do"]:
            case "reconfigure":
                self._walks.pop(node.number, None)
                self._computations[node.number].forget()
                ring = Ring.from_dict(word["ring"])
                for key, queue in self.queues.items():  # links of older epochs end, with what is on them
                    if node.number in (key[0].number, key[1].number) and COORDINATOR not in key:
                        kept = [one for one in queue if one[0].epoch >= ring.epoch]
                        queue.clear()
                        queue.extend(kept)
                Box(self, node.number).tell(node.reconfigure(Seating(ring, tuple(word["owners"])), word["new"]))
            case "settle":
                node.settle(word["epoch"], word["newest"], word["said"], word["give"])
            case "resume":
                node.resume(word["epoch"], word["open"])

    def _order(self, number: int, message: Mapping[str, Any]) -> None:
        self.queue(COORDINATOR, worker(number)).append(json.dumps(message))

    def _was_applied(self, step: int, told: list[dict[str, Any]]) -> None:
        assert step == len(self.applied) + 1
        assert all(one["facts"] == told[0]["facts"] for one in told)
        self.applied[step] = told

    def _lost(self, sentence: str) -> None:
        self.state_lost = sentence

    def _report_dead(self, member: Any) -> None:
        self.unreported.remove(member)
        self.membership.leave(member.number)
