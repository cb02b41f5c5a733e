"""The ring softmax over simulated links, and the loss of one process to compare it with."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nmt.data.batching import Batch
from nmt.models.layers import Affine
from nmt.models.loss import real_tokens, training_loss
from nmt.models.ring_softmax import ChunkedAffine, RingSoftmax
from nmt.models.stages import MIX, Run

LENGTHS = ((3, 1, 5, 2), (4, 4), (1,), (6, 2, 6, 6, 1))  # target tokens of each sentence, slot by slot


@dataclass(frozen=True)
class Slot:
    """What the loss reads of a slot."""

    batch: Batch
    target_tokens: int
    is_scored: bool = False


@dataclass
class Example:
    """Slots, what a decoder made of them [time, batch, units], and an output layer."""

    output: Affine
    slots: list[Slot]
    mixes: list[Tensor]

    @property
    def tokens(self) -> int:
        return sum(slot.target_tokens for slot in self.slots)


def example(
    vocabulary: int, units: int, dtype: torch.dtype = torch.float32, seed: int = 0, lengths: Any = LENGTHS
) -> Example:
    """Random numbers; padding holds words that must not count."""
    generator = torch.Generator().manual_seed(seed)
    output = Affine(units, vocabulary).to(dtype)
    for parameter in output.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator).mul(0.5).to(dtype)
    slots, mixes = [], []
    for sentences in lengths:
        batch, time = len(sentences), max(sentences)
        words = torch.randint(0, vocabulary, (batch, time), generator=generator)
        own = torch.tensor(sentences)
        slots.append(Slot(Batch(words, own, words, words, own), int(own.sum())))
        mixes.append(torch.randn(time, batch, units, dtype=torch.float64, generator=generator).to(dtype))
    return Example(output, slots, mixes)


@dataclass
class Result:
    """Losses of the slots, gradients of what the decoder made of each, and those of weight and bias over all slots."""

    losses: list[Tensor]
    mixes: list[Tensor]
    weight: Tensor
    bias: Tensor

    def __iter__(self) -> Any:
        return iter([*self.losses, *self.mixes, self.weight, self.bias])


def in_one_process(
    given: Example, smoothing: float = 0.0, chunks: int = 1, context: Callable[[], Any] = nullcontext
) -> Result:
    """As `single` does it."""
    output, losses, gradients = given.output, [], []
    for parameter in output.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for slot, mix in zip(given.slots, given.mixes, strict=True):
        leaf = mix.clone().requires_grad_()
        with context():
            hidden, targets = real_tokens(leaf, slot.batch, slot.target_tokens)
            loss = training_loss(hidden, output.weight, output.bias, targets, smoothing, chunks)
        (loss / given.tokens).backward()
        assert leaf.grad is not None
        losses.append(loss.detach())
        gradients.append(leaf.grad)
    assert output.weight.grad is not None
    assert output.bias.grad is not None
    return Result(losses, gradients, output.weight.grad, output.bias.grad)


@dataclass
class _Message:
    """On its way to whoever holds `chunk`, forwards to successors, or with gradients to predecessors."""

    is_back: bool
    chunk: int
    slot: int
    tensors: Mapping[str, Tensor]


@dataclass
class _Visit:
    leaves: dict[str, Tensor]
    made: dict[str, Tensor]


@dataclass
class RingOfNodes:
    """`owners[c]` holds chunk c. Messages go to neighbours only; which one is delivered next is drawn from `seed`."""

    given: Example
    owners: Sequence[int]
    nodes: int
    runs: Sequence[Run]
    context: Callable[[], AbstractContextManager[Any]]
    seed: int = 0
    hops: dict[bool, list[int]] = field(default_factory=lambda: {False: [], True: []})  # bytes of each

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Losses, and gradients of what the decoder made; parameters collect theirs."""
        pick, count = random.Random(self.seed), len(self.given.slots)
        links: dict[tuple[int, int, bool], deque[_Message]] = {}
        self._visits: dict[tuple[int, int], _Visit] = {}
        losses: dict[int, Tensor] = {}
        gradients: dict[int, Tensor] = {}
        sent: list[tuple[Tensor, int]] = []

        def send(node: int, message: _Message) -> None:
            to = (node + (-1 if message.is_back else 1)) % self.nodes
            self.hops[message.is_back].append(sum(tensor.nbytes for tensor in message.tensors.values()))
            sent.extend((tensor, tensor._version) for tensor in message.tensors.values())
            links.setdefault((node, to, message.is_back), deque()).append(message)

        def take(node: int, message: _Message) -> None:
            while self.owners[message.chunk] == node:
                following = self._back(message) if message.is_back else self._there(message)
                if "loss" in following.tensors:
                    losses[message.slot] = following.tensors["loss"]
                    following = _Message(True, message.chunk, message.slot, {})
                elif following.chunk < 0:
                    gradients[message.slot] = following.tensors[MIX]
                    return
                message = following
            send(node, message)

        waiting = list(range(count))
        while len(gradients) < count:
            ready = [key for key, queue in links.items() if queue]
            if waiting and (not ready or pick.random() < 0.5):
                slot = waiting.pop(0)
                take(self.owners[0], _Message(False, 0, slot, {MIX: self.given.mixes[slot]}))
                continue
            key = pick.choice(ready)
            message = links[key].popleft()
            tensors = {name: self._delivered(tensor, pick) for name, tensor in message.tensors.items()}
            take(key[1], _Message(message.is_back, message.chunk, message.slot, tensors))
        assert all(tensor._version == version for tensor, version in sent)  # nobody writes to what it was sent
        return [losses[slot] for slot in range(count)], [gradients[slot] for slot in range(count)]

    def _there(self, message: _Message) -> _Message:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in message.tensors.items()}
        with self.context():
            carried = {name: leaf.view_as(leaf) for name, leaf in leaves.items()}
            made = self.runs[message.chunk](self.given.slots[message.slot], carried)
        self._visits[message.chunk, message.slot] = _Visit(leaves, made)
        tensors = {name: tensor.detach() for name, tensor in made.items()}
        return _Message(False, message.chunk + 1, message.slot, tensors)

    def _back(self, message: _Message) -> _Message:
        visit = self._visits.pop((message.chunk, message.slot))
        if "loss" in visit.made:
            (visit.made["loss"] / self.given.tokens).backward()
        else:
            torch.autograd.backward(list(visit.made.values()), [message.tensors[name] for name in visit.made])
        found = {name: leaf.grad for name, leaf in visit.leaves.items() if leaf.grad is not None}
        return _Message(True, message.chunk - 1, message.slot, found)

    @staticmethod
    def _delivered(tensor: Tensor, pick: random.Random) -> Tensor:
        """The tensor itself, as through shared memory, or a copy somewhere."""
        if pick.random() < 0.3:
            return tensor
        offset = pick.randrange(16)
        buffer = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
        return buffer[offset:].view(tensor.shape).copy_(tensor)


def in_a_ring(
    given: Example,
    owners: Sequence[int],
    smoothing: float = 0.0,
    keep: bool = True,
    context: Callable[[], Any] = nullcontext,
    seed: int = 0,
) -> tuple[Result, RingOfNodes]:
    """By nodes of which each holds the chunks that are its own; a chunk for each owner."""
    output = ChunkedAffine(given.output, len(owners))
    assert len(output.rows) == len(owners)
    for parameter in output.parameters():
        parameter.grad = torch.zeros_like(parameter)
    runs = [part.run for part in RingSoftmax(output, smoothing, keep).parts()]
    ring = RingOfNodes(given, owners, max(owners) + 1, runs, context, seed)
    losses, mixes = ring.run()
    weight, bias = (
        torch.cat([one.grad for one in some if one.grad is not None]) for some in (output.weight, output.bias)
    )
    return Result(losses, mixes, weight, bias), ring
