"""What each strategy demands of its options, said before anything starts: no torch, no process, no file.

The table `checks` of `nmt.registry` finds the function of a strategy by the strategy's name. Each takes the
configuration's sections `distribution` and `batch` as plain data, whose single values are in their ranges already, and
raises `DistributedError` for the first that contradicts another. A key that would change what is computed or survived,
and means nothing to the strategy, must be at its neutral value: nobody shall believe that it did something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.errors import DistributedError
from distributed.links.faults import Fault

Section = Mapping[str, Any]

# Keys that only some strategies or modes know, with the values that ask for nothing.
NEUTRAL: Section = {
    "mode": "bsp",
    "schedule": "flush",
    "nodes": 1,
    "rings": 1,
    "whole_model": True,
    "node_memory_mib": 0,
    "staleness": 0,
    "workers": 1,
    "servers": 1,
    "apply_every": 1,
    "backup": 0,
    "rate_scaling": "none",
    "on_loss": "recompute",
    "shadows": 0,
    "speeds": "measured",
    "wire": "fp32",
    "sparse": False,
    "top_k": 0.0,
    "top_k_warm_up": 0,
    "top_k_momentum": 0.0,
    "watchdog_seconds": 600.0,
    "faults": [],
}
# Keys that only strategies know which send whole gradients, with the values that a configuration has without them.
OF_GRADIENTS: Section = {"engine": "gloo", "bucket_mib": 25, "staging": "auto"}


def single(distribution: Section, batch: Section) -> None:
    """One process has nobody to share with."""
    _refuse(distribution, NEUTRAL, "'single' is one process", "distribution=parameter_server")
    _no_pushes(batch, "'single' pushes nothing", "batch.per=step, or distribution=parameter_server")


def ddp(distribution: Section, batch: Section) -> None:
    """Every worker has all parameters, and all wait for each other: no servers, no staleness, no recovery."""
    others = [name for name in NEUTRAL if name not in ("workers", "faults")]
    _refuse(
        distribution, others, "'ddp' sums gradients among its workers, without servers", "distribution=parameter_server"
    )
    _no_pushes(batch, "'ddp' pushes nothing", "batch.per=step, or distribution=parameter_server")
    _engine_of_torch(distribution)
    _enough_groups(distribution, batch)
    _deadlines(distribution)
    _faults(distribution, {"worker": distribution["workers"]})


def ring_allreduce(distribution: Section, batch: Section) -> None:
    """Every node has all parameters: no servers, no staleness; torch's engines know no recovery either."""
    own = ("workers", "faults", "watchdog_seconds")
    _refuse(
        distribution,
        [name for name in NEUTRAL if name not in own],
        "'ring_allreduce' sums whole gradients among its workers, without servers",
        "distribution=parameter_server",
    )
    _no_pushes(batch, "'ring_allreduce' pushes nothing", "batch.per=step, or distribution=parameter_server")
    _enough_groups(distribution, batch)
    _deadlines(distribution)
    _tls(distribution)
    if distribution["engine"] != "own":
        _refuse(distribution, ("watchdog_seconds",), "torch's engines are not watched", "distribution.engine=own")
        if distribution["tls_certificate"]:
            raise DistributedError(
                f"{distribution['engine']} does not encrypt",
                where="distribution.tls_certificate",
                allowed=["''"],
                hint="distribution.engine=own",
            )
    _faults(distribution, {"worker": distribution["workers"]})


def ring_tmp(distribution: Section, batch: Section) -> None:
    """Nodes have parts of the model: nothing of workers that have all of it, nor of servers, means anything."""
    own = (
        *("mode", "schedule", "nodes", "rings", "shadows", "speeds", "whole_model", "node_memory_mib"),
        *("watchdog_seconds", "faults"),
    )
    _refuse(
        distribution,
        [name for name in (*NEUTRAL, *OF_GRADIENTS) if name not in own],
        "'ring_tmp' has distribution.nodes, each with a part of the model",
        "distribution=parameter_server",
    )
    if distribution["mode"] not in ("stage", "rotate"):
        raise DistributedError(
            f"'ring_tmp' has no mode {distribution['mode']}",
            where="distribution.mode",
            allowed=["stage", "rotate"],
            hint="distribution.mode=stage",
        )
    if distribution["mode"] == "rotate":
        for names, why in NOT_WHERE_PARAMETERS_ROTATE.items():
            _refuse(distribution, names, why, "distribution.mode=stage")
        _enough_groups(distribution, batch, "nodes")
    if distribution["rings"] > 1:
        _several_rings(distribution, batch)
    if not distribution["whole_model"] and distribution["schedule"] != "flush":
        raise DistributedError(
            "files of stages hold one version of the parameters, and this schedule goes on from two",
            where="distribution.schedule",
            allowed=["flush"],
            hint="distribution.schedule=flush, or distribution.whole_model=true",
        )
    _no_pushes(batch, "'ring_tmp' pushes nothing", "batch.per=step, or distribution=parameter_server")
    _deadlines(distribution)
    _tls(distribution)
    _faults(distribution, {"worker": distribution["nodes"] * distribution["rings"]})


