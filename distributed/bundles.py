"""What a run of each strategy occupies, for whoever places it: known before torch is loaded or a process started.

A bundle is what one of a run's processes needs of the machine it is put on, by resource: `CPU` (cores), `GPU` (devices,
or a fraction of one), `memory` (bytes). The first bundle is that of the process that trains. The table `bundles` of
`nmt.registry` finds the function of a strategy by the strategy's name; each takes

- `distribution`: the configuration's section `distribution`, as plain data;
- `process`: what a process that computes needs.

Where `distribution.resources` says 0, a role has its usual share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CPU, GPU = "CPU", "GPU"
Bundle = dict[str, float]


def one_process(distribution: Mapping[str, Any], process: Mapping[str, float]) -> list[Bundle]:
    """One bundle: the run is one process."""
    return [dict(process)]


def ddp(distribution: Mapping[str, Any], process: Mapping[str, float]) -> list[Bundle]:
    """The process that trains, and the workers."""
    return [_coordinator(distribution, process), *_workers(distribution, process, distribution["workers"])]


def ring_allreduce(distribution: Mapping[str, Any], process: Mapping[str, float]) -> list[Bundle]:
    """The process that trains, and the nodes of the ring."""
    return [_coordinator(distribution, process), *_workers(distribution, process, distribution["workers"])]


def parameter_server(distribution: Mapping[str, Any], process: Mapping[str, float]) -> list[Bundle]:
    """The process that trains, the workers, and the servers, which add and apply on one core each."""
    servers = [_bundle(distribution, "server", {CPU: 1.0}) for _ in range(distribution["servers"])]
    return [_coordinator(distribution, process), *_workers(distribution, process, distribution["workers"]), *servers]


def ring_tmp(distribution: Mapping[str, Any], process: Mapping[str, float]) -> list[Bundle]:
    """The process that trains, and the nodes of the rings."""
    count = distribution["nodes"] * distribution["rings"]
    return [_coordinator(distribution, process), *_workers(distribution, process, count)]


def _coordinator(distribution: Mapping[str, Any], process: Mapping[str, float]) -> Bundle:
    """It decodes while the others rest, on the kind of device that they compute on, and does little otherwise."""
    return _bundle(distribution, "coordinator", dict(process) | {CPU: 1.0})


def _workers(distribution: Mapping[str, Any], process: Mapping[str, float], count: int) -> list[Bundle]:
    return [_bundle(distribution, "worker", process) for _ in range(count)]


def _bundle(distribution: Mapping[str, Any], role: str, usual: Mapping[str, float]) -> Bundle:
    own = distribution["resources"][role]
    asked = {name: amount for name, amount in ((CPU, own["cpu"]), (GPU, own["gpu"])) if amount}
    return dict(usual) | asked
