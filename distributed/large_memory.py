"""Private memory for large buffers, in large pages where the kernel has them.

A step streams through every buffer, and with pages of 4 KiB a good part of that time goes to looking up where they are,
in a virtual machine twice over. Kernels that give large pages to whoever asks (`transparent_hugepage` is `madvise`) are
asked here; torch's own allocator does not.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

from distributed.links.shared_memory import address

LARGE_PAGE = 1 << 21  # bytes
SMALLEST = 2 * LARGE_PAGE  # bytes: what is shorter has no use for them


def large_zeros(elements: int) -> torch.Tensor:
    """A flat fp32 tensor of zeros on the CPU, like `torch.zeros(elements)`. Its memory goes with it."""
    length = 4 * elements
    if length < SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(elements)
    # Pages that are never touched take no memory, so there is room to begin where a large one does.
    memory = mmap.mmap(-1, length + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -address(memoryview(memory)) % LARGE_PAGE
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE, start, length // LARGE_PAGE * LARGE_PAGE)
    return torch.frombuffer(memory, dtype=torch.float32, count=elements, offset=start)
