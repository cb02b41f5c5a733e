"""What all executors share: their interface, and how many runs go side by side with how many threads each."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nmt import registry
from nmt.config.schema import ExecutorConfig
from nmt.environment import available_cores
from sweeps.worker import WorkItem

CPU, GPU, MEMORY = "CPU", "GPU", "memory"  # as Ray names them; memory in bytes
CORE_SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of what a process asks for, where there are too few cores
GIB = 2.0**30
Bundle = Mapping[str, float]  # what one process needs; see `distributed.bundles`


def no_line(line: str) -> None:
    """Say nothing."""


class Executor(Protocol):
    """Brings work items to an end. Constructed with the sweep's `ExecutorConfig` and its `RunStore`."""

    def execute(
        self, items: Sequence[WorkItem], on_poll: Callable[[], None], say: Callable[[str], None] = no_line
    ) -> None:
        """Run all items, calling `on_poll` about twice a second from one thread, and `say` with lines for the person.

        What became of the runs is in their directories. Raises KeyboardInterrupt after SIGINT or SIGTERM, once every
        run has stopped, UserError where the items cannot be run here at all, and `ClusterLostError` where the machines
        that ran them are gone.
        """


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that runs can be put on, and what it has by resource."""

    name: str
    resources: Mapping[str, float]


def this_machine() -> Node:
    """The machine of this process, with the cores that it may use."""
    return Node(name=socket.gethostname(), resources={CPU: float(available_cores())})


@dataclass(frozen=True)
class Placement:
    """`workers` runs at a time with `threads` CPU threads each; `alone` where nobody else computes on the machines.

    `core_share` is what their processes get of the cores that they ask for.
    """

    workers: int
    threads: int
    alone: bool = True
    core_share: float = 1.0

    @property
    def timing(self) -> str:
        """`exclusive` where a run has the machine to itself, else `shared`: their times are never mixed."""
        return "exclusive" if self.alone and self.workers == 1 else "shared"

    def place(self, item: WorkItem) -> WorkItem:
        """The item with timing and threads filled in."""
        return dataclasses.replace(item, timing=self.timing, threads=self.threads)


def place(config: ExecutorConfig, items: Sequence[WorkItem], nodes: Sequence[Node], *, alone: bool = True) -> Placement:
    """Workers as configured, else as many as fit; never more than items; the cores are dealt out evenly among them.

    Where the configuration fixes `threads`, as many workers as the nodes hold with that. Each has at least one thread.
    With `executor.oversubscribe` processes that would not fit share cores, and no run is alone.
    """
    placement = _place(config, items, nodes, alone)
    if not config.oversubscribe:
        return placement
    shares = (
        share
        for share in CORE_SHARES
        if _at_once(config, items, nodes, placement.threads, placement.workers, share) >= placement.workers
    )
    return dataclasses.replace(placement, alone=False, core_share=next(shares, 1.0))


def _place(config: ExecutorConfig, items: Sequence[WorkItem], nodes: Sequence[Node], alone: bool) -> Placement:
    asked = asked_threads(items)
    workers = config.workers or max(1, _at_once(config, items, nodes, max(1, asked), len(items)))
    workers = max(1, min(workers, len(items)))
    if asked:
        return Placement(workers, asked, alone)
    most = max((int(node.resources.get(CPU, 1)) for node in nodes), default=1)
    fitting = (t for t in range(most, 1, -1) if _at_once(config, items, nodes, t, workers) >= workers)
    return Placement(workers, next(fitting, 1), alone)


def asked_threads(items: Sequence[WorkItem]) -> int:
    """The most threads that the configuration of a run fixes; 0 where none does."""
    return max((config["threads"] for item in items for config in item.configs), default=0)


def process_needs(config: ExecutorConfig, threads: int) -> dict[str, float]:
    """What a process that trains with so many threads needs, by resource."""
    needs = {CPU: float(threads), GPU: config.gpus_per_run, MEMORY: config.memory_gib_per_run * GIB}
    return {name: amount for name, amount in needs.items() if amount}


def bundles_of(item: WorkItem, process: Bundle, core_share: float = 1.0) -> list[dict[str, float]]:
    """What the item's strategy occupies where one of its processes needs `process`. Loads no strategy.

    A strategy of an installed package that does not say takes one process. Of the cores they get `core_share`.
    """
    name = str(item.distribution["name"])
    known = name in registry.names("bundles")
    ask = registry.lookup("bundles", name if known else "single", "distribution.name")
    return [_with_share(bundle, core_share) for bundle in ask(item.distribution, process)]


def _with_share(bundle: Bundle, core_share: float) -> dict[str, float]:
    """The bundle with a share of its cores; Ray counts in ten-thousandths."""
    return {name: round(amount * core_share, 4) if name == CPU else amount for name, amount in bundle.items()}


def distinct_bundles(
    items: Sequence[WorkItem], process: Bundle, core_share: float = 1.0
) -> list[list[dict[str, float]]]:
    """The bundles of all items, those that are the same once."""
    distributions = {json.dumps(item.distribution, sort_keys=True): item for item in items}
    return [bundles_of(item, process, core_share) for item in distributions.values()]


def at_once(bundles: Sequence[Bundle], nodes: Sequence[Node], most: int) -> int:
    """How many runs of these bundles the nodes hold at a time, `most` at most: each bundle on the first that fits."""
    left = [dict(node.resources) for node in nodes]
    for number in range(most):
        for bundle in sorted(bundles, key=lambda one: sorted(one.items()), reverse=True):
            free = next((one for one in left if all(one.get(name, 0.0) >= need for name, need in bundle.items())), None)
            if free is None:
                return number
            for name, need in bundle.items():
                free[name] = round(free[name] - need, 6)  # ten times 0.1 is one GPU
    return most


def _at_once(
    config: ExecutorConfig,
    items: Sequence[WorkItem],
    nodes: Sequence[Node],
    threads: int,
    most: int,
    core_share: float = 1.0,
) -> int:
    kinds = distinct_bundles(items, process_needs(config, threads), core_share)
    return min((at_once(bundles, nodes, most) for bundles in kinds), default=most)
