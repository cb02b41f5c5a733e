"""What a run needs and what a cluster has: compared and told before launch, since Ray would wait without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from sweeps.executors.placement import (
    CPU,
    GIB,
    GPU,
    MEMORY,
    Bundle,
    Node,
    Placement,
    at_once,
    distinct_bundles,
    process_needs,
)
from sweeps.worker import WorkItem

KEYS = {CPU: "threads", GPU: "executor.gpus_per_run", MEMORY: "executor.memory_gib_per_run"}


def check_needs(config: ExecutorConfig, items: Sequence[WorkItem], placement: Placement, nodes: Sequence[Node]) -> None:
    """Raise UserError, naming the key, where no node could ever hold a run, or the cluster not all of its processes."""
    _check_device(config, items)
    for bundles in distinct_bundles(items, process_needs(config, placement.threads), placement.core_share):
        for bundle in bundles:
            _check_bundle(bundle, nodes)
        if not at_once(bundles, nodes, 1):
            without_cores = [{name: need for name, need in one.items() if name != CPU} for one in bundles]
            shared = "; executor.oversubscribe=true lets processes share cores"
            raise UserError(
                f"a run of {len(bundles)} processes needs {amounts(_sum(bundles))}, which do not fit on "
                f"{_nodes(nodes)} with {amounts(total(nodes))}",
                where="distribution",
                hint="lower what a run needs, or choose another cluster with executor.address"
                + (shared if at_once(without_cores, nodes, 1) else ""),
            )


def needs_and_has(
    config: ExecutorConfig,
    items: Sequence[WorkItem],
    placement: Placement,
    nodes: Sequence[Node],
    free: Mapping[str, float],
) -> list[str]:
    """Lines that say what a run needs, what the cluster has, and how much of that others use at the moment.

    `free` is what the whole cluster has to give now, by resource.
    """
    kinds = distinct_bundles(items, process_needs(config, placement.threads), placement.core_share)
    fit = min((at_once(bundles, nodes, placement.workers) for bundles in kinds), default=0)
    needs = ", or ".join(amounts(_sum(bundles)) + _processes(bundles) for bundles in kinds)
    has = total(nodes)
    most = {name: max(_sum(bundles).get(name, 0.0) for bundles in kinds) for name in (CPU, GPU, MEMORY)}
    shown = {name: amount for name, amount in has.items() if most.get(name) or name in (CPU, GPU)}
    lines = [f"a run needs {needs}; {_nodes(nodes)} with {amounts(shown)}: {fit} at a time"]
    used = {name: has[name] - free.get(name, 0.0) for name in (CPU, GPU, MEMORY) if most[name] and name in has}
    used = {name: amount for name, amount in used.items() if amount > 1e-6}
    if used:
        missing = [name for name in used if free.get(name, 0.0) < most[name]]
        waits = f"; runs wait for {amounts({name: most[name] for name in missing})}" if missing else ""
        lines.append(f"in use by others now: {amounts(used)}{waits}")
    if has.get(GPU) and not config.gpus_per_run:
        lines.append(
            "runs are given no GPU and see none: executor.gpus_per_run=1 gives each one, a fraction shares one"
        )
    return lines


def amounts(resources: Mapping[str, float]) -> str:
    """`2 CPUs, 0.25 GPUs, 4 GiB`."""
    words = [_amount(name, resources[name]) for name in (CPU, GPU, MEMORY) if resources.get(name)]
    return ", ".join(words) or "nothing"


def total(nodes: Sequence[Node]) -> dict[str, float]:
    """What all nodes have together."""
    return _sum([node.resources for node in nodes])


def _check_device(config: ExecutorConfig, items: Sequence[WorkItem]) -> None:
    if not config.gpus_per_run and any(one["device"] == "cuda" for item in items for one in item.configs):
        raise UserError(
            "device=cuda, and no GPU is reserved for a run",
            where="executor.gpus_per_run",
            hint="executor.gpus_per_run=1, or a fraction such as 0.25 for several runs on a GPU",
        )


def _check_bundle(bundle: Bundle, nodes: Sequence[Node]) -> None:
    """Raise UserError where no node could hold it, for the resource that is short."""
    if any(all(node.resources.get(name, 0.0) >= need for name, need in bundle.items()) for node in nodes):
        return
    for name, need in bundle.items():
        most = max((node.resources.get(name, 0.0) for node in nodes), default=0.0)
        if need > most:
            has = f"{_nodes(nodes)} has" if len(nodes) == 1 else f"of {_nodes(nodes)} none has more than"
            raise UserError(
                f"a run needs {_amount(name, need)} on one node; {has} {_amount(name, most)}",
                where=KEYS.get(name, name),
                hint=f"lower {KEYS.get(name, name)}, or choose another cluster with executor.address",
            )
    raise UserError(
        f"a run needs {amounts(bundle)} on one node, and no node has all of that: "
        + "; ".join(f"{node.name} has {amounts(node.resources)}" for node in nodes[:8]),
        where=" and ".join(KEYS.get(name, name) for name in bundle),
        hint="lower one of them",
    )


def _sum(bundles: Sequence[Bundle]) -> dict[str, float]:
    names = {name for bundle in bundles for name in bundle}
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def _amount(name: str, amount: float) -> str:
    if name == MEMORY:
        return f"{amount / GIB:.1f} GiB"
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def _nodes(nodes: Sequence[Node]) -> str:
    return "the cluster" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _processes(bundles: Sequence[Bundle]) -> str:
    return "" if len(bundles) == 1 else f" in {len(bundles)} processes"
