"""Recurrent encoders cut into layers, and each layer into its directions.

A direction alone computes what `nmt.models.encoder.read` computes of both at once, in float32 bit for bit; in lower
precision it may not, see `nmt.models.recurrent.arithmetic.product`, and there directions stay together. Inside the
encoder sentences are carried packed, [directions, total, units].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nmt.config.schema import CellConfig
from nmt.models.cells import CellStack
from nmt.models.dropout import Dropout
from nmt.models.encoder import RecurrentStack, StackedBidirectionalEncoder, read, zero_beyond_end
from nmt.models.recurrent.packing import SentencePacking
from nmt.models.residual import Residual
from nmt.models.stages import SOURCE, Part, Slot

WAYS = ("forwards", "backwards")
Group = tuple[int, ...]  # directions that are read at once


@dataclass(frozen=True)
class DirectionDropout:
    """The masks of one direction out of those that are drawn for both, [2, …]."""

    both: Dropout
    direction: int

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """One direction's part [1, …] of the mask called `name`."""
        masks = self.both.mask(name, (2, *shape[1:]), p, like)
        return None if masks is None else masks[self.direction : self.direction + 1]

    def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
        """`x` [1, …] times its part of the mask called `name`."""
        mask = self.mask(name, x.shape, p, x)
        return x if mask is None else x * mask


def stack_parts(stacks: Sequence[RecurrentStack], fields: Collection[str], directions: bool) -> list[Part]:
    """Parts of `nmt.models.encoder.read_stacks`: the layers of one direction, then those of the other.

    fields: those of `EncoderOutput` that the decoder reads.
    directions: whether each direction is a part of its own, or a part is a layer of both.
    """
    return _Stacks(stacks, fields, directions).parts()


def joined_parts(encoder: StackedBidirectionalEncoder, fields: Collection[str], directions: bool) -> list[Part]:
    """Parts of a stacked bidirectional encoder: a layer's two directions, of which the second joins them.

    Arguments as for `stack_parts`.
    """
    return _JoinedLayers(encoder, fields, directions).parts()