NOT_WHERE_PARAMETERS_ROTATE = {
    ("schedule",): "in mode rotate nodes wait for whole sums anyway",
    ("speeds", "node_memory_mib"): "in mode rotate all nodes do as much, and hold as much",
    ("rings",): "in mode rotate more nodes share the data already",
    ("whole_model",): "mode rotate has no passes without the process that trains",
}
"""Keys of a ring of stages, and why they mean nothing there."""


def _several_rings(distribution: Section, batch: Section) -> None:
    """Each ring computes whole groups of a step, and the others have all that a node could have a copy of."""
    rings = distribution["rings"]
    _refuse(
        distribution,
        ("shadows",),
        f"{rings} rings have each stage {rings} times without copies",
        "distribution.rings=1",
    )
    _refuse(distribution, ("schedule",), "several rings have schedule flush only", "distribution.rings=1")
    _refuse(distribution, ("whole_model",), "only one ring evaluates by itself", "distribution.rings=1")
    _enough_groups(distribution, batch, "rings")


def parameter_server(distribution: Section, batch: Section) -> None:
    """See conf/distribution/parameter_server.yaml."""
    of_nodes = ("nodes", "rings", "speeds", "whole_model", "node_memory_mib")
    _refuse(distribution, of_nodes, "'parameter_server' has workers and servers", "distribution=ring_tmp")
    waits = "a parameter server waits as distribution.mode says"
    _refuse(distribution, ("schedule",), waits, "distribution.mode=asp or ssp")
    if distribution["mode"] in ("stage", "rotate"):
        raise DistributedError(
            "a parameter server's workers have the whole model",
            where="distribution.mode",
            allowed=["bsp", "ssp", "asp"],
            hint="distribution.mode=bsp, or distribution=ring_tmp",
        )
    (_synchronous if distribution["mode"] == "bsp" else _asynchronous)(distribution, batch)
    if batch["per"] == "step":
        _enough_groups(distribution, batch)
    _compression(distribution)
    _shadows(distribution)
    _deadlines(distribution)
    _tls(distribution)
    _faults(distribution, {"worker": distribution["workers"], "server": distribution["servers"]})


def _synchronous(distribution: Section, batch: Section) -> None:
    asynchronous = ("staleness", "apply_every", "rate_scaling")
    _refuse(distribution, asynchronous, "mode bsp waits for every worker at every step", "distribution.mode=asp or ssp")
    _no_pushes(batch, "mode bsp applies whole steps", "batch.per=step, or distribution.mode=asp")
    workers, backup = distribution["workers"], distribution["backup"]
    if backup >= workers:
        raise DistributedError(
            f"of {workers} {'worker' if workers == 1 else 'workers'} {backup} cannot be spare",
            where="distribution.backup",
            allowed=[f"0 to {workers - 1}"],
            hint="raise distribution.workers, or distribution.backup=0",
        )


def _asynchronous(distribution: Section, batch: Section) -> None:
    mode, staleness = distribution["mode"], distribution["staleness"]
    if mode == "ssp" and not staleness:
        raise DistributedError(
            "no worker ahead of another is what distribution.mode=bsp does, exactly",
            where="distribution.staleness",
            allowed=[">= 1 with mode ssp"],
            hint="distribution.mode=bsp, or distribution.staleness=1",
        )
    if mode == "asp":
        _refuse(distribution, ("staleness",), "mode asp sets no bound", "distribution.mode=ssp")
    _refuse(distribution, ("backup",), f"mode {mode} waits for no step of all workers", "distribution.mode=bsp")


