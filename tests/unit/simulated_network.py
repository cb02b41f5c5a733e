"""A parameter server in one process: messages in every order, members that die at any of them.

Links keep the order of what goes through them, as TCP does; which link delivers next, and who computes when, is drawn.
A member that is killed has sent a part of what it wanted to send, from the front.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from distributed.arithmetic import FlatParameters, PairwiseSum, chunks, clip_, clip_parameters_, norm, square_sums
from distributed.links.frames import Frame
from distributed.optimizers import build_optimizer
from distributed.parameter_server.member_protocol import ServerProtocol
from distributed.parameter_server.membership import Membership
from distributed.parameter_server.messages import COORDINATOR, Kind, Member, server, worker
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.synchronous_server import SynchronousServer
from distributed.parameter_server.synchronous_worker import Grant, SynchronousWorker
from distributed.shards import cut
from distributed.slot_tree import Node, halves

WIDTH = 48  # of the rows of the table
TOKENS = [3, 5, 2, 7, 4, 6, 1, 8]  # of each leaf


def loss_of(step: int, leaf: int) -> float:
    return float(torch.tensor(0.1 * step + leaf, dtype=torch.float32))


def gradient_of(values: torch.Tensor, step: int, leaf: int) -> torch.Tensor:
    """Something that depends on every parameter, on the step and on the leaf; most rows of `first` are not touched."""
    gradient = torch.sin(values * (leaf + 1.5) + 0.1 * step) * TOKENS[leaf]
    rows = gradient[: len(values) // 3 // WIDTH * WIDTH].view(-1, WIDTH)
    rows[(torch.arange(len(rows)) * 7 + step + leaf) % 5 > 0] = 0.0
    return gradient


class Toy(torch.nn.Module):
    """Parameters of which one spans several chunks, and one is a table."""

    def __init__(self, elements: int):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = torch.nn.Parameter(torch.randn(elements // 3 // WIDTH, WIDTH, generator=generator))
        self.second = torch.nn.Parameter(torch.randn(elements - self.first.numel(), generator=generator))


def single_process(setup: Setup, elements: int, steps: int, leaves: Callable[[int], list[int]] | None = None) -> Any:
    """What one process computes: parameters, moments, norms of the steps. `leaves` says which ones a step has."""
    flat = FlatParameters(Toy(elements))
    optimizer = build_optimizer(setup.optimizer)
    moments = {slot: torch.zeros_like(flat.values) for slot in optimizer.slots}
    norms = []
    for step in range(1, steps + 1):
        there = leaves(step) if leaves else list(range(setup.leaves))
        if not setup.wire.is_exact:
            gradient = rounded_sum(setup, {leaf: gradient_of(flat.values, step, leaf) for leaf in there})
        elif leaves is None:
            tree = PairwiseSum(flat)
            for leaf in there:
                tree.add(gradient_of(flat.values, step, leaf))
            gradient = tree.result()
        else:
            gradient = sum_of({leaf: gradient_of(flat.values, step, leaf) for leaf in there}, (0, setup.leaves))
        if len(there) < setup.leaves:
            gradient.mul_(sum(TOKENS[: setup.leaves]) / sum(TOKENS[leaf] for leaf in there))
        norms.append(norm(square_sums(gradient)))
        clip_(gradient, norms[-1], setup.optimizer.max_norm)
        clip_parameters_(flat, gradient, setup.optimizer.parameter_max_norms)
        with torch.no_grad():
            for values, part, *state in chunks(flat.values, gradient, *moments.values()):
                optimizer.apply(values, part, dict(zip(moments, state, strict=True)), step, 0.01 / step)
    return flat.values, moments, norms


def sum_of(gradients: dict[int, torch.Tensor], node: Node) -> torch.Tensor:
    """The sum over the leaves of a node that are there, by the fixed tree."""
    if node[1] - node[0] == 1:
        return gradients[node[0]]
    sides = [half for half in halves(node) if any(leaf in gradients for leaf in range(*half))]
    return sum_of(gradients, sides[0]) if len(sides) == 1 else sum_of(gradients, sides[0]) + sum_of(gradients, sides[1])


def rounded_sum(setup: Setup, gradients: dict[int, torch.Tensor], node: Node | None = None) -> torch.Tensor:
    """The sum by the fixed tree, in which each unit of the setup was rounded on its way."""
    node = (0, setup.leaves) if node is None else node
    if node in setup.units:
        return sum_of(gradients, node).bfloat16().float()
    sides = [half for half in halves(node) if any(leaf in gradients for leaf in range(*half))]
    sums = [rounded_sum(setup, gradients, half) for half in sides]
    return sums[0] if len(sums) == 1 else sums[0] + sums[1]


def setup_of(elements: int, **changes: Any) -> Setup:
    flat = FlatParameters(Toy(elements))
    layout = {name: (start, start + shape.numel()) for name, (start, shape) in flat.layout.items()}
    widths = {name: shape[1] for name, (_, shape) in flat.layout.items() if len(shape) == 2}
    return Setup(elements=flat.values.numel(), layout=layout, widths=widths, **changes)


def spoil(buffer: torch.Tensor) -> None:
    """Make a buffer that was given back useless: whoever still needs it shows."""
    buffer.fill_(float("nan"))


def receive(
    one: ServerProtocol, sender: Member, frame: Frame, payload: torch.Tensor | bytes, through_memory: bool
) -> None:
    """A frame arrives at a server: in the place that it gives for it, or, from shared memory, as it was sent."""
    content = payload
    if isinstance(payload, torch.Tensor):
        content = payload.view(torch.uint8)
        target = None if through_memory else one.place(frame._replace(length=content.numel()))
        if target is not None:
            content = target.view(torch.uint8).copy_(content)
        content = one.decode(frame, content) if frame.kind == Kind.PUSH else content.view(payload.dtype)
    one.receive(sender, frame, content)


class Box:
    """A member's outbox."""

    def __init__(self, network: Links, me: Member):
        self.network, self.me = network, me

    def send(self, to: Member, frame: Frame, payload: torch.Tensor | bytes = b"") -> None:
        self.network.queue(self.me, to).append((frame, payload))

    def tell(self, message: dict[str, Any]) -> None:
        self.network.queue(self.me, COORDINATOR).append(json.dumps(message))


