"""Memory of parameters and gradients that comes and goes with every step, and is the machine's in between.

What malloc gives back it may keep: between two layers' parameters lies what the graph keeps of them, so that the hole
that one leaves is cut up before the next comes, and a process would grow by the whole model. So each buffer is a
mapping of its own.
"""

from __future__ import annotations

import mmap

import torch

from distributed.ring.segments import Part
from distributed.ring_rotate.plan import BYTES, Unit


def mapped_zeros(elements: int) -> torch.Tensor:
    """A flat fp32 tensor [elements] of zeros, whose memory goes back to the machine with it."""
    return torch.frombuffer(_mapping(elements), dtype=torch.float32, count=elements)


class UnitMemory:
    """The flat buffer of a unit, whose pages are there between `allocate` and `free` only.

    Its addresses stay: the model's parameters are views of it for good, and what a forward pass keeps for the backward
    pass refers to it, and finds there what is gathered anew before the backward pass.
    """

    def __init__(self, unit: Unit):
        self.unit = unit
        self._mapping = _mapping(unit.elements)
        self._is_there = False
        self.flat = torch.frombuffer(self._mapping, dtype=torch.float32, count=unit.elements)
        """[elements]; to be read and written only while it is there."""

    @property
    def bytes(self) -> int:
        """Bytes of memory that it has."""
        return self.unit.elements * BYTES * self._is_there

    def allocate(self) -> None:
        """Have memory, with zeros in it."""
        self._is_there = True  # the kernel gives each page as it is written

    def free(self) -> None:
        """Give the memory back."""
        self._is_there = False
        self._mapping.madvise(mmap.MADV_DONTNEED)

    def part(self, part: Part) -> torch.Tensor:
        """A part of it, for links."""
        return part.of(self.flat)


def _mapping(elements: int) -> mmap.mmap:
    size = max(1, elements) * BYTES
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
