"""Buffers that are used again: gradients arrive at every step in pieces of the same few sizes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

import torch

from distributed.large_memory import large_zeros


class BufferPool:
    """fp32 buffers by their number of elements. Receiving threads take, the thread that computes gives back.

    A buffer is known by its address, so none is ever freed: the address must not come to stand for something else. One
    that a broken link had taken is lost to the pool.

    allocate: makes a buffer of so many elements.
    """

    def __init__(self, allocate: Callable[[int], torch.Tensor] = large_zeros) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._spare: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._own: dict[int, torch.Tensor] = {}

    def take(self, elements: int) -> torch.Tensor:
        """A buffer [elements] with whatever content."""
        with self._lock:
            if self._spare[elements]:
                return self._spare[elements].pop()
            buffer = self._allocate(elements)
            self._own[buffer.data_ptr()] = buffer
            return buffer

    def owns(self, buffer: object) -> bool:
        """Whether something is a buffer from here, or begins where one does."""
        return isinstance(buffer, torch.Tensor) and buffer.data_ptr() in self._own

    def give_back(self, buffer: object) -> None:
        """Take a buffer back, also where only its first bytes are in hand; what is not from here is left alone."""
        own = self._own.get(buffer.data_ptr()) if isinstance(buffer, torch.Tensor) else None
        if own is not None:
            with self._lock:
                self._spare[own.numel()].append(own)
