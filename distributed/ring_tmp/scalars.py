"""The norm of a step's gradient, its losses and what else all nodes must know: what each says, what all make of it.

A piece of the flat buffer of which a node owns everything is summed there, and its fp64 square sum travels. A chunk in
which several nodes have elements cannot be summed in parts: the sum of squares inside a chunk has an order of its own,
and a root is taken and squared. Its elements travel themselves, 128 KiB a chunk in all, and every node sums them. There
is at most one such chunk for each border between parameters of different nodes.

From the words of all, every node computes by itself the numbers of `single`, to the bit: norms and losses are
`math.fsum`s, whose result does not depend on the order. See `distributed.ring_tmp.barrier` for how words travel.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from distributed.arithmetic import CHUNK, norm, square_sums
from distributed.errors import FrameError
from distributed.ring_tmp.parts import Part, Range
from distributed.ring_tmp.placement import Placement

_HEAD = struct.Struct("<3Q")  # bytes of facts, square sums, elements


@dataclass(frozen=True)
class Contribution:
    """What a node says of a step.

    facts: plain data, see `StepFacts`.
    sums: fp64 square sums of the pieces that are its own.
    elements: what it has of the others [elements], fp32.
    """

    facts: Mapping[str, Any]
    sums: tuple[float, ...]
    elements: torch.Tensor

    def to_bytes(self) -> bytes:
        """As a payload."""
        facts = json.dumps(self.facts).encode()
        sums = struct.pack(f"<{len(self.sums)}d", *self.sums)
        elements = self.elements.detach().contiguous().numpy().tobytes()
        return _HEAD.pack(len(facts), len(sums), len(elements)) + facts + sums + elements

    @classmethod
    def from_bytes(cls, payload: bytes) -> Contribution:
        """What `to_bytes` returned. Raises FrameError for what it cannot have returned."""
        try:
            lengths = _HEAD.unpack_from(payload)
            if _HEAD.size + sum(lengths) != len(payload) or lengths[1] % 8 or lengths[2] % 4:
                raise ValueError
            at = _HEAD.size
            facts = json.loads(payload[at : at + lengths[0]])
            at += lengths[0]
            sums = struct.unpack_from(f"<{lengths[1] // 8}d", payload, at)
        except (struct.error, ValueError):
            raise FrameError(f"{len(payload)} bytes are no node's word of a step") from None
        content = bytearray(payload[at + lengths[1] :])
        return cls(facts, sums, torch.frombuffer(content, dtype=torch.float32) if content else torch.empty(0))


class Pieces:
    """Ranges of the whole flat buffer that are summed each by itself, and which node has what of them.

    Parameters
    ----------
    pieces: in ascending order, each inside one chunk.
    parts, placement: what each stage owns, and who has the stages.
    """

    def __init__(self, pieces: Sequence[Range], parts: Sequence[Part], placement: Placement):
        self._parts = parts
        self._owned: dict[int, list[tuple[Range, list[int]]]] = {node: [] for node in placement.ring.order}
        self._common: list[tuple[Range, dict[int, list[Range]]]] = []  # what each node has of a piece
        stages_of: dict[int, list[int]] = {}
        for stage, part in enumerate(parts):
            for chunk in part.chunks:
                stages_of.setdefault(chunk, []).append(stage)
        for piece in pieces:
            having = {stage: parts[stage].overlap(piece) for stage in stages_of.get(piece[0] // CHUNK, [])}
            stages = [stage for stage, ranges in having.items() if ranges]
            nodes = {placement.owners[stage] for stage in stages}
            if len(nodes) == 1:
                self._owned[nodes.pop()].append((piece, stages))
            elif nodes:
                of_node = {
                    node: sorted(one for stage in stages if placement.owners[stage] == node for one in having[stage])
                    for node in sorted(nodes)
                }
                self._common.append((piece, of_node))

    def contribution(self, node: int, gradients: Mapping[int, torch.Tensor]) -> tuple[tuple[float, ...], torch.Tensor]:
        """A node's square sums and elements, given the gradients of its stages in the parts' own buffers."""
        sums: list[float] = []
        for run, stages in _runs(self._owned[node]):
            if len(stages) == 1:
                start = self._parts[stages[0]].local(run[0][0])
                found = square_sums(gradients[stages[0]], start, start + run[-1][1] - run[0][0])
                sums += found[: len(run)]  # behind the last piece there may be one of no elements
            else:
                mine = {stage: gradients[stage] for stage in stages}
                sums += [square_sum(self._assembled(piece, mine)) for piece in run]
        elements = [
            self._assembled(piece, gradients)[first - piece[0] : last - piece[0]]
            for piece, having in self._common
            for first, last in having.get(node, [])
        ]
        return tuple(sums), torch.cat(elements) if elements else torch.empty(0)

    def norm(self, said: Mapping[int, Contribution]) -> float:
        """The 2-norm over all pieces, from what all nodes say. Raises FrameError where one says too much or little."""
        sums: list[float] = []
        rest: dict[int, torch.Tensor] = {}
        for node, one in said.items():
            common = sum(last - first for _, having in self._common for first, last in having.get(node, []))
            if len(one.sums) != len(self._owned[node]) or one.elements.numel() != common:
                raise FrameError(f"node {node} says other pieces of a step than its own")
            sums += one.sums
            rest[node] = one.elements
        for (start, stop), having in self._common:
            whole = torch.zeros(stop - start)
            for node, ranges in having.items():
                for first, last in ranges:
                    whole[first - start : last - start] = rest[node][: last - first]
                    rest[node] = rest[node][last - first :]
            sums.append(square_sum(whole))
        return norm(sums)

    def _assembled(self, piece: Range, gradients: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """A piece [elements] with what some stages have of it, zero elsewhere."""
        whole = torch.zeros(piece[1] - piece[0])
        for stage, gradient in gradients.items():
            for first, last in self._parts[stage].overlap(piece):
                start = self._parts[stage].local(first)
                whole[first - piece[0] : last - piece[0]] = gradient[start : start + last - first]
        return whole


def square_sum(piece: torch.Tensor) -> float:
    """The square sum of one piece [elements, at most a chunk of them], as `square_sums` makes it."""
    return square_sums(piece)[0]


def _runs(owned: Sequence[tuple[Range, list[int]]]) -> list[tuple[list[Range], list[int]]]:
    """Neighbouring pieces of the same stages together."""
    runs: list[tuple[list[Range], list[int]]] = []
    for piece, stages in owned:
        if runs and runs[-1][1] == stages and runs[-1][0][-1][1] == piece[0]:
            runs[-1][0].append(piece)
        else:
            runs.append(([piece], stages))
    return runs


@dataclass(frozen=True)
class StepFacts:
    """What a node knows of a step beside its gradients; each entry is known to those who compute it.

    losses: sums of token losses, by slot.
    source_tokens: of those slots.
    inner: fp64 square sums of gradients inside the model, by name, of a probed step (`Slot.inner_square_sums`).
    """

    losses: Sequence[float] = ()
    source_tokens: int = 0
    inner: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __add__(self, other: StepFacts) -> StepFacts:
        """What both know."""
        inner = {
            name: [*self.inner.get(name, ()), *other.inner.get(name, ())] for name in {**self.inner, **other.inner}
        }
        return StepFacts(
            [*self.losses, *other.losses],
            self.source_tokens + other.source_tokens,
            inner,
        )


@dataclass(frozen=True)
class Decision:
    """What all nodes know of a step once they have heard each other: the same bits everywhere.

    norm: of the gradient, before clipping.
    loss: per target token.
    clips: by parameter that is cut over nodes and clipped by itself, the norm of its gradient after the whole was.
    """

    step: int
    norm: float
    loss: float
    target_tokens: int
    source_tokens: int
    inner: Mapping[str, float] = field(default_factory=dict)
    clips: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_update(self) -> bool:
        """Whether the step is applied, rather than left out because a number is not finite."""
        return math.isfinite(self.norm) and math.isfinite(self.loss)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; floats keep their bits."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(**data)


def decide(step: int, tokens: int, gradient_norm: float, facts: Sequence[StepFacts]) -> Decision:
    """The numbers of a step from what all nodes say of it, as `single` computes them; `tokens` are its target tokens.

    Neither loss nor norms depend on the order of what is said.
    """
    known = sum(facts, start=StepFacts())
    return Decision(
        step=step,
        norm=gradient_norm,
        loss=math.fsum(known.losses) / tokens,
        target_tokens=tokens,
        source_tokens=known.source_tokens,
        inner={name: norm(sums) for name, sums in known.inner.items()},
    )
