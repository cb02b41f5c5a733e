"""What a run's distribution demands of its options and counts in its identity, asked of the strategy by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from distributed.strategy import DistributedError
from nmt import registry
from nmt.config.schema import RunConfig
from nmt.errors import UserError


def check_distribution(config: RunConfig) -> None:
    """Raise UserError for the first contradiction. A strategy of another package checks its options itself."""
    name = config.distribution.name
    if name in registry.names("checks"):
        check = registry.lookup("checks", name, "distribution.name")
        try:
            check(*_sections(config))
        except DistributedError as error:
            raise UserError.of(error) from error
    for rule in (_shares_of_a_core, _devices_of_nccl, _failing_slots, _momentum_once):
        rule(config)


def numerics_of(config: RunConfig) -> dict[str, Any]:
    """What of the distribution can change a bit of a result; empty where it is exact.

    A strategy of another package that does not say is taken for inexact, and its code counts.
    """
    name = config.distribution.name
    about = registry.provenance("strategy", name)
    if name not in registry.names("numerics"):
        return {"name": name} | ({"code": about} if about else {})
    found: dict[str, Any] = registry.lookup("numerics", name, "distribution.name")(*_sections(config))
    return found | {"code": about} if found and about else found


def _sections(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    return dataclasses.asdict(config.distribution), dataclasses.asdict(config.batch)


def _shares_of_a_core(config: RunConfig) -> None:
    if config.executor.oversubscribe:
        return
    for role in ("coordinator", "worker", "server"):
        cpu = getattr(config.distribution.resources, role).cpu
        if 0 < cpu < 1:
            raise UserError(
                f"with {cpu:g} of a core a process shares it with others, and its times say little",
                where=f"distribution.resources.{role}.cpu",
                allowed=["0", ">= 1"],
                hint="executor.oversubscribe=true allows it, and marks the times of the runs as shared",
            )


def _devices_of_nccl(config: RunConfig) -> None:
    distribution = config.distribution
    if distribution.name not in ("ddp", "ring_allreduce") or distribution.engine != "nccl":
        return
    gpu = distribution.resources.worker.gpu or config.executor.gpus_per_run
    if config.device == "cpu" or 0 < gpu < 1:
        what = (
            "sums on GPUs, and device=cpu" if config.device == "cpu" else f"refuses workers that share a GPU ({gpu:g})"
        )
        raise UserError(f"NCCL {what}", where="distribution.engine", allowed=["gloo"], hint="distribution.engine=gloo")


def _failing_slots(config: RunConfig) -> None:
    """A worker that dies at its slot is replaced, and the next one would die at the same."""
    failing = [text for text in config.faults if "@slot:" in text]
    if failing and config.distribution.name != "single":
        raise UserError(
            f"'{failing[0]}' is for a run of one process: slots are computed by workers here",
            where="faults",
            hint="distribution.faults=[kill@worker0.<phase>:<step>] lets one of several die",
        )


def _momentum_once(config: RunConfig) -> None:
    """A worker's momentum takes the place of the rule's: it goes by the steps that values come from."""
    optimizer = config.optimizer
    if config.distribution.top_k_momentum and (optimizer.name != "sgd" or optimizer.momentum):
        other = f"optimizer={optimizer.name}" + (f" with momentum={optimizer.momentum:g}" if optimizer.momentum else "")
        raise UserError(
            f"takes the place of the update rule's momentum, and {other} has its own",
            where="distribution.top_k_momentum",
            allowed=["0"],
            hint="optimizer=sgd optimizer.momentum=0, or distribution.top_k_momentum=0",
        )
