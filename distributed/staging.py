"""Parameters on a GPU and in the host's memory, and the copies between them, made while the GPU computes.

Links read and write the host's memory. Where the model lies on a GPU, each piece of its flat buffers goes further:

    gradient    GPU ─download─▶ host ─link─▶ server    once the backward pass has finished the piece
    parameters  server ─link─▶ host ─upload─▶ GPU      once the piece has arrived

Downloads and uploads have a stream of their own each, so neither waits for the other, nor for what the GPU computes
beside what the piece needs; nothing ever waits for the whole GPU. Why buffers may be used again so soon: a server
answers a piece after it has got that piece's gradient, and a gradient is final when everything that reads its parameter
has been launched before it on the stream that computes.

On a CPU there is nothing to copy. `distribution.staging=always` does it nevertheless, between two buffers in the host's
memory and as late as the rules allow, so that whoever forgets to wait for a copy, or to make it, gets other results.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from distributed.arithmetic import FlatParameters
from distributed.errors import DistributedError
from distributed.shards import Piece
from distributed.timeline import Lane

Push = Callable[[int, torch.Tensor], None]
"""Takes the number of a piece, and the flat buffer in the host's memory in which that piece is ready to be sent."""


class Copy(Protocol):
    """A copy that has been asked for."""

    def wait(self) -> None:
        """Return once it is made."""

    def precede(self) -> None:
        """Let what this thread asks of the device from now on happen after it."""


