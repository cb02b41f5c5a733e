"""Whether every node of a cluster sees the directory of runs, and has this code: asked before anything is trained.

A run directory is the truth about a run, so one that lies on a node's own disk would be lost to the sweep. A path says
nothing about that: `/data/runs` may exist everywhere and be another disk on each machine. So a file is written here and
looked for on every node, and each node writes one that is looked for here.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nmt.environment import describe_code
from nmt.errors import UserError
from sweeps.executors.ray_cluster import Cluster
from sweeps.folder import FOLDER
from sweeps.reuse import PresentCode, code_name

NODE_SECONDS = 180.0  # for every node to start a process and answer
DRIVER = "driver"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a node found: whether it sees the driver's file, why it could not write its own, and which code it has."""

    sees: bool
    error: str
    code: str


def enter(directory: str) -> None:
    """Make relative paths mean what they mean on the command line, where the node has that directory."""
    if Path(directory).is_dir():
        os.chdir(directory)


def look(directory: str, folder: str, name: str) -> Report:
    """On a node: look for the driver's file in `folder`, and write one called `name` beside it."""
    enter(directory)
    place, error = Path(folder).expanduser(), ""
    sees = (place / DRIVER).is_file()
    if sees:
        try:
            (place / name).write_text(name, encoding="utf-8")
        except OSError as refused:
            error = refused.strerror or str(refused)
    return Report(sees=sees, error=error, code=code_name(describe_code()))


def check_nodes(cluster: Cluster, runs: str) -> None:
    """Raise UserError, naming nodes, where one does not share `runs` (as `paths.runs` says it) or has other code.

    Must be called on a node of the cluster that Ray is connected to.
    """
    asked = f"{runs}/{FOLDER}/probe-{secrets.token_hex(6)}"  # `~` and relative paths are each node's own business
    folder, ours = Path(asked).expanduser(), code_name(describe_code())
    folder.mkdir(parents=True)
    try:
        (folder / DRIVER).write_text(DRIVER, encoding="utf-8")
        reports = _ask(cluster, asked)
        written = {path.name for path in folder.iterdir()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = dict(zip(cluster.ids, _names(cluster), strict=True))
    silent = {node: report for node, report in reports.items() if isinstance(report, str)}
    if silent:
        raise UserError(
            f"{_list(names[node] for node in silent)} cannot run our code: {next(iter(silent.values()))}",
            where="executor.address",
            hint="install the same version of this package and of Python on every node",
        )
    found = {node: report for node, report in reports.items() if isinstance(report, Report)}
    apart = [node for node, report in found.items() if not report.sees or (node not in written and not report.error)]
    if apart:
        raise UserError(
            f"{runs} is not shared: what one machine writes there is not to be seen on {_list(map(names.get, apart))}",
            where="paths.runs",
            hint="choose a directory on storage that all nodes mount at the same path",
        )
    if refused := {node: report.error for node, report in found.items() if report.error}:
        raise UserError(
            f"{runs} cannot be written on {_list(map(names.get, refused))}: {next(iter(refused.values()))}",
            where="paths.runs",
            hint="make it writable on every node",
        )
    same = PresentCode(ours).made  # also where only the commits differ, and no source
    other = {node: report.code for node, report in found.items() if not same(report.code)}
    if other:  # or somebody is at work in the checkout that all of them share
        now = code_name(describe_code())
        other = {node: code for node, code in other.items() if code != now}
    if other:
        raise UserError(
            f"{_list(map(names.get, other))} has other code ({next(iter(other.values()))}) than this process ({ours})",
            where="executor.address",
            hint="bring every node to the same commit",
        )


def _ask(cluster: Cluster, folder: str) -> dict[str, Report | str]:
    """By node id, its report, or why there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            str(Path.cwd()), folder, node
        ): node
        for node in cluster.ids
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    answers: dict[str, Report | str] = {asked[one]: f"no answer within {NODE_SECONDS:.0f} s" for one in late}
    for one in done:
        try:
            answers[asked[one]] = ray.get(one)
        except Exception as error:  # Ray's own kinds, and what could not be unpacked
            answers[asked[one]] = [line.strip() for line in str(error).splitlines() if line.strip()][-1][:200]
    return {node: answers[node] for node in cluster.ids}


def _names(cluster: Cluster) -> list[str]:
    """Node names; with the beginning of their ids where several have one name."""
    names = [node.name for node in cluster.nodes]
    return [
        name if names.count(name) == 1 else f"{name} ({identity[:8]})"
        for name, identity in zip(names, cluster.ids, strict=True)
    ]


def _list(names: Iterable[object]) -> str:
    return "node " + ", ".join(map(str, names))
