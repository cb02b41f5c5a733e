"""Ways to do the same, timed one after the other in every round, so that what else the machine does meets them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.children import Report


def take_turns(
    report: Report,
    runs: Mapping[str, Callable[[int], float]],
    processes: Mapping[str, Mapping[str, Sequence[int]]],
    steps: Mapping[str, int],
    rounds: int,
) -> dict[str, list[dict[str, float]]]:
    """By way, for each round: `step`, seconds a step; `<role>_cpu` and `cpu`, CPU seconds a step; `load`.

    runs: do a step that is not timed and then so many, and return the seconds of one.
    processes: process ids of each way by role; `cpu` is that of all of them, and left out where there are none.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            before = {role: cpu_seconds(pids) for role, pids in processes[name].items()}
            one = {"step": run(steps[name])}
            spent = {
                f"{role}_cpu": (cpu_seconds(pids) - before[role]) / (steps[name] + 1)
                for role, pids in processes[name].items()
            }
            total = {"cpu": sum(spent.values())} if spent else {}
            found[name].append(one | spent | total | {"load": load()})
        report()
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of processes so far, over all of their threads that live."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def load() -> float:
    """The machine's load average of the last minute."""
    return os.getloadavg()[0]