class Copies(Protocol):
    """How bytes get from a device to the host and back."""

    def pinned(self, elements: int) -> torch.Tensor:
        """fp32 zeros [elements] in the host's memory, where the device reaches them while the host works on."""

    def pin(self, buffer: torch.Tensor) -> torch.Tensor:
        """Let the device reach a buffer of the host's memory in that way; returns it."""

    def download(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """Copy from the device, after everything that this thread has asked of it."""

    def upload(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """Copy to the device, beside whatever it does."""


class CudaCopies:
    """Copies of a GPU, on two streams beside the one that computes. Never run: no GPU was there; see docs/gpu.md."""

    def __init__(self, device: torch.device):
        self._device = device
        self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def pinned(self, elements: int) -> torch.Tensor:
        """See `Copies`."""
        return torch.zeros(elements, pin_memory=True)

    def pin(self, buffer: torch.Tensor) -> torch.Tensor:
        """See `Copies`. Raises DistributedError where CUDA cannot pin memory that it has not made."""
        cudart: Any = torch.cuda.cudart()
        status = cudart.cudaHostRegister(buffer.data_ptr(), buffer.numel() * buffer.element_size(), 0)
        if int(status):
            raise DistributedError(
                f"CUDA cannot pin shared memory: {cudart.cudaGetErrorString(status)}",
                where="distribution.link",
                allowed=["tcp"],
                hint="distribution.link=tcp takes memory that CUDA makes itself",
            )
        return buffer

    def download(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """See `Copies`."""
        final = torch.cuda.Event()
        final.record(torch.cuda.current_stream(self._device))
        self._down.wait_event(final)
        return self._copy(self._down, source, target)

    def upload(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """See `Copies`."""
        return self._copy(self._up, source, target)

    def _copy(self, stream: torch.cuda.Stream, source: torch.Tensor, target: torch.Tensor) -> Copy:
        made = torch.cuda.Event(blocking=True)  # whoever waits for it sleeps: the host's cores have other work
        with torch.cuda.stream(stream), torch.no_grad():
            target.copy_(source, non_blocking=True)
            made.record(stream)
        return _CudaCopy(made, self._device)


class _CudaCopy:
    def __init__(self, made: torch.cuda.Event, device: torch.device):
        self._made, self._device = made, device

    def wait(self) -> None:
        self._made.synchronize()

    def precede(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._made)


class LateCopies:
    """Copies inside the host's memory, each made by whoever waits for it first and not a moment before."""

    def pinned(self, elements: int) -> torch.Tensor:
        """See `Copies`. What is never copied here does not look like a number."""
        return torch.full((elements,), torch.nan)

    def pin(self, buffer: torch.Tensor) -> torch.Tensor:
        """See `Copies`."""
        return buffer.fill_(torch.nan)

    def download(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """See `Copies`."""
        return _LateCopy(source, target)

    def upload(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """See `Copies`."""
        return _LateCopy(source, target)


class _LateCopy:
    def __init__(self, source: torch.Tensor, target: torch.Tensor):
        self._ends: tuple[torch.Tensor, torch.Tensor] | None = (source, target)
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock, torch.no_grad():
            if self._ends is not None:
                source, target = self._ends
                target.copy_(source)
                self._ends = None

    def precede(self) -> None:
        self.wait()


def is_staged(device: torch.device, always: bool) -> bool:
    """Whether what lies on a device is copied to where links are; `always`: on a CPU too.

    Raises DistributedError for a device that nothing is known of.
    """
    if device.type not in ("cpu", "cuda"):
        raise DistributedError(f"parameters on '{device}' cannot be sent", where="device", allowed=["cpu", "cuda"])
    return always or device.type == "cuda"


def copies_of(device: torch.device) -> Copies:
    """How to copy what lies on a device."""
    return CudaCopies(device) if device.type == "cuda" else LateCopies()


class Unstaged:
    """A model in the host's memory: links read and write what is computed with."""

    def __init__(self, flat: FlatParameters):
        self.values = flat.values
        self.release, self.new_buffer = flat.release, flat.new_buffer

    def arrived(self, index: int) -> None:
        """See `Staged`; nothing is to be done."""

    def use(self, pieces: Sequence[int]) -> None:
        """See `Staged`; nothing is to be done."""

    def hand_on(self, index: int, gradient: torch.Tensor, push: Push) -> None:
        """See `Staged`."""
        push(index, gradient)

    def finish(self, gradient: torch.Tensor) -> torch.Tensor:
        """See `Staged`; it is the gradient itself."""
        return gradient

    def close(self) -> None:
        """See `Staged`."""


class Staged:
    """The host's side of a worker's model that lies on a device.

    A thread of its own waits for downloads, so that a piece is sent while the backward pass goes on.

    Parameters
    ----------
    flat: the model's parameters, and its gradients, on the device.
    pieces: the cut in which both travel.
    copies: between there and here.
    allocate: makes a buffer that links send from; None where it may be of any kind.
    lane: of the thread that computes.
    """

    def __init__(
        self,
        flat: FlatParameters,
        pieces: Sequence[Piece],
        copies: Copies,
        allocate: Callable[[int], torch.Tensor] | None,
        lane: Lane,
    ):
        self._flat, self._pieces, self._copies, self._allocate, self._lane = flat, pieces, copies, allocate, lane
        self.values = copies.pinned(flat.values.numel())
        """[elements] of the host's, where parameters arrive."""
        self._uploads: dict[int, Copy] = {}  # by piece, those that nothing has waited for yet
        self._gradient: torch.Tensor | None = None  # the host's buffer of the gradient that is being computed
        self._handed: set[int] = set()
        self._spare: list[torch.Tensor] = []
        self._failure: Exception | None = None
        self._downloads: queue.Queue[tuple[Copy, int, torch.Tensor, Push] | None] = queue.Queue()
        threading.Thread(target=self._push_downloads, name="staging", daemon=True).start()

    def arrived(self, index: int) -> None:
        """A piece of `values` has come: take it to the device."""
        piece = self._pieces[index]
        self._uploads[index] = self._copies.upload(piece.of(self.values), piece.of(self._flat.values.detach()))

    def use(self, pieces: Sequence[int]) -> None:
        """The device is about to read these pieces of the parameters, as they have arrived."""
        for index in pieces:
            copy = self._uploads.pop(index, None)
            if copy is not None:
                with self._lane.copy:
                    copy.precede()

    def hand_on(self, index: int, gradient: torch.Tensor, push: Push) -> None:
        """A piece of a gradient on the device is final: bring it here, and let `push` have it."""
        self._download(index, gradient, push)

    def finish(self, gradient: torch.Tensor) -> torch.Tensor:
        """Bring here what was not handed on, and wait for all of it; the device's buffer is given back.

        Returns the host's, which is the caller's, who gives it to `release`. Raises what went wrong with a piece.
        """
        for piece in self._pieces:
            if piece.index not in self._handed:
                self._download(piece.index, gradient, lambda index, host: None)
        with self._lane.copy:
            self._downloads.join()
        if self._failure is not None:
            raise self._failure
        assert self._gradient is not None
        host, self._gradient = self._gradient, None
        self._handed.clear()
        self._flat.release(gradient)
        return host

    def new_buffer(self) -> torch.Tensor:
        """A buffer of the host's with whatever content, for who gives it to `release`."""
        with contextlib.suppress(IndexError):  # two threads may want the last one
            return self._spare.pop()
        elements = self._flat.values.numel()
        return self._copies.pin(self._allocate(elements)) if self._allocate else self._copies.pinned(elements)

    def release(self, host: torch.Tensor) -> None:
        """Give a buffer of `finish` back; twice does no harm."""
        if not any(spare is host for spare in self._spare):
            self._spare.append(host)

    def close(self) -> None:
        """End the thread."""
        self._downloads.put(None)

    def _download(self, index: int, gradient: torch.Tensor, push: Push) -> None:
        if self._gradient is None:
            self._gradient = self.new_buffer()
        piece = self._pieces[index]
        copy = self._copies.download(piece.of(gradient), piece.of(self._gradient))
        self._handed.add(index)
        self._downloads.put((copy, index, self._gradient, push))

    def _push_downloads(self) -> None:
        while (download := self._downloads.get()) is not None:
            copy, index, host, push = download
            try:
                copy.wait()
                push(index, host)
            except Exception as error:  # raised by whoever waits for all of them
                self._failure = error
            finally:
                self._downloads.task_done()


Staging = Staged | Unstaged


def choose_device(device: str, number: int) -> None:
    """Let this thread compute on a device that it sees: where there are several GPUs, workers take turns.

    device: the workload's, `cpu` or `cuda`. number: the worker's.

    Raises DistributedError where there is no GPU to see.
    """
    if not device.startswith("cuda"):
        return
    count = torch.cuda.device_count()
    if not count:
        raise DistributedError(
            "sees no GPU, and the run computes on one", hint="distribution.resources.worker.gpu=1, or device=cpu"
        )
    torch.cuda.set_device(number % count)
