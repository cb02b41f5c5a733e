"""Processes that compute side by side over gloo: what the parameter server is measured against."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, Self

from distributed.strategy import load

PRELOADED = ["torch", "torch.distributed", "distributed.agent", "nmt.config"]


class Loop(Protocol):
    """What a member of a gang does: built in its process, then asked for some steps at a time."""

    def step(self, index: int) -> None:
        """One step."""


class Gang:
    """`size` processes, of one thread each, that are one gloo group.

    Parameters
    ----------
    loop: `"module:class"` of a `Loop`, built with `(rank, size, *arguments)` once the group is there.
    """

    def __init__(self, size: int, loop: str, *arguments: Any):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        self._index = 1
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, str(Path(self._folder.name) / "store"), rank, size, loop, arguments),
                daemon=True,
                name=f"gang-{rank}",
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    @property
    def pids(self) -> list[int]:
        """The members' process numbers."""
        return [process.pid for process in self._processes if process.pid is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, steps: int) -> float:
        """Seconds a step of the slowest member, after one step that does not count."""
        for pipe in self._pipes:
            pipe.send((self._index, steps))
        self._index += steps + 1
        return float(max(pipe.recv() for pipe in self._pipes))

    def close(self) -> None:
        """End the members."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _serve(pipe: Connection, store: str, rank: int, size: int, loop: str, arguments: Sequence[Any]) -> None:
    import torch
    import torch.distributed as gloo

    torch.set_num_threads(1)
    gloo.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    member: Loop = load(loop)(rank, size, *arguments)
    pipe.send("ready")
    while True:
        try:
            first, steps = pipe.recv()
        except (EOFError, OSError):
            break
        member.step(first)
        gloo.barrier()
        begin = time.perf_counter()
        for index in range(first + 1, first + steps + 1):
            member.step(index)
        pipe.send((time.perf_counter() - begin) / steps)
    gloo.destroy_process_group()