class _Layers:
    """What both kinds share: groups of directions, and the names of what is carried.

    `encoder.<layer>` (with directions apart, `encoder.<direction>.<layer>`) is what enters a layer.
    """

    def __init__(
        self,
        cells: Sequence[CellStack],
        residual: Residual,
        config: CellConfig,
        fields: Collection[str],
        directions: bool,
    ):
        self.cells, self.residual, self.config, self.fields = [list(own) for own in cells], residual, config, fields
        self.ways, self.layers = len(cells), len(cells[0])
        self.groups: list[Group] = [(way,) for way in range(self.ways)] if directions else [tuple(range(self.ways))]
        self.sizes = [len(group) for group in self.groups]
        self.dense = residual.active and residual.config.dense
        self.all_finals = [
            name for way in range(self.ways) for layer in range(self.layers) for name in self.finals(layer, (way,))
        ]

    def finals(self, layer: int, group: Group) -> list[str]:
        """Names of the parts of a layer's final states, by direction, where the decoder reads them."""
        parts = range(self.cells[0][layer].state_parts) if "final_state" in self.fields else ()
        return [f"final.{WAYS[way]}.{layer}.{part}" for way in group for part in parts]

    def before(self, layer: int, prefix: str = "encoder") -> list[str]:
        """What a layer reads of all that was passed on before: its input, and with dense connections everything."""
        return [f"{prefix}.{number}" for number in range(0 if self.dense else layer, layer + 1)]

    def packing(self, slot: Slot) -> SentencePacking:
        return SentencePacking(slot.batch.source_lengths, slot.batch.source.shape[1], self.ways)

    def read(
        self, slot: Slot, x: Tensor, packing: SentencePacking, layer: int, group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [group, total, units] of a layer over packed x, and its final states by name."""
        dropout = slot.dropout if len(group) == self.ways else DirectionDropout(slot.dropout, group[0])
        cells = [self.cells[way][layer] for way in group]
        y, final = read(cells, x, packing, f"encoder.{layer}", self.config, dropout)
        states = [part for of_way in zip(*final, strict=True) for part in of_way]
        names = self.finals(layer, group)
        return y, dict(zip(names, states, strict=True)) if names else {}

    def joined_finals(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = [found[name] for name in self.all_finals]
        return {"final_state": torch.cat(states, dim=-1)} if states else {}


class _Stacks(_Layers):
    def __init__(self, stacks: Sequence[RecurrentStack], fields: Collection[str], directions: bool):
        cells = [stack.cells for stack in stacks]
        super().__init__(cells, stacks[0].residual, stacks[0].config, fields, directions)
        self.stacks = stacks
        apart = len(self.groups) > 1
        self.prefixes = [f"encoder.{WAYS[group[0]]}" if apart else "encoder" for group in self.groups]
        self.packed = [f"{prefix}.packed" for prefix in self.prefixes]
        self.tops = [f"{prefix}.{self.layers}" for prefix in self.prefixes] if "outputs" in fields else []

    def parts(self) -> list[Part]:
        return [self._part(number, layer) for number in range(len(self.groups)) for layer in range(self.layers)]

    def _part(self, number: int, layer: int) -> Part:
        group, prefix = self.groups[number], self.prefixes[number]
        above, before = f"{prefix}.{layer + 1}", self.before(layer, prefix)
        ends = layer == self.layers - 1
        last = ends and number == len(self.groups) - 1

        def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            packing = self.packing(slot)
            found = dict(carried)
            if layer == 0:
                if number == 0:
                    found.update(zip(self.packed, packing.pack(carried[SOURCE]).split(self.sizes), strict=True))
                found[before[0]] = self._entered(found[self.packed[number]], group)
            y, states = self.read(slot, found[before[-1]], packing, layer, group)
            found.update(states)
            if self.tops or not ends:
                found[above] = self.residual.combine(y, [found[name] for name in before])
            if last and self.tops:
                found["outputs"] = packing.unpack(torch.cat([found[name] for name in self.tops]))
            return found | self.joined_finals(found) if last else found

        makes = [above, *self.finals(layer, group)]
        reads = list(before)
        if layer == 0:
            reads = [SOURCE] if number == 0 else [self.packed[number]]
            makes += [before[0], *(self.packed[1:] if number == 0 else [])]
        if last:
            reads += [name for name in (*self.tops, *self.all_finals) if name not in makes]
            makes += self.fields
        cells = [self.cells[way][layer] for way in group]
        residuals = [self.stacks[way].residual for way in group] if layer == 0 else []
        return Part(f"{prefix}.{layer}", run, reads, makes, (*cells, *residuals))

    def _entered(self, packed: Tensor, group: Group) -> Tensor:
        """What enters the first layer: [group, total, units]."""
        if self.residual.input_transform is None:
            return packed
        return torch.stack([self.stacks[way].residual.enter(own) for way, own in zip(group, packed, strict=True)])


class _JoinedLayers(_Layers):
    def __init__(self, encoder: StackedBidirectionalEncoder, fields: Collection[str], directions: bool):
        cells = (encoder.forwards, encoder.backwards)
        super().__init__(cells, encoder.residual, encoder.config, fields, directions)

    def parts(self) -> list[Part]:
        return [self._part(layer, number) for layer in range(self.layers) for number in range(len(self.groups))]

    def _part(self, layer: int, number: int) -> Part:
        group, apart, first = self.groups[number], len(self.groups) > 1, number == 0
        joins, top = number == len(self.groups) - 1, layer == self.layers - 1
        before, above, packed = self.before(layer), f"encoder.{layer + 1}", f"encoder.{layer}.packed"
        outputs = [f"encoder.{layer}.{WAYS[own[0]]}.outputs" for own in self.groups]

        def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            packing = self.packing(slot)
            found = dict(carried)
            if first and layer == 0:
                found[before[0]] = self.residual.enter(carried[SOURCE])
            if first:
                own, *others = packing.pack(found[before[-1]]).split(self.sizes)
                found.update((packed, other) for other in others)
            else:
                own = carried[packed]
            found[outputs[number]], states = self.read(slot, own, packing, layer, group)
            found.update(states)
            if joins and (not top or "outputs" in self.fields):
                y = packing.unpack(torch.cat([found[name] for name in outputs]))
                found[above] = self.residual.combine(
                    y, [found[name] for name in before] if self.residual.active else []
                )
            if not (joins and top):
                return found
            if "outputs" in self.fields:
                found["outputs"] = zero_beyond_end(found[above], slot.batch.source_lengths)
            return found | self.joined_finals(found)

        reads = set(before if first or self.residual.active else [])
        makes = {*self.finals(layer, group), *([above] if joins else outputs[:1])}
        if first and layer == 0:
            reads, makes = {SOURCE}, makes | set(before)
        if apart:
            reads, makes = (reads, makes | {packed}) if first else (reads | {packed, outputs[0]}, makes)
        if joins and top:
            reads |= set(self.all_finals) - makes
            makes |= set(self.fields)
        modules = (*(self.cells[way][layer] for way in group), *([self.residual] if first and layer == 0 else []))
        return Part(f"encoder.{layer}.{WAYS[group[0]]}" if apart else f"encoder.{layer}", run, reads, makes, modules)
