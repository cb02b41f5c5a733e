"""A ring in one process: frames in every order that links allow, nodes that die at any of them.

Payloads are read when they are delivered, from the sender's memory, as a successor that shares memory does; half of
them stay there even after that. Gradients that were given back are spoiled: whoever still reads one shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from simulated_network import Links

from distributed.arithmetic import clip_, norm, square_sums
from distributed.links.frames import Frame
from distributed.links.link import DISCARD
from distributed.optimizers import build_optimizer
from distributed.parameter_server.messages import COORDINATOR, worker
from distributed.ring.all_reduce import RingAllReduce
from distributed.ring.membership import RingMembership
from distributed.ring.messages import Kind, Ring
from distributed.ring.node import RingNode, Share
from distributed.ring.segments import segments
from distributed.slot_tree import shares
from distributed.strategy import OptimizerSpec

BUCKETS = ((230, 250), (96, 230), (0, 96))  # the first has two cache lines only: some nodes have no segment of it
ELEMENTS = 250
PART_BYTES = 128
LEAVES = 5
RULE = OptimizerSpec("distributed.optimizers:Adam", {"epsilon": 1e-8}, max_norm=30.0)


def first_values() -> torch.Tensor:
    return torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(3))


def gradient_of(values: torch.Tensor, step: int, leaves: Sequence[int]) -> torch.Tensor:
    """Something that depends on every parameter, on the step and on the leaves; zero without any."""
    total = torch.zeros_like(values)
    for leaf in leaves:
        total += torch.sin(values * (leaf + 1.5) + 0.1 * step) * (leaf + 1)
    return total


def ring_sum(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum by the order that is promised: segment s begins at position s."""
    nodes = len(gradients)
    total = torch.empty_like(gradients[0])
    for start, stop in BUCKETS:
        for segment, (first, last) in enumerate(segments(start, stop, nodes)):
            part = gradients[segment][first:last].clone()
            for step in range(1, nodes):
                part = part + gradients[(segment + step) % nodes][first:last]
            total[first:last] = part
    return total


class State:
    """Parameters and moments, and how a step changes them."""

    def __init__(self, values: torch.Tensor):
        self.rule = build_optimizer(RULE)
        self.buffers = [values, *(torch.zeros_like(values) for _ in self.rule.slots)]

    def apply(self, gradient: torch.Tensor, update: int) -> None:
        """One update; the gradient is only read."""
        gradient_norm = norm(square_sums(gradient))
        assert math.isfinite(gradient_norm), "a sum was made of memory that had been given back"
        scratch = gradient.clone()
        clip_(scratch, gradient_norm, RULE.max_norm)
        moments = dict(zip(self.rule.slots, self.buffers[1:], strict=True))
        self.rule.apply(self.buffers[0], scratch, moments, update, 0.01)


def reference(orders: Sequence[int]) -> list[torch.Tensor]:
    """The state after steps that were made by rings of so many nodes each."""
    state = State(first_values())
    for step, nodes in enumerate(orders, start=1):
        gradients = [gradient_of(state.buffers[0], step, own) for own in shares(LEAVES, nodes)]
        state.apply(ring_sum(gradients), step)
    return state.buffers


