"""Memory of a unit's parameters that comes and goes, while parameters and graphs hold on to the same storage."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from distributed.ring.segments import Part
from distributed.ring_rotate.plan import BYTES, Unit


class UnitMemory:
    """The flat buffer of a unit; it has memory from the start, for whoever makes views of it.

    The model's parameters are views of it for good. What a forward pass keeps for the backward pass refers to the same
    storage, so that it finds there what is gathered anew before the backward pass. Between the two the storage has no
    memory at all.
    """

    def __init__(self, unit: Unit):
        self.unit = unit
        self.flat = torch.empty(unit.elements)
        """[elements]; to be read and written only while it is there."""
        self._storage = self.flat.untyped_storage()

    @property
    def bytes(self) -> int:
        """Bytes of memory that it has."""
        return self._storage.nbytes()

    def allocate(self) -> None:
        """Have memory, with whatever content."""
        self._storage.resize_(self.unit.elements * BYTES)

    def free(self) -> None:
        """Give the memory back."""
        self._storage.resize_(0)

    def bytes_of(self, part: Part) -> memoryview:
        """The memory of a part, for links, as long as it is there."""
        # Whatever is made a NumPy array in the usual way can never be resized again.
        address = self._storage.data_ptr() + part.start * BYTES
        return np.ctypeslib.as_array((ctypes.c_ubyte * (part.elements * BYTES)).from_address(address)).data
