"""Memory that processes of one machine share, without a name in any file system.

A segment is an anonymous file of the kernel (memfd), mapped by its owner and by whoever receives its descriptor over a
Unix socket. It exists as long as somebody has it mapped or open; when the last process is gone, however it went, so
is the memory.
"""

from __future__ import annotations

import bisect
import fcntl
import math
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distributed.errors import DistributedError, FrameError

if TYPE_CHECKING:
    import torch

# No process may change the length afterwards: reading beyond the end of a mapping kills the reader.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_HINT = "distribution.link=tcp needs none"


class SharedSegment:
    """One piece of shared memory, mapped into this process for reading and writing.

    number: its name among the segments of the process that made it.
    bytes: all of it.

    The mapping lives as long as anything refers to `bytes` or to a tensor on it.
    """

    def __init__(self, number: int, descriptor: int):
        self.number, self.descriptor = number, descriptor
        length = os.fstat(descriptor).st_size
        # Pages are made now: a fault for each of them later costs more than the copies that are saved.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self.bytes = memoryview(mmap.mmap(descriptor, length, flags, mmap.PROT_READ | mmap.PROT_WRITE))
        self.start = address(self.bytes)
        self.stop = self.start + length

    @classmethod
    def create(cls, number: int, length: int) -> SharedSegment:
        """A new one of zeros. Raises DistributedError where the machine has no room."""
        # The kernel sets no limit to such memory: it would make room by killing processes.
        available = available_bytes()
        if length > available:
            raise DistributedError(
                f"no room for {length:,} bytes, {available:,} are free", where="shared memory", hint=_HINT
            )
        descriptor = os.memfd_create("seq2seq-studies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(descriptor, 0, length)  # pages that are not there would kill the process at first use
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return cls(number, descriptor)
        except OSError as error:
            os.close(descriptor)
            raise DistributedError(
                f"no room for {length:,} bytes: {error.strerror}", where="shared memory", hint=_HINT
            ) from None

    @classmethod
    def received(cls, number: int, descriptor: int) -> SharedSegment:
        """One of a peer's. The descriptor is closed. Raises FrameError where it is not what `create` makes."""
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise FrameError("the peer sent shared memory whose length may change")
            return cls(number, descriptor)
        except (OSError, ValueError) as error:
            raise FrameError(f"the peer sent a descriptor that is no shared memory: {error}") from None
        finally:
            os.close(descriptor)


class SharedArena:
    """A process's own shared memory: what lies in it travels by reference over links that share memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: list[SharedSegment] = []  # by address
        self._next = 1

    def allocate(self, elements: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A flat tensor of zeros in shared memory, fp32 by default.

        Its memory is given back after `close`, when no tensor on it is left, here or in another process.
        """
        import torch

        dtype = torch.float32 if dtype is None else dtype
        length = max(1, elements) * dtype.itemsize
        pages = math.ceil(length / mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            segment = SharedSegment.create(self._next, pages)
            self._next += 1
            bisect.insort(self._segments, segment, key=lambda other: other.start)
        return torch.frombuffer(segment.bytes, dtype=dtype, count=max(1, elements))[:elements]

    @property
    def bytes(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            return sum(len(segment.bytes) for segment in self._segments)

    def find(self, payload: memoryview) -> tuple[SharedSegment, int] | None:
        """The segment in which the payload lies, and where; None where it lies in none."""
        if not self._segments or not payload:
            return None
        start = address(payload)
        with self._lock:
            place = bisect.bisect_right(self._segments, start, key=lambda other: other.start) - 1
            segment = self._segments[place] if place >= 0 else None
        if segment is None or start + len(payload) > segment.stop:
            return None
        return segment, start - segment.start

    def free(self, tensor: torch.Tensor) -> None:
        """Forget the segment of a tensor that `allocate` made; links that know it keep it until they end."""
        with self._lock:
            for segment in self._segments:
                if segment.start == tensor.data_ptr():
                    self._segments.remove(segment)
                    os.close(segment.descriptor)
                    return
        raise ValueError("the tensor is none of this arena's")

    def close(self) -> None:
        """Forget every segment and close its descriptor; tensors that are left stay valid. Safe to call twice."""
        with self._lock:
            for segment in self._segments:
                os.close(segment.descriptor)
            self._segments.clear()


def available_bytes() -> int:
    """Memory of this machine that can be had without taking it from anybody."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def address(data: memoryview) -> int:
    """Where memory begins in this process."""
    place: Any = np.frombuffer(data, np.uint8).__array_interface__["data"]
    return int(place[0])
