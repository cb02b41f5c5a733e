"""A stage ring in one process: messages and tasks in every order that links allow, nodes that die at any of them.

Nobody presides here either: there is no coordinator to tell of a death, only links that end. A dead node's last
messages may be lost, from the back. Half of the gradients stay in the sender's memory until they are used, as with
shared memory; states are read when they are looked at.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from delayed_gradients import DelayedGradients
from torch import Tensor

from distributed.optimizers import build_optimizer
from distributed.ring.messages import Ring
from distributed.ring_tmp.executor import Task, Work
from distributed.ring_tmp.mailbox import Key
from distributed.ring_tmp.membership import Hello, RingMembership
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.node import RingTmpNode
from distributed.ring_tmp.parts import Gradients, parts_of
from distributed.ring_tmp.placement import Placement, newcomer
from distributed.ring_tmp.scalars import Decision, StepFacts
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState
from distributed.single import SingleStrategy
from distributed.strategy import BatchPlan, OptimizerSpec, StepStats

RULE = OptimizerSpec("distributed.optimizers:Adam", {}, max_norm=0.5, parameter_max_norms={"stage2.gain": 0.05})


class ToyStage(torch.nn.Module):
    """h -> sin(gain h + shift), with parameters of odd lengths."""

    def __init__(self, width: int, number: int):
        super().__init__()
        generator = torch.Generator().manual_seed(number)
        self.gain = torch.nn.Parameter(torch.randn(width, generator=generator))
        self.shift = torch.nn.Parameter(torch.randn(width // 2 + number, generator=generator))


class Toy(torch.nn.Module):
    """Stages whose parameters are registered in another order than that of a forward pass."""

    def __init__(self, stages: int, width: int):
        super().__init__()
        for number in [*range(1, stages, 2), *range(0, stages, 2)]:
            self.add_module(f"stage{number}", ToyStage(width, number))


@dataclass(frozen=True)
class ToySlot:
    """A micro-batch."""

    step: int
    number: int
    target_tokens: int
    scale: float = 1.0

    @property
    def source_tokens(self) -> int:
        return self.number + 1

    def inner_square_sums(self) -> Mapping[str, Sequence[float]]:
        return {"inside": [self.number + 0.1, 2.0]}


def run_stage(number: int, is_last: bool, slot: ToySlot, h: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """A stage's arithmetic."""
    out = torch.sin(h * gain + 0.1 * slot.step)
    head = out[: len(shift)] * shift * (slot.number + 1.0)
    out = torch.cat([head, out[len(shift) :]])
    return (out * out).sum() * (slot.target_tokens * slot.scale) if is_last else out