class Box:
    """A node's outbox."""

    def __init__(self, network: RingNetwork, number: int):
        self.network, self.number = network, number

    def send(self, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        ring = self.network.nodes[self.number].ring
        self.network.queue(worker(self.number), worker(ring.successor(self.number))).append((frame, payload))
        if isinstance(payload, torch.Tensor):
            counted = (self.number, frame.epoch, frame.step, Kind(frame.kind))
            self.network.sent[counted] = self.network.sent.get(counted, 0) + 4 * payload.numel()

    def tell(self, message: dict[str, Any]) -> None:
        self.network.queue(worker(self.number), COORDINATOR).append(json.dumps(message))


class AnyRingNetwork(Links):
    """What networks of rings have in common: nodes by number, and the coordinator's membership."""

    nodes: dict[int, Any]
    membership: RingMembership
    applied: dict[int, Any]

    def add(self, number: int) -> None:
        """A process that has come, and has nothing yet."""
        raise NotImplementedError

    def join(self, number: int) -> None:
        """A process comes, and waits to be taken in."""
        self.add(number)
        self.membership.join(number)

    def is_at_rest(self, step: int) -> bool:
        """Whether the trainer was told of a step, every live member has applied it, and no change is under way."""
        at = {node.applied for node in self.members()}
        return step in self.applied and at == {step} and self.membership.at_work and not self.unreported

    def members(self) -> list[Any]:
        """The live nodes that were taken in."""
        return [self.nodes[number] for number in self.membership.ring.order if worker(number) in self.live]


def at_moves(events: Mapping[int, Callable[[], None]]) -> Callable[[], None]:
    """Something to be called before each move, which has an event happen before some."""
    count = 0

    def strike() -> None:
        nonlocal count
        count += 1
        if count in events:
            events[count]()

    return strike


class RingNetwork(AnyRingNetwork):
    """A run of a ring over simulated links, up to step `through`."""

    def __init__(self, nodes: int, seed: int, through: int, sums: type[RingAllReduce] = RingAllReduce):
        super().__init__(seed)
        self._through, self._sums, self.seats = through, sums, nodes
        self.nodes: dict[int, RingNode] = {}
        self.states: dict[int, State] = {}
        self.applied: dict[int, Mapping[int, Any]] = {}
        """What the trainer was told, by step."""
        self.state_lost = ""
        self.sent: dict[tuple[int, int, int, Kind], int] = {}  # bytes by sender, epoch, step and kind
        self.finals: dict[int, list[tuple[int, int]]] = {}
        self.most_in_use = 0
        self.spare: dict[int, list[torch.Tensor]] = {}
        self._in_use: dict[int, list[torch.Tensor]] = {}
        self._computing: dict[int, tuple[Share, torch.Tensor, torch.Tensor, list[int]]] = {}
        self._entering = False
        self._straggler, self._patience = self.pick.randrange(nodes), self.pick.choice([0, 1, 4])  # a node may be slow
        self.membership = RingMembership(self._order, self._was_applied, self._lost, nodes)
        for number in range(nodes):
            self.add(number, is_whole=True)
        self.membership.begin(range(nodes), 1)

    def add(self, number: int, *, is_whole: bool = False) -> None:
        """A process that has come; one that is not whole has nothing yet."""
        values = first_values()
        state = self.states[number] = State(values if is_whole else torch.full_like(values, math.nan))
        box = Box(self, number)
        self.spare[number], self._in_use[number], self.finals[number] = [], [], []

        def release(buffer: torch.Tensor) -> None:
            self._in_use[number] = [one for one in self._in_use[number] if one is not buffer]
            self.spare[number].append(buffer)
            if not self._entering:  # else it may be read until all have entered the epoch; and used again only then
                buffer.fill_(math.nan)

        self.nodes[number] = RingNode(
            number,
            self.seats,
            LEAVES,
            BUCKETS,
            box,
            state.buffers,
            lambda: self._allocate(number),
            release,
            final=lambda step, bucket, gradient: self._is_final(number, step, bucket),
            is_whole=is_whole,
            part_bytes=PART_BYTES,
            sums=self._sums,
        )
        self.nodes[number].through = self._through
        self.live.add(worker(number))

    def run(self, until: Callable[[], bool], before_move: Callable[[], None] = lambda: None, most: int = 40000) -> None:
        """Move frames, computations and updates, drawn one at a time, until something holds or nothing moves."""
        for _ in range(most):
            if until():
                return
            before_move()
            moves: list[tuple[Callable[[Any], None], Any]] = [
                (self._deliver, key)
                for key, queue in self.queues.items()
                if queue and (key[1] == COORDINATOR or key[1] in self.live)
            ]
            for number, node in self.nodes.items():
                if worker(number) not in self.live:
                    continue
                if node.applied < node.summed and node.is_whole:
                    moves.append((self._apply, number))
                if number in self._computing or self._begin(number):
                    moves.append((self._compute, number))
            moves += [(self._report_dead, one) for one in self.unreported]
            if not moves:
                raise AssertionError(f"nothing moves; {self.membership.pending()}")
            move, what = self.pick.choice(moves)
            for _ in range(self._patience):
                if self._is_of_straggler(what):
                    move, what = self.pick.choice(moves)
            move(what)
        raise AssertionError("too many moves")

    def _is_of_straggler(self, what: Any) -> bool:
        return what == self._straggler or (isinstance(what, tuple) and what[1] == worker(self._straggler))

    def ring_sizes(self) -> list[int]:
        """By step, how many nodes made the sum that counts."""
        return [len(self.makers(step)) for step in sorted(self.applied)]

    def makers(self, step: int) -> set[int]:
        """Which nodes made the sum of a step."""
        return {one["by"] for one in self.applied[step].values()}

    def _is_final(self, number: int, step: int, bucket: int) -> None:
        assert step > self.nodes[number].summed, "told of a sum that may have been applied"
        self.finals[number].append((step, bucket))

    # ------------------------------------------------------------------------------------------------- moves

    def _begin(self, number: int) -> bool:
        share = self.nodes[number].next_share()
        if share is None:
            return False
        values = self.states[number].buffers[0]
        gradient = self._allocate(number)
        content = gradient_of(values, share.step, share.leaves)
        order = list(range(len(BUCKETS)))
        self.pick.shuffle(order)  # backward passes come to them in any order
        self._computing[number] = (share, gradient, content, order)
        return True

    def _compute(self, number: int) -> None:
        """One more bucket of the share that is being computed is ready."""
        share, gradient, content, order = self._computing[number]
        node = self.nodes[number]
        if order:
            bucket = order.pop()
            start, stop = BUCKETS[bucket]
            gradient[start:stop] = content[start:stop]
            node.ready(share, bucket, gradient)
            return
        del self._computing[number]
        facts = json.dumps({"leaves": list(share.leaves), "by": number}).encode()
        if not node.contribute(share, gradient, facts):
            self._in_use[number] = [one for one in self._in_use[number] if one is not gradient]
            self.spare[number].append(gradient.fill_(math.nan))

    def _apply(self, number: int) -> None:
        node = self.nodes[number]
        assert node.gradient is not None
        assert node.summed == node.applied + 1
        self.states[number].apply(node.gradient, node.updates + 1)
        node.has_applied(node.summed)

    def _deliver(self, key: Any) -> None:
        sender, to = key
        item = self.queues[key].popleft()
        if to == COORDINATOR:
            if sender in self.live:
                self._coordinate(json.loads(item))
        elif sender == COORDINATOR:
            self._obey(self.nodes[to.number], json.loads(item))
        else:
            self._hand_over(self.nodes[to.number], *item)
            if self.pick.random() < 0.1:  # what comes twice changes nothing
                self._hand_over(self.nodes[to.number], *item)

    def _hand_over(self, node: RingNode, frame: Frame, payload: torch.Tensor | bytes) -> None:
        if isinstance(payload, bytes) or self.pick.random() < 0.5:  # bytes, or shared memory
            node.receive(frame, payload)
            return
        place = node.place(frame._replace(length=4 * payload.numel()))
        if place is DISCARD:
            return
        assert isinstance(place, torch.Tensor)
        node.receive(frame, place.copy_(payload))

    def _coordinate(self, said: dict[str, Any]) -> None:
        match said["say"]:
            case "status":
                self.membership.on_status(said["number"], said)
            case "rolled":
                self.membership.on_rolled(said["number"], said["epoch"])
            case "joined":
                self.membership.on_joined(said["number"], said["epoch"])
            case "applied":
                facts = {int(number): one for number, one in said["facts"].items()}
                self.membership.on_applied(said["number"], said["step"], facts)

    def _obey(self, node: RingNode, word: dict[str, Any]) -> None:
        match word["do"]:
            case "reconfigure":
                self._entering = True
                Box(self, node.number).tell(node.reconfigure(Ring.from_dict(word["ring"])))
                self._entering = False
            case "roll":
                node.roll(word["epoch"], word["nodes"])
            case "transfer":
                node.transfer(word["epoch"], word["nodes"])
            case "resume":
                node.resume(word["epoch"], word["open"])

    def _order(self, number: int, message: dict[str, Any]) -> None:
        self.queue(COORDINATOR, worker(number)).append(json.dumps(message))

    def _was_applied(self, step: int, facts: Mapping[int, Any]) -> None:
        assert step == len(self.applied) + 1
        assert sorted(leaf for one in facts.values() for leaf in one["leaves"]) == list(range(LEAVES))
        self.applied[step] = facts

    def _lost(self, sentence: str) -> None:
        self.state_lost = sentence

    def _report_dead(self, member: Any) -> None:
        self.unreported.remove(member)
        self.membership.leave(member.number)

    def _allocate(self, number: int) -> torch.Tensor:
        buffer = self.spare[number].pop(0) if self.spare[number] else torch.empty(ELEMENTS)
        self._in_use[number].append(buffer)
        self.most_in_use = max(self.most_in_use, len(self._in_use[number]))
        return buffer.fill_(math.nan)
