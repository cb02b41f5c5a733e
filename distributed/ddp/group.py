"""The process group in which workers sum gradients: an object of its own, beside torch's global one.

Workers find each other over a store of the coordinator's, which listens where the coordinator does and nowhere else.
The engine's own connections are neither guarded by the run's token nor encrypted: they are for trusted networks.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BroadcastOptions, ProcessGroup
from torch.distributed.distributed_c10d import GroupName

from distributed.errors import DistributedError

MEET_SECONDS = 600.0  # that a worker waits for the others to come

GLOO_SIGNS = ("gloo/", "Application timeout caused pair closure")
"""In the text of Gloo's errors, which are plain RuntimeErrors."""


def check_gpus(engine: str, workers: int, share_host: bool) -> None:
    """Raise DistributedError where workers that share this host have fewer GPUs than NCCL wants: one each."""
    if engine != "nccl" or not share_host or workers <= (there := torch.cuda.device_count()):
        return
    raise DistributedError(
        f"NCCL refuses workers that share a GPU: this host has {there} for {workers} worker{'s' * (workers > 1)}",
        where="distribution.workers",
        allowed=[f"<= {there}"] if there else None,
        hint="distribution.engine=gloo",
    )


def open_store(host: str) -> tuple[dist.TCPStore, int]:
    """A store at a free port of an address of this host, and the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family)
    port = listening.getsockname()[1]
    store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return store, port


def join_group(
    engine: str, host: str, port: int, *, address: str, rank: int, size: int, device: torch.device, seconds: float
) -> ProcessGroup:
    """The group of all workers, once all of them are there.

    Parameters
    ----------
    engine: `gloo` or `nccl`.
    host, port: of the store.
    address: of this host, at which others reach it.
    device: what this worker computes on.
    seconds: the deadline of each exchange.

    Raises DistributedError for NCCL without a GPU.
    """
    if engine == "nccl" and device.type != "cuda":
        raise DistributedError(
            f"NCCL sums on GPUs, and this process computes on '{device}'", where="distribution.engine", allowed=["gloo"]
        )
    store = dist.PrefixStore("ddp", dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=MEET_SECONDS)))
    group = ProcessGroup(store, rank, size)
    make = _nccl if engine == "nccl" else _gloo
    kind, backend = make(store, rank, size, address, timedelta(seconds=seconds))
    group._set_default_backend(kind)
    for place in {"cpu", device.type} if engine == "gloo" else {device.type}:
        group._register_backend(torch.device(place), kind, backend)
    group._set_group_name(GroupName("ddp"))
    return group


def _gloo(store: dist.Store, rank: int, size: int, address: str, timeout: timedelta) -> tuple[Any, Any]:
    engine: Any = dist.ProcessGroupGloo  # its options are not in torch's stubs
    options = engine._Options()
    options._devices, options._timeout = [engine.create_device(hostname=address)], timeout
    return ProcessGroup.BackendType.GLOO, engine(store, rank, size, options)


def _nccl(store: dist.Store, rank: int, size: int, address: str, timeout: timedelta) -> tuple[Any, Any]:
    """NCCL finds its own way between hosts."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroup.BackendType.NCCL, dist.ProcessGroupNCCL(store, rank, size, options)


def broadcast(group: ProcessGroup, tensor: torch.Tensor) -> None:
    """Give every worker the first one's content."""
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([tensor], options).wait()


def is_of_engine(error: Exception) -> bool:
    """Whether an error is that of an exchange: how a worker learns of another's end."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in GLOO_SIGNS)
