"""How the processes of a run share this machine where nobody has placed them: a lone `nmt train`."""

from __future__ import annotations

import dataclasses

from nmt import registry
from nmt.config.schema import RunConfig

ELSEWHERE = ("ray", "external")  # launchers whose processes need not be on this machine


def worker_threads(config: RunConfig, cores: int) -> int:
    """CPU threads of a process that computes: as configured, else what the run's other processes leave of the cores."""
    own = config.distribution.resources.worker.cpu
    if own >= 1:
        return int(own)
    if config.threads:
        return config.threads
    return next((threads for threads in range(cores, 1, -1) if sum(_cores(config, threads)) <= cores), 1)


def lone_timing(config: RunConfig, cores: int) -> str:
    """`shared` where the run's own processes have to share the cores of this machine, else `exclusive`."""
    if config.distribution.launcher in ELSEWHERE:
        return "exclusive"
    each = _cores(config, worker_threads(config, cores))
    return "shared" if len(each) > 1 and sum(each) > cores else "exclusive"


def _cores(config: RunConfig, threads: int) -> list[float]:
    """Cores that each process of the run asks for, with so many threads of those that compute."""
    name = config.distribution.name
    if name not in registry.names("bundles"):
        return [float(threads)]
    bundles = registry.lookup("bundles", name, "distribution.name")
    return [one["CPU"] for one in bundles(dataclasses.asdict(config.distribution), {"CPU": float(threads)})]
