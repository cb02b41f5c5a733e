"""Sums of a flat gradient over all members of a gang, and nothing else: over gloo, and over our links."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.distributed as gloo

from distributed.agent import Job
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Discard
from distributed.links.token import Token
from distributed.ring.all_reduce import RingAllReduce
from distributed.ring.messages import Kind, Ring
from distributed.ring.neighbours import Neighbours
from distributed.shards import buckets

OPTIONS = {
    "link": "auto",
    "bind": "auto",
    "faults": [],
    "heartbeat_seconds": 1.0,
    "deadline_seconds": 30.0,
    "checksum": "auto",
    "tls_certificate": "",
    "tls_key": "",
}


class GlooAllReduce:
    """torch.distributed.all_reduce of all of it at once. It stays zero, so that sums of sums do not overflow."""

    def __init__(self, rank: int, size: int, elements: int):
        self._gradient = torch.zeros(elements).fill_(0.0)  # written, so that its pages are there

    def step(self, index: int) -> None:
        """See `Loop.step`."""
        gloo.all_reduce(self._gradient)


class _Alone:
    """Stands in for the control link: nobody coordinates."""

    def tell(self, message: dict[str, Any]) -> None:
        raise RuntimeError(f"a link of the benchmark failed: {message}")


class OwnAllReduce:
    """`RingAllReduce` over `Neighbours`, as a node has them. link: `shm` or `tcp`."""

    def __init__(self, rank: int, size: int, elements: int, link: str):
        tokens = [Token.generate().reveal()]
        gloo.broadcast_object_list(tokens)
        job = Job("worker", rank, "bench/s1", Token(tokens[0].encode()), OPTIONS | {"link": link}, {})
        self._changed = threading.Condition()
        alone: Any = _Alone()
        self._links = Neighbours(job, alone, self._place, self._deliver, lambda link: None)
        self._buckets = buckets(elements)
        self._spare = [self._links.allocate(elements).fill_(0.0) for _ in range(2)]
        self._sums = RingAllReduce(rank, self._buckets, self._links, self._spare.append)
        addresses: list[Any] = [None] * size
        gloo.all_gather_object(addresses, self._links.addresses)
        ring = Ring(1, tuple(range(size)))
        self._sums.enter(ring)
        self._links.enter(ring, {str(number): one for number, one in enumerate(addresses)})

    def step(self, index: int) -> None:
        """See `Loop.step`."""
        sums = self._sums
        gradient = self._spare.pop(0)
        for bucket in range(len(self._buckets)):
            with self._changed:
                sums.ready(1, index, bucket, gradient)
        with self._changed:
            sums.contribute(1, index, gradient, b"{}")
            self._changed.wait_for(lambda: sums.summed == index)

    def _place(self, frame: Frame) -> torch.Tensor | Discard | None:
        with self._changed:
            return self._sums.place(frame)

    def _deliver(self, frame: Frame, payload: memoryview) -> None:
        content = bytes(payload) if frame.kind == Kind.FACTS else as_tensor(payload, torch.float32)
        with self._changed:
            self._sums.receive(frame, content)
            if self._sums.summed >= frame.step:
                self._changed.notify_all()
