"""The gradient of some of a step's groups, handed on piece by piece while the backward pass is still under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.arithmetic import FlatParameters
from distributed.gradient_buffers import GradientBuffers
from distributed.shards import Piece
from distributed.slot_tree import Node
from distributed.strategy import Stage, Workload


@dataclass
class LeafFacts:
    """What a group gave beside its gradient: losses by slot, tokens, and square sums inside the model if probed."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    source_tokens: int = 0
    inner: dict[str, list[float]] = field(default_factory=dict)


class NodeGradients:
    """Gradients of nodes of the summation tree.

    Parameters
    ----------
    workload: says what the slots are.
    flat: the parameters, whose gradient buffers are taken and filled.
    stages: the model's.
    pieces: the cut of the flat buffer in which gradients are handed on.
    wait: called with the pieces of the parameters that a stage is about to read; returns when they are up to date.
    only_read: whether nobody writes to the buffers that `compute` hands on; see `GradientBuffers`.
    """

    def __init__(
        self,
        workload: Workload,
        model: torch.nn.Module,
        flat: FlatParameters,
        pieces: Sequence[Piece],
        wait: Callable[[Sequence[int]], None],
        only_read: bool = False,
    ):
        self._workload, self._flat, self._pieces, self._wait = workload, flat, pieces, wait
        self._stages: list[tuple[Stage, list[int]]] = [
            (stage, self._pieces_of(stage.parameter_names())) for stage in workload.stages(model)
        ]
        self._of_parameter = {name: self._pieces_of([name]) for name in flat.layout}
        self._missing = [0] * len(pieces)  # parameters of each piece whose gradient is not final yet
        self._finish: Callable[[int], None] | None = None
        self._buffers = GradientBuffers(flat, dict(model.named_parameters()), only_read, self._came)

    def compute(
        self,
        step: int,
        node: Node,
        probe: bool,
        ready: Callable[[int, torch.Tensor], None],
        own_mean: bool = False,
    ) -> tuple[dict[int, LeafFacts], torch.Tensor]:
        """Compute the gradient of a node's leaves, in a flat buffer of its own.

        own_mean: divide by the target tokens of these leaves, not by those of the whole step.
        ready: called with each piece's number and that buffer as soon as the piece is final, in the order in which the
            backward pass comes to them.

        Returns the facts of each leaf, and the buffer, which is the caller's, who gives it to `FlatParameters.release`.
        """
        tokens = self._workload.slot_tokens(step)
        each = self._workload.plan.slots_per_group
        total = sum(tokens[node[0] * each : node[1] * each] if own_mean else tokens)
        facts: dict[int, LeafFacts] = {}
        losses: dict[int, list[torch.Tensor]] = {}
        sums: list[torch.Tensor] = []
        try:
            for leaf in range(*node):
                sums.append(self._buffers.begin())
                slots = [slot for slot in range(leaf * each, (leaf + 1) * each) if tokens[slot]]
                last = leaf == node[1] - 1
                finish = self._final(sums, ready) if last else None
                facts[leaf], losses[leaf] = self._leaf(step, slots, total, probe, finish)
                if not last:
                    self._merge(sums, leaf - node[0] + 1)
        except BaseException:
            for buffer in sums:  # nobody is given them
                self._buffers.forget(buffer)
                self._flat.release(buffer)
            raise
        for left, right in zip(sums[-2::-1], sums[:0:-1], strict=True):
            self._buffers.added(left, right)
            self._flat.release(right)
        for leaf, some in losses.items():  # at the end: who looks at a number of a GPU's waits for all that it does
            facts[leaf].losses = torch.stack(some).tolist() if some else []
        return facts, sums[0]

    def _leaf(
        self, step: int, slots: Sequence[int], tokens: int, probe: bool, finish: Callable[[int], None] | None
    ) -> tuple[LeafFacts, list[torch.Tensor]]:
        facts = LeafFacts()
        losses = []
        for number in slots:
            slot = self._workload.slot(step, number, probe)
            with self._workload.autocast():
                loss = self._loss(slot)
            if finish is not None and number == slots[-1]:
                self._expect(finish)
            (loss / tokens).backward()
            losses.append(loss.detach())
            facts.tokens += slot.target_tokens
            facts.source_tokens += slot.source_tokens
            if probe:
                for name, sums in slot.inner_square_sums().items():
                    facts.inner.setdefault(name, []).extend(sums)
        self._buffers.end()
        if finish is not None:
            if not slots:
                self._expect(finish)
            self._rest()
        return facts, losses

    def _loss(self, slot: Any) -> torch.Tensor:
        carried: Mapping[str, torch.Tensor] = {}
        for stage, pieces in self._stages:
            self._wait(pieces)
            carried = stage(slot, carried)
        return carried["loss"]

    def _final(self, sums: list[torch.Tensor], ready: Callable[[int, torch.Tensor], None]) -> Callable[[int], None]:
        """Add a piece up over the node's parts, from the right, as `PairwiseSum.result` does, and hand it on."""

        def finish(index: int) -> None:
            piece = self._pieces[index]
            for left, right in zip(sums[-2::-1], sums[:0:-1], strict=True):
                piece.of(left).add_(piece.of(right))
            ready(index, sums[0])

        return finish

    def _expect(self, finish: Callable[[int], None]) -> None:
        self._missing = [0] * len(self._pieces)
        for pieces in self._of_parameter.values():
            for index in pieces:
                self._missing[index] += 1
        self._finish = finish

    def _came(self, name: str) -> None:
        """A backward pass has added the gradient of a parameter."""
        if self._finish is None:
            return
        for index in self._of_parameter[name]:
            self._missing[index] -= 1
            if self._missing[index] == 0:
                self._finish(index)

    def _rest(self) -> None:
        """What no backward pass came to: parameters that this slot did not use."""
        finish, self._finish = self._finish, None
        assert finish is not None
        for index, missing in enumerate(self._missing):
            if missing:
                finish(index)

    def _merge(self, sums: list[torch.Tensor], count: int) -> None:
        """Add neighbours of equal height after leaf number `count` of a node, as `PairwiseSum.add` does."""
        while count % 2 == 0:
            right = sums.pop()
            sums[-1].add_(right)
            self._buffers.added(sums[-1], right)
            self._flat.release(right)
            count //= 2

    def _pieces_of(self, names: Iterable[str]) -> list[int]:
        found = set()
        for name in names:
            start, shape = self._flat.layout[name]
            stop = start + shape.numel()
            found |= {piece.index for piece in self._pieces if piece.start < stop and start < piece.stop}
        return sorted(found)
