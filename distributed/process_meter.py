"""What a process of a run has used, as it tells in its reports: memory, and the energy counters of its host."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from distributed.energy import EnergyMeter, reading
from distributed.links.addresses import kernel_boot
from distributed.process_memory import peak_bytes


class ProcessMeter:
    """Measures the calling process from now on.

    Parameters
    ----------
    device: `cpu`, or the GPU that it computes on: then its energy and its memory count, too.
    shared: bytes of shared memory that the process has made.
    """

    def __init__(self, device: str = "cpu", shared: Callable[[], int] = lambda: 0):
        self._on_gpu, self._shared = device.startswith("cuda"), shared
        self._energy = EnergyMeter(gpus=[_gpu()] if self._on_gpu else [])
        self._energy.watch()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `host`, `memory_bytes`, with a GPU `device_bytes`, and `energy` as `energy.reading` gives it."""
        found = {"host": host_identity(), "memory_bytes": peak_bytes(self._shared()), "energy": reading(self._energy)}
        if self._on_gpu:
            import torch

            found["device_bytes"] = torch.cuda.max_memory_allocated()
        return found


def host_identity() -> str:
    """What all processes under one kernel have in common, and no others: its boot, whatever container they are in."""
    try:
        return kernel_boot()
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"


def _gpu() -> str:
    """The UUID of the GPU that this process computes on, as NVML has it."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