@dataclass(frozen=True)
class _Stage:
    name: str
    number: int
    is_last: bool
    model: Toy

    def parameter_names(self) -> Sequence[str]:
        return [f"{self.name}.gain", f"{self.name}.shift"]

    def __call__(self, slot: ToySlot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own: Any = getattr(self.model, self.name)
        h = carried.get("h", torch.cos(torch.arange(float(len(own.gain))) + slot.number))
        return {"loss" if self.is_last else "h": run_stage(self.number, self.is_last, slot, h, own.gain, own.shift)}


class ToyWorkload:
    """A chain of stages; slot 1 of every second step is empty."""

    device = "cpu"

    def __init__(
        self,
        stages: int = 6,
        width: int = 37,
        plan: BatchPlan | None = None,
        rule: OptimizerSpec = RULE,
        bad_step: int = 0,
        empty: bool = True,
    ):
        self.plan, self.optimizer = plan or BatchPlan(6, 3), rule
        self.count, self._width, self._bad_step, self._empty = stages, width, bad_step, empty

    def build(self) -> ToyWorkload:
        return self

    def build_model(self) -> Toy:
        return Toy(self.count, self._width)

    def stages(self, model: torch.nn.Module) -> Sequence[_Stage]:
        assert isinstance(model, Toy)
        return [_Stage(f"stage{one}", one, one == self.count - 1, model) for one in range(self.count)]

    def slot_tokens(self, index: int) -> Sequence[int]:
        return [
            0 if slot == 1 and index % 2 == 0 and self._empty else 3 + slot for slot in range(self.plan.micro_batches)
        ]

    def slot(self, index: int, slot: int, probe: bool = False) -> ToySlot:
        tokens = self.slot_tokens(index)[slot]
        return ToySlot(index, slot, tokens, 1e39 if index == self._bad_step else 1.0)

    def learning_rate(self, index: int) -> float:
        return 0.05 / index

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def setup(self, lag: int, *, shadows: bool = True) -> Setup:
        model = self.build_model()
        parts = parts_of(
            {name: parameter.shape for name, parameter in model.named_parameters()},
            [(stage.name, stage.parameter_names()) for stage in self.stages(model)],
        )
        return Setup(parts, self.plan, self.slot_tokens, self.optimizer, self.learning_rate, lag, shadows)


def single(workload: ToyWorkload, steps: int, lag: int = 0) -> tuple[dict[str, Any], list[StepStats]]:
    """The state after so many steps of one process, and what they said; with lag 1, each gradient one version old."""
    one = DelayedGradients() if lag else SingleStrategy()
    one.start(workload)  # type: ignore[arg-type]
    stats = [one.step(step, probe=True) for step in range(1, steps + 1)]
    return one.state(), stats


class Spoiled(Gradients):
    """Buffers that show who still reads them when they were given back."""

    MARK = -12345.0

    def release(self, buffer: Tensor) -> None:
        if self._pool.owns(buffer):
            buffer.fill_(self.MARK)
        super().release(buffer)


class Link:
    """A connection from a node to its successor; what is under way in both directions."""

    def __init__(self, first: int, second: int):
        self.ends = (first, second)
        self.towards: dict[int, deque[Any]] = {first: deque(), second: deque()}

    def __repr__(self) -> str:
        return f"{self.ends[0]}->{self.ends[1]}"


class Desk:
    """What a node sees of the network: its two links, its outbox, and how it dials."""

    def __init__(self, ring: StageRing, number: int):
        self.ring, self.number = ring, number
        self.next: Link | None = None
        self.before: Link | None = None

    def to_successor(self, message: Message) -> None:
        if self.next is not None:
            self.next.towards[self.next.ends[1]].append(message)
            self.ring.count(self.number, self.next.ends[1], message)

    def to_predecessor(self, message: Message) -> None:
        if self.before is not None:
            self.before.towards[self.before.ends[0]].append(message)
            self.ring.count(self.number, self.before.ends[0], message)

    def dial(self, number: int, hello: Hello) -> None:
        self.hang_up("next")
        self.ring.dials.append((self.number, number, hello))

    def drop_predecessor(self) -> None:
        self.hang_up("before")

    def hang_up(self, side: str) -> None:
        """End a link: the other end hears of it behind what was sent before."""
        link: Link | None = getattr(self, side)
        setattr(self, side, None)
        if link is not None:
            other = link.ends[1] if link.ends[0] == self.number else link.ends[0]
            link.towards[self.number].clear()
            link.towards[other].append("end")


class StageRing:
    """A run of nodes that agree among themselves, up to step `through`."""

    def __init__(
        self,
        workload: ToyWorkload,
        owners: Sequence[int],
        seed: int,
        through: int,
        *,
        lag: int = 0,
        shadows: bool = True,
        node: type[RingTmpNode] = RingTmpNode,
    ):
        self.workload, self.pick, self.through = workload, random.Random(seed), through
        self.setup = workload.setup(lag, shadows=shadows)
        order = tuple(dict.fromkeys(owners))
        placement = Placement(Ring(1, order), tuple(owners))
        self.live = set(order)
        self.desks = {number: Desk(self, number) for number in order}
        self.dials: list[tuple[int, int, Hello]] = []
        self.waiting: list[tuple[int, int, tuple[int, ...]]] = []
        """Nodes that are to be admitted: who, behind whom, for which stages."""
        self.nodes: dict[int, RingTmpNode] = {}
        self.membership: dict[int, RingMembership] = {}
        self.applied: dict[int, dict[int, Decision]] = {}
        """By step and node, what it said when it applied it."""
        self.sent: set[tuple[int, int]] = set()
        self.fenced: set[int] = set()
        self.hosts: dict[int, int] = {}  # of nodes that come, who is to admit them
        self.most_in_flight: dict[tuple[int, int], int] = {}  # by epoch and range
        self._graphs: dict[tuple[int, int, int, int], Any] = {}
        self.order_of_backward: list[tuple[int, int, int, int]] = []  # epoch, range, step, slot
        self._straggler, self._patience = self.pick.choice(order), self.pick.choice([0, 1, 4])
        for number, follower in zip(order, (*order[1:], order[0]), strict=True):
            if len(order) > 1:
                link = Link(number, follower)
                self.desks[number].next, self.desks[follower].before = link, link
        for number in order:
            held = {*placement.stages_of(number), *(placement.shadowed_by(number) if shadows else ())}
            states = {stage: self._first_state(stage) for stage in held}
            gradients = Spoiled(self.setup.parts)
            self.nodes[number] = node(number, self.setup, self.desks[number], states, placement, gradients)
            self.nodes[number].allow(through)
            self.membership[number] = RingMembership(
                number, placement, self.nodes[number], self.desks[number], shadows=shadows
            )

    def _first_state(self, stage: int) -> PartState:
        state = self.setup.new_state(stage)
        values = dict(self.workload.build_model().named_parameters())
        zeros = {name: torch.zeros_like(value) for name, value in values.items()}
        slots = build_optimizer(self.setup.optimizer).slots
        state.load({"step": 0, "updates": 0}, {n: v.detach() for n, v in values.items()}, dict.fromkeys(slots, zeros))
        return state

    # ------------------------------------------------------------------------------------------------- the run

    def run(self, before_move: Callable[[], None] = lambda: None, most: int = 60000) -> None:
        """Move until all that live have applied the last step, nodes are over, or nothing moves."""
        for _ in range(most):
            before_move()
            self._send_away()
            if self.is_at_rest():
                return
            moves: list[tuple[Callable[[Any], None], Any]] = [(self._answer, one) for one in self.dials]
            moves += [(self._admit, one) for one in self.waiting if self.membership[one[1]].at_work]
            for link in self._links():
                moves += [(self._deliver, (link, to)) for to in link.ends if link.towards[to] and to in self.live]
            moves += [(self._turn, number) for number in sorted(self.live) if self._has_work(number)]
            if not moves:
                raise AssertionError(f"nothing moves: {self.where()}")
            move, what = self.pick.choice(moves)
            for _ in range(self._patience):
                if what == self._straggler:
                    move, what = self.pick.choice(moves)
            move(what)
        raise AssertionError(f"too many moves: {self.where()}")

    def where(self) -> str:
        return str(
            {
                number: (one.applied, one.placement.ring, one.lost_sentence, self.membership[number]._promised)
                for number, one in self.nodes.items()
                if number in self.live
            }
        )

    def is_at_rest(self) -> bool:
        """Whether all that live have applied the last step, in one ring; or all know that a state is lost."""
        members = [self.nodes[number] for number in self.live]
        if all(one.lost_sentence for one in members):
            return len({one.lost_placement for one in members}) == 1
        return (
            all(one.applied >= self.through and one.is_protected for one in members)
            and len({one.placement.ring for one in members}) == 1
            and set(members[0].placement.ring.order) == self.live
        )

    def kill(self, number: int) -> None:
        """A node dies: some of what it sent last is lost, and its neighbours' links end."""
        self.live.discard(number)
        self.dials = [one for one in self.dials if one[0] != number]
        for link in self._links():
            if number in link.ends:
                other = link.ends[0] if link.ends[1] == number else link.ends[1]
                link.towards[number].clear()
                queue = link.towards[other]
                for _ in range(self.pick.randint(0, len(queue))):
                    queue.pop()
                queue.append("end")

    def wake(self, number: int) -> None:
        """A node that was taken for dead goes on where it stood."""
        self.live.add(number)
        for link in (self.desks[number].next, self.desks[number].before):
            if link is not None:
                link.towards[number].append("end")

    def join(self, number: int, after: int, stages: Sequence[int]) -> None:
        """A process comes, and `after` admits it as soon as it may; not if it is lost before."""
        placement = newcomer(number, self.workload.count)
        desk = self.desks[number] = Desk(self, number)
        node = self.nodes[number] = RingTmpNode(number, self.setup, desk, {}, placement)
        node.allow(self.through)
        self.membership[number] = RingMembership(number, placement, node, desk)
        self.live.add(number)
        self.waiting.append((number, after, tuple(stages)))
        self.hosts[number] = after

    def state(self) -> dict[str, Any]:
        """What the owners have, in the form of `Strategy.state`."""
        parameters: dict[str, Tensor] = {}
        slots: dict[str, dict[str, Tensor]] = {}
        updates = set()
        some = self.nodes[min(self.live)]
        for stage, owner in enumerate(some.placement.owners):
            state = self.nodes[owner].states[stage]
            updates.add(state.updates)
            for name in state.part.views:
                parameters[name] = state.part.view(state.values, name)
                for slot, buffer in state.moments().items():
                    slots.setdefault(slot, {})[name] = state.part.view(buffer, name)
        assert len(updates) == 1
        return {"parameters": parameters, "optimizer": slots, "updates": updates.pop()}

    def count(self, sender: int, to: int, message: Message) -> None:
        """Note who talks to whom."""
        self.sent.add((sender, to))

    # ------------------------------------------------------------------------------------------------- moves

    def _links(self) -> list[Link]:
        found: dict[int, Link] = {}
        for desk in self.desks.values():
            for link in (desk.next, desk.before):
                if link is not None:
                    found[id(link)] = link
        return list(found.values())

    def _admit(self, what: tuple[int, int, tuple[int, ...]]) -> None:
        number, after, stages = what
        self.waiting.remove(what)
        assert self.membership[after].admit(number, stages)

    def _send_away(self) -> None:
        """Processes end that are fenced, or that nobody can admit any more."""
        for number in sorted(self.live):
            desk, host = self.desks[number], self.hosts.get(number)
            is_linked = desk.next is not None or desk.before is not None
            is_forgotten = host is not None and host not in self.live and not is_linked
            if self.nodes[number].is_fenced or (is_forgotten and not self.nodes[number].placement.ring.epoch):
                self.fenced.add(number)
                self.waiting = [one for one in self.waiting if one[0] != number]
                self.kill(number)

    def _deliver(self, what: tuple[Link, int]) -> None:
        link, to = what
        item = link.towards[to].popleft()
        if link not in (self.desks[to].next, self.desks[to].before):
            return  # it was closed on this side
        mailbox, node = self.nodes[to].mailbox, self.nodes[to]
        if isinstance(item, Message) and item.kind in (Kind.FORWARD, Kind.BACKWARD):
            mailbox.put(item.epoch, Key(item.step, item.kind, *item.tags), item.payload)
        elif isinstance(item, Message) and item.kind == Kind.GRADIENT:
            assert not bool((item.payload == Spoiled.MARK).any()), "what was sent had been given back"
            if self.pick.random() < 0.5:
                item = item._replace(payload=node.new_gradient(item.tags[0]).copy_(item.payload))
            mailbox.post((link, item))
        else:
            mailbox.post((link, item))

    def _answer(self, dial: tuple[int, int, Hello]) -> None:
        self.dials.remove(dial)
        caller, to, hello = dial
        if to not in self.live:
            self.nodes[caller].mailbox.post((None, ("refused", to, None)))
            return
        desk = self.desks[to]
        answer = self.membership[to].dialled(hello)
        if not answer.is_accepted:
            self.nodes[caller].mailbox.post((None, ("refused", to, answer)))
            return
        desk.hang_up("before")
        link = desk.before = self.desks[caller].next = Link(caller, to)
        link.towards[caller].append("accepted")

    def _has_work(self, number: int) -> bool:
        node = self.nodes[number]
        return bool(node.mailbox._events) or (not node._is_frozen and node.next_task() is not None)

    def _turn(self, number: int) -> None:
        """A node looks at what has come, and does one task."""
        node, member, desk = self.nodes[number], self.membership[number], self.desks[number]
        for link, event in node.mailbox.events():
            if isinstance(event, tuple) and event[0] == "refused":
                member.refused(event[1], event[2])
            elif link is not desk.next and link is not desk.before:
                continue  # what came over a link that is not used any more
            elif event == "end":
                if link is desk.next:
                    desk.next = None
                    member.successor_lost()
                else:
                    desk.before = None
            elif event == "accepted":
                member.linked()
            elif event.kind in (Kind.WALK, Kind.VERDICT):
                member.receive(event)
            else:
                node.receive(event)
        task = node.next_task()
        if task is not None:
            self._do(node, task)

    def _do(self, node: RingTmpNode, task: Task) -> None:
        if task.work is Work.APPLY:
            self.applied.setdefault(task.step, {})[node.number] = node.apply(task)
            return
        assert task.range is not None
        epoch = node.placement.ring.epoch
        key = (epoch, task.range.index, task.step, task.slot)
        came = node.take(task)
        slot = self.workload.slot(task.step, task.slot)
        if task.work is Work.FORWARD:
            leaf = came["h"].detach().requires_grad_() if came else None
            leaves = {}
            carried = {"h": leaf} if leaf is not None else {}
            for stage in range(task.range.start, task.range.stop):
                state = node.states[stage]
                values = state.of_version(task.version)
                for name in state.part.views:
                    leaves[name] = state.part.view(values, name).detach().requires_grad_()
                gain, shift = leaves[f"stage{stage}.gain"], leaves[f"stage{stage}.shift"]
                h = carried.get("h", torch.cos(torch.arange(float(len(gain))) + slot.number))
                is_last = stage == self.workload.count - 1
                carried = {"loss" if is_last else "h": run_stage(stage, is_last, slot, h, gain, shift)}
            self._graphs[key] = (leaf, leaves, carried)
            node.forwarded(task, {name: tensor.detach() for name, tensor in carried.items()})
            running = node.executor.in_flight(task.range.index)
            where = (epoch, task.range.index)
            self.most_in_flight[where] = max(self.most_in_flight.get(where, 0), running)
            return
        self.order_of_backward.append(key)
        leaf, leaves, carried = self._graphs.pop(key)
        out = next(iter(carried.values()))
        facts = None
        if task.range.is_last:
            root = out / sum(self.setup.tokens(task.step))
            facts = StepFacts([float(out.detach())], slot.source_tokens, slot.inner_square_sums())
        else:
            root = out
        wanted = [*leaves.values(), *([leaf] if leaf is not None else [])]
        found = torch.autograd.grad(root, wanted, came["h"] if came else None)
        buffers = node.gradient_buffers(task)
        for name, gradient in zip(leaves, found, strict=False):
            stage = int(name.removeprefix("stage").partition(".")[0])
            self.setup.parts[stage].view(buffers[stage], name).add_(gradient)
        node.backwarded(task, {"h": found[-1]} if leaf is not None else None, facts)
