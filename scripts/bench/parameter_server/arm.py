"""A strategy under measurement: its steps, traffic and times."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from typing import Any, Self

from distributed.strategy import Strategy, WorkloadSpec

WORKERS = SERVERS = 2


class Arm:
    """Two workers and two servers (`ddp` has none), of one thread each, and this process as their coordinator.

    options: of section `distribution`.
    """

    def __init__(self, spec: WorkloadSpec, name: str = "parameter_server", **options: Any):
        from nmt import registry
        from nmt.config.schema import DistributionConfig

        size = {"workers": WORKERS, "servers": SERVERS, "launcher": "processes"}
        section = dataclasses.asdict(DistributionConfig(name=name, **(size | options)))
        about = {"batch_per": "step", "run": "bench/s1", "train_id": "bench", "seed": 1, "threads": 1, "attempt": 1}
        build = registry.lookup("strategy", name, "distribution.name")
        self.strategy: Strategy = build(section | about | {"run_directory": ""})
        before = set(multiprocessing.active_children())
        self._next = 1
        try:
            self.strategy.start(spec)
        except BaseException:
            self.strategy.close()
            raise
        self._processes = [one for one in multiprocessing.active_children() if one not in before]

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes that live, by role."""
        found: dict[str, list[int]] = {"worker": [], "server": []}
        for process in multiprocessing.active_children():
            role = process.name.rpartition("(")[2].rstrip(")")  # `agent 3 (worker)`
            if process in self._processes and role in found and process.pid is not None:
                found[role].append(process.pid)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, steps: int) -> float:
        """Seconds a step, from one step's application to another's, after one step that does not count."""
        last = self._next + steps
        self.strategy.step(self._next, horizon=last)
        begin = time.perf_counter()
        for index in range(self._next + 1, last + 1):
            self.strategy.step(index, horizon=last)
        self._next = last + 1
        return (time.perf_counter() - begin) / steps

    def traffic(self) -> dict[str, int]:
        """Bytes that all workers and servers have sent to each other so far: headers, and payloads by their way."""
        before: dict[str, int] = {}
        while (found := self._sent()) != before:  # the last answers may still be on their way
            before = found
        return found

    def times(self) -> dict[str, dict[str, float]]:
        """The main lane of every process so far; see `distributed.timeline`."""
        return {name: one["times"] for name, one in self._reports().items()}

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._next - 1

    def close(self) -> None:
        """End the processes."""
        self.strategy.close()

    def _sent(self) -> dict[str, int]:
        total = {"framing_bytes": 0, "payload_bytes": 0, "shared_bytes": 0, "messages": 0}
        for one in self._reports().values():
            for name, link in one["links"].items():
                for kind in total:
                    total[kind] += link["sent"][kind] if name != "coordinator" else 0
        return total

    def _reports(self) -> dict[str, Any]:
        self.strategy.journals()  # asks every process anew
        return dict(self.strategy.report()["processes"])
