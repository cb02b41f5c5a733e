"""What a piece of code asks of a GPU: kernels, copies, and times at which the host waits for it."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# How the names of the CUDA runtime's and driver's functions begin in torch's profiler; versions and variants follow.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel", "cudaGraphLaunch")
_COPIES = ("cudaMemcpy", "cudaMemset")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_COPIES_ON_DEVICE = ("Memcpy", "Memset")  # how they are called where they are carried out
_SYNCHRONISING = "called a synchronizing CUDA operation"  # how torch's warning begins


@dataclass(frozen=True)
class Launches:
    """Calls of the CUDA runtime, and what became of them.

    launches: calls that make the GPU run kernels; a captured graph is replayed by one. copies: calls that copy or fill
        memory. waits: for a stream, an event or the device, but for the one that ends the measurement.
    kernels: run by the GPU.
    seconds: of wall clock, under the profiler, which slows the host down.
    busy: seconds that kernels and copies took on the GPU.
    """

    launches: int
    copies: int
    waits: int
    kernels: int
    seconds: float
    busy: float


def count_launches(run: Callable[[], object]) -> Launches:
    """Count while `run` is called once. It should have run before, so that nothing is loaded or tuned now."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler talks on stderr
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    events = profiler.key_averages()
    # An operation of the host also tells the time of the kernels that it launched: only the GPU's own events count.
    on_device = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    return Launches(
        launches=_calls(events, _LAUNCHES),
        copies=_calls(events, _COPIES),
        waits=max(0, _calls(events, _WAITS) - 1),
        kernels=sum(event.count for event in on_device) - _calls(on_device, _COPIES_ON_DEVICE),
        seconds=seconds,
        busy=sum(event.self_device_time_total for event in on_device) / 1e6,
    )


@contextmanager
def synchronisations() -> Iterator[Counter[str]]:
    """Counts the operations on a GPU for which torch makes the host wait, by the `file:line` that called them.

    They are there when the context ends. A copy from ordinary memory that was asked not to block may hold up the host
    all the same, and is not among them.
    """
    found: Counter[str] = Counter()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if str(warning.message).startswith(_SYNCHRONISING):
            found[f"{_short(warning.filename)}:{warning.lineno}"] += 1


def _calls(events: Iterable[Any], beginnings: tuple[str, ...]) -> int:
    return sum(event.count for event in events if event.key.startswith(beginnings))


def _short(filename: str) -> str:
    """A file by its place in its package, so that the machine's folders do not show."""
    parts = Path(filename).parts
    for root in ("site-packages", "nmt", "distributed", "scripts"):
        if root in parts[:-1]:
            start = len(parts) - 1 - parts[::-1].index(root)
            return "/".join(parts[start + (root == "site-packages") :])
    return parts[-1]