def _compression(distribution: Section) -> None:
    if not distribution["top_k"]:
        _refuse(distribution, ("top_k_warm_up", "top_k_momentum"), "all values are sent", "distribution.top_k=0.01")
        return
    if distribution["mode"] == "bsp":
        raise DistributedError(
            "in mode bsp any worker may compute any share again, and what is kept back of a share is one worker's",
            where="distribution.top_k",
            allowed=["0"],
            hint="distribution.mode=asp or ssp, or distribution.wire=bf16",
        )
    if distribution["sparse"]:
        raise DistributedError(
            "distribution.top_k chooses among all values already, those of embeddings too",
            where="distribution.sparse",
            allowed=["false"],
            hint="distribution.sparse=false, or distribution.top_k=0",
        )


def _shadows(distribution: Section) -> None:
    if distribution["shadows"] and distribution["servers"] < 2:
        raise DistributedError(
            "the shadow of a server lies on the next one, and there is one server",
            where="distribution.shadows",
            hint="distribution.servers=2, or distribution.shadows=0",
        )


def _deadlines(distribution: Section) -> None:
    heartbeat, deadline = distribution["heartbeat_seconds"], distribution["deadline_seconds"]
    if deadline < 2 * heartbeat:
        raise DistributedError(
            f"a process that is heard of every {heartbeat:g} s would be given up after {deadline:g} s",
            where="distribution.deadline_seconds",
            allowed=[f">= {2 * heartbeat:g}, twice distribution.heartbeat_seconds"],
        )


def _tls(distribution: Section) -> None:
    if bool(distribution["tls_certificate"]) != bool(distribution["tls_key"]):
        missing = "tls_key" if distribution["tls_certificate"] else "tls_certificate"
        raise DistributedError(
            "is needed beside the other", where=f"distribution.{missing}", hint="give the files of both, or of neither"
        )
    if distribution["tls_certificate"] and distribution["link"] == "shm":
        raise DistributedError(
            "shared memory is never on a wire that TLS could guard",
            where="distribution.link",
            allowed=["auto", "tcp"],
        )


def _faults(distribution: Section, processes: Mapping[str, int]) -> None:
    """A fault that names nobody would never happen."""
    processes = {"coordinator": 1, **processes}
    for text in distribution["faults"]:
        fault = Fault.parse(text)
        if fault.id >= processes.get(fault.role, 0):
            raise DistributedError(
                f"'{text}' concerns a process that there is not",
                where="distribution.faults",
                allowed=[f"{role}0 to {role}{number - 1}" for role, number in processes.items() if number > 1]
                + [f"{role}0" for role, number in processes.items() if number == 1],
            )


def _engine_of_torch(distribution: Section) -> None:
    if distribution["engine"] == "own":
        raise DistributedError(
            "torch's DistributedDataParallel sums by torch's engines",
            where="distribution.engine",
            allowed=["gloo", "nccl"],
            hint="distribution=ring_allreduce sums by one of this package",
        )


def _enough_groups(distribution: Section, batch: Section, who: str = "workers") -> None:
    """A worker computes whole groups of micro-batches of each step."""
    workers, groups = distribution[who], batch["groups"] or batch["micro_batches"]
    if workers > groups:
        share = f"the {groups} {'group' if groups == 1 else 'groups'} of micro-batches of a step"
        finer = f"batch.micro_batches={workers} cuts a step finer (another training)"
        is_asynchronous = distribution["mode"] in ("ssp", "asp")
        pushes = ", batch.per=push gives each worker steps of its own" if is_asynchronous else ""
        raise DistributedError(
            f"{workers} {who} cannot share {share}",
            where=f"distribution.{who}",
            allowed=[f"<= {groups}"],
            hint=f"{finer}{pushes}, or distribution.{who}={groups}",
        )


def _no_pushes(batch: Section, what: str, hint: str) -> None:
    if batch["per"] != "step":
        raise DistributedError(what, where="batch.per", allowed=["step"], hint=hint)


def _refuse(distribution: Section, names: Sequence[str] | Section, what: str, elsewhere: str) -> None:
    for name in names:
        value = NEUTRAL[name] if name in NEUTRAL else OF_GRADIENTS[name]
        if distribution[name] != value:
            neutral = str(value).lower()
            raise DistributedError(
                what,
                where=f"distribution.{name}",
                allowed=[neutral],
                hint=f"distribution.{name}={neutral}, or {elsewhere}",
            )