class Links:
    """Queues between members, who lives, and what is drawn."""

    def __init__(self, seed: int):
        self.pick = random.Random(seed)
        self.queues: dict[tuple[Member, Member], deque[Any]] = {}
        self.live: set[Member] = set()
        self.unreported: list[Member] = []

    def queue(self, sender: Member, to: Member) -> deque[Any]:
        return self.queues.setdefault((sender, to), deque())

    def kill(self, member: Member) -> None:
        """The member dies: what it sent last may not arrive, and the coordinator learns of it later."""
        self.live.discard(member)
        for (sender, to), queue in self.queues.items():
            if to == member:
                queue.clear()
            elif sender == member and queue:
                for _ in range(self.pick.randint(0, len(queue))):
                    queue.pop()
        self.unreported.append(member)

    def kills(self, victims: Iterable[Member], moves: Iterable[int]) -> Callable[[], None]:
        """What is to be called before each move: at each of `moves`, counted from 0, the next of the victims dies."""
        left = dict(zip(moves, victims, strict=True))
        count = 0

        def strike() -> None:
            nonlocal count
            if count in left:
                self.kill(left.pop(count))
            count += 1

        return strike


class Network(Links):
    """A run of a parameter server over simulated links."""

    def __init__(self, setup: Setup, elements: int, workers: int, servers: int, *, shadows: bool, seed: int):
        super().__init__(seed)
        self.setup = setup
        self.applied: dict[int, dict[str, Any]] = {}
        self.probed: dict[int, dict[str, Any]] = {}
        self.state_lost = ""
        self.elements, self.first = elements, FlatParameters(Toy(elements)).values
        self.workers: dict[int, SynchronousWorker] = {}
        self.servers: dict[int, SynchronousServer] = {}
        self.computed: list[tuple[int, int, Node]] = []
        self._computing: dict[int, tuple[int, Node, torch.Tensor, list[int]]] = {}
        self.membership = Membership(
            setup,
            lambda to, message: self.queue(COORDINATOR, to).append(json.dumps(message)),
            shadows=shadows,
            lost=self._lost,
        )
        shard_map = cut(setup.elements, setup.shards, setup.bucket_bytes)
        for number in range(servers):
            one = self.servers[number] = SynchronousServer(number, setup, Box(self, server(number)))
            self.live.add(server(number))
            for shard in range(setup.shards):
                if shard % servers == number:
                    for buffer in range(1 + len(one._optimizer.slots)):
                        content = shard_map.gather(shard, self.first)
                        frame = Frame(kind=Kind.STATE, tags=(shard, buffer, 0))
                        one.receive(COORDINATOR, frame, content if buffer == 0 else torch.zeros_like(content))
        for number in range(workers):
            self.add_worker(number)
        self.membership.begin(range(workers), range(servers), 1)

    def add_worker(self, number: int) -> None:
        values = torch.full_like(self.first, float("nan"))
        self.workers[number] = SynchronousWorker(
            number,
            self.setup,
            Box(self, worker(number)),
            values,
            release=spoil,
        )
        self.live.add(worker(number))

    def allow(self, through: int, probe: bool = False) -> None:
        for one in self.workers.values():
            one.allow(Grant(through, 1.0, probe))

    def join(self, number: int, through: int) -> None:
        """A worker comes that has nothing yet."""
        self.add_worker(number)
        self.workers[number].allow(Grant(through))
        self.membership.join(number)

    def run(self, until: Callable[[], bool], before_move: Callable[[], None] = lambda: None, most: int = 20000) -> None:
        """Move messages and computations, drawn one at a time, until something holds or nothing can move any more."""
        for _ in range(most):
            if until():
                return
            before_move()
            moves: list[Callable[[], None]] = [
                lambda key=key: self._deliver(key)  # type: ignore[misc]
                for key, queue in self.queues.items()
                if queue and (key[1] == COORDINATOR or key[1] in self.live)
            ]
            moves += [lambda one=one: self._compute(one) for one in self.workers if self._can_compute(one)]  # type: ignore[misc]
            moves += [lambda one=one: self._report(one) for one in self.unreported]  # type: ignore[misc]
            if not moves:
                raise AssertionError(f"nothing moves; open step {self.membership.open_step}")
            self.pick.choice(moves)()
        raise AssertionError("too many moves")

    def is_at_rest(self, step: int) -> bool:
        """Whether every live server has applied a step, and no change of members is under way."""
        at = {one.step - 1 for number, one in self.servers.items() if server(number) in self.live}
        return at == {step} and self.membership.at_work and not self.unreported

    def values(self) -> torch.Tensor:
        """The parameters as the primaries have them."""
        flat = torch.full_like(self.first, float("nan"))
        for shard, one in enumerate(self.membership.table.primary):
            self.setup.shard_map.scatter(shard, self.servers[one].shards[shard].values, flat)
        return flat

    def moments(self, slot: str) -> torch.Tensor:
        flat = torch.full_like(self.first, float("nan"))
        for shard, one in enumerate(self.membership.table.primary):
            self.setup.shard_map.scatter(shard, self.servers[one].shards[shard].moments[slot], flat)
        return flat

    def _lost(self, sentence: str) -> None:
        self.state_lost = sentence

    def _report(self, member: Member) -> None:
        self.unreported.remove(member)
        self.membership.leave(member)

    def _deliver(self, key: tuple[Member, Member]) -> None:
        sender, to = key
        item = self.queues[key].popleft()
        if to == COORDINATOR:
            if not isinstance(item, str):
                return
            self._coordinate(sender, json.loads(item))
        elif sender == COORDINATOR:
            self._obey(to, json.loads(item))
        else:
            frame, payload = item
            # A copy made now: whoever changes what is still under way would show.
            payload = payload.clone() if isinstance(payload, torch.Tensor) else payload
            if to.role == "worker":
                self.workers[to.number].put(frame, payload)
                self.workers[to.number].receive(sender, frame)
                return
            one = self.servers[to.number]
            receive(one, sender, frame, payload, through_memory=self.pick.random() < 0.5)

    def _coordinate(self, sender: Member, said: dict[str, Any]) -> None:
        what, membership = said["say"], self.membership
        if sender not in self.live and what != "applied":
            return
        if what == "status":
            if said["decision"]:
                self._applied(said)
            membership.on_status(sender.number, said)
        elif what == "rolled":
            membership.on_rolled(sender.number, said["epoch"])
        elif what == "protected":
            membership.on_protected(said["shard"], said["epoch"])
        elif what == "applied":
            self._applied(said)
            membership.applied(said["decision"]["step"])

    def _applied(self, said: dict[str, Any]) -> None:
        step = said["decision"]["step"]
        before = self.applied.setdefault(step, said["decision"])
        assert before == said["decision"]
        for shard, parts in said["probed"].items():
            assert self.probed.setdefault(step, {}).setdefault(shard, parts) == parts

    def _obey(self, to: Member, word: dict[str, Any]) -> None:
        from distributed.parameter_server.messages import Table

        if to.role == "worker":
            self.workers[to.number].resume(Table.from_dict(word["table"]), word["open"], word["mine"])
            return
        one = self.servers[to.number]
        box = Box(self, to)
        if word["do"] == "reconfigure":
            box.tell({"say": "status"} | one.reconfigure(Table.from_dict(word["table"])))
        elif word["do"] == "roll":
            if word["epoch"] == one.table.epoch:
                one.roll(word["decision"])
                box.tell({"say": "rolled", "epoch": word["epoch"]})
        elif word["do"] == "protect":
            if word["epoch"] == one.table.epoch:
                one.protect(set(word["shards"]))
        elif word["do"] == "resume" and word["table"]["epoch"] == one.table.epoch:
            leaves = word["leaves"]
            one.resume(word["open"], None if leaves is None else frozenset(leaves))

    def _can_compute(self, number: int) -> bool:
        if worker(number) not in self.live:
            return False
        one = self.workers[number]
        if number in self._computing:
            return True
        work = one.next_node()
        return work is not None and one.is_fresh(range(len(self.setup.shard_map.pieces)))

    def _compute(self, number: int) -> None:
        """Begin a node, or send one more piece of the one that is being computed."""
        one = self.workers[number]
        if number not in self._computing:
            work = one.next_node()
            assert work is not None
            step, node = work
            gradient = self._node(one.values, step, node)
            order = list(range(len(self.setup.shard_map.pieces)))
            self._computing[number] = (step, node, gradient, order)
            self.computed.append((number, step, node))
            return
        step, node, gradient, order = self._computing[number]
        if one.step != step or (node in one._pushed and one._pushed[node].gradient is not gradient):
            del self._computing[number]
        elif order:
            one.push(step, node, order.pop(0), gradient)
        else:
            del self._computing[number]
            leaves = {
                leaf: {"losses": [loss_of(step, leaf)], "tokens": TOKENS[leaf], "source_tokens": 1, "inner": {}}
                for leaf in range(*node)
            }
            one.contribute(node, sum(TOKENS[: self.setup.leaves]), 0.01 / step, leaves)

    def _node(self, values: torch.Tensor, step: int, node: Node) -> torch.Tensor:
        if node[1] - node[0] == 1:
            return gradient_of(values, step, node[0])
        left, right = halves(node)
        return self._node(values, step, left) + self._node(values, step, right)
