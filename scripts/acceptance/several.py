"""Steps of several processes that share the GPU: parameters staged through the host, and sums by NCCL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from acceptance.arithmetic import FIRST_STEP, LATER_STEPS
from acceptance.families import strategy_of
from acceptance.outcome import NOT_ON_CPU, Outcome
from acceptance.setting import Setting
from distributed.links.shared_memory import SharedArena
from distributed.staging import Copies, copies_of
from nmt import registry
from nmt.training.checkpoint import digest_tensors
from nmt.training.device import prepare_device
from nmt.training.fit import strategy_options
from nmt.training.workload import workload_spec

SLOTS = ["batch.micro_batches=2"]
SERVED = ["distribution=parameter_server", "distribution.staging=always"]
ONE = [*SERVED, "distribution.workers=1", "distribution.servers=1"]
FOUR = [*SERVED, "distribution.workers=2", "distribution.servers=2"]
ARMS = {
    "1 worker, 1 server": ONE,
    "the same again": ONE,
    "2 workers, 2 servers, shared memory": FOUR,
    "2 workers, 2 servers, TCP": [*FOUR, "distribution.link=tcp"],
}


@dataclass(frozen=True)
class Steps:
    """What some steps of a strategy gave: losses, the digest of parameters and moments, seconds a step."""

    losses: Sequence[float]
    digest: str
    seconds: float


def check_parameter_server(setting: Setting) -> Outcome:
    """Workers on the GPU, servers on the CPU: the same bits whatever their number, and the losses of one process."""
    steps = setting.size(20, 3)
    alone = _steps(setting, SLOTS, steps)
    found = {name: _steps(setting, [*SLOTS, *words], steps) for name, words in ARMS.items()}
    asynchronous = _steps(setting, [*SLOTS, *FOUR, "distribution.mode=asp", "batch.per=push"], steps)
    demands = {f"{name}: bits of 1 worker, 1 server": one.digest == found["1 worker, 1 server"].digest
               for name, one in found.items() if name != "1 worker, 1 server"}  # fmt: skip
    demands |= _agreement("parameter server", found["1 worker, 1 server"], alone)
    demands["asynchronous steps have finite losses"] = all(map(torch.isfinite, torch.tensor(asynchronous.losses)))
    if not setting.on_gpu:
        demands["bits of one process"] = found["1 worker, 1 server"].digest == alone.digest
    arms = {"one process": alone, **found, "asp, 2 workers, 2 servers": asynchronous}
    rows = [{"processes": name, "digest": one.digest[:16], "s a step": one.seconds} for name, one in arms.items()]
    note = "One process sums squares and updates on the GPU, servers on the CPU: their last bits differ there."
    return Outcome(demands, rows=rows, note=note if setting.on_gpu else "")


def check_ddp(setting: Setting) -> Outcome:
    """One worker whose engine is NCCL, which refuses two on one GPU; two of Gloo, which let the host sum."""
    steps = setting.size(20, 3)
    alone = _steps(setting, SLOTS, steps)
    arms = {"gloo, 2 workers": ["distribution=ddp", "distribution.workers=2"]}
    if setting.on_gpu:
        arms["nccl, 1 worker"] = ["distribution=ddp", "distribution.engine=nccl"]
    demands, rows = {}, []
    for name, words in arms.items():
        found = _steps(setting, [*SLOTS, *words], steps)
        demands |= _agreement(name, found, alone)
        rows.append({"engine": name, "s a step": found.seconds})
    return Outcome(demands, rows=rows, note="" if setting.on_gpu else "NCCL is not on a CPU.")


def check_staging(setting: Setting) -> Outcome:
    """A copy is made behind what it needs and before what needs it, and the device computes meanwhile."""
    device = torch.device(setting.device)
    copies, elements = copies_of(device), setting.size(64, 1) * 2**18
    arena = SharedArena()
    buffers = {"memory of CUDA": copies.pinned(elements), "shared memory": copies.pin(arena.allocate(elements))}
    demands, figures = {}, {}
    for name, host in buffers.items():
        demands[f"{name}: a download has what was computed before it"] = _downloads_late(setting, copies, host)
        demands[f"{name}: what is computed after an upload has it"] = _uploads_early(setting, copies, host)
        for way, seconds in _seconds(setting, copies, host).items():
            figures[f"{name}, {way}, GB/s"] = 4 * elements / seconds / 1e9 if setting.on_gpu else NOT_ON_CPU
    if setting.on_gpu:
        demands["pinned memory is pinned"] = all(buffer.is_pinned() for buffer in buffers.values())
    arena.close()
    return Outcome(demands, figures)


def _agreement(name: str, found: Steps, alone: Steps) -> dict[str, bool]:
    differences = [abs(one / other - 1) for one, other in zip(found.losses, alone.losses, strict=True)]
    return {
        f"{name}: first loss within {FIRST_STEP:g} of one process": differences[0] <= FIRST_STEP,
        f"{name}: losses of {len(differences)} steps within {LATER_STEPS:g}": max(differences) <= LATER_STEPS,
    }


def _steps(setting: Setting, words: Sequence[str], steps: int) -> Steps:
    with _running(setting, words) as strategy:
        losses = [strategy.step(1).loss]  # the first one brings libraries up
        begin = time.perf_counter()
        losses += [strategy.step(index, horizon=steps).loss for index in range(2, steps + 1)]
        strategy.synchronize()
        setting.synchronize()
        seconds = (time.perf_counter() - begin) / (steps - 1)
        return Steps(losses, digest_tensors(strategy.state()), seconds)


@contextmanager
def _running(setting: Setting, words: Sequence[str]) -> Iterator[Any]:
    config = setting.config(*words)
    if config.distribution.name == "single":
        yield strategy_of(setting, config)
        return
    prepare_device(config)
    build = registry.lookup("strategy", config.distribution.name, "distribution.name")
    strategy = build(strategy_options(config, "acceptance/s1", setting.work, 1))
    try:
        strategy.start(workload_spec(config, setting.device))
        yield strategy
    finally:
        strategy.close()


def _busy(setting: Setting) -> torch.Tensor:
    """Gives the device something to do for a while; returns a zero that is there only afterwards."""
    size = 4096 if setting.on_gpu else 64
    x = torch.full((size, size), 1.0 / size, device=setting.device)
    for _ in range(setting.size(40, 2)):
        x = x @ x
    return (x[0, 0] - x[0, 0]).clone()


def _downloads_late(setting: Setting, copies: Copies, host: torch.Tensor) -> bool:
    host.fill_(-1.0)
    source = torch.zeros(host.numel(), device=setting.device)
    source.add_(_busy(setting)).add_(7.0)  # what the copy must not overtake
    copies.download(source, host).wait()
    return bool((host == 7.0).all())


def _uploads_early(setting: Setting, copies: Copies, host: torch.Tensor) -> bool:
    host.fill_(3.0)
    target = torch.zeros(host.numel(), device=setting.device)
    setting.synchronize()
    copies.upload(host, target).precede()
    return bool((target * 2 == 6.0).all())


def _seconds(setting: Setting, copies: Copies, host: torch.Tensor) -> dict[str, float]:
    there = torch.zeros(host.numel(), device=setting.device)
    return {
        "down": min(setting.seconds(lambda: copies.download(there, host).wait()) for _ in range(3)),
        "up": min(setting.seconds(lambda: copies.upload(host, there).wait()) for _ in range(3)),
    }
