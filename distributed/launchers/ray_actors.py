"""Processes as Ray actors in the trial's own placement group: each in the bundle that was reserved for it.

A trial of Ray Tune that needs several processes owns one placement group. The trial itself is in bundle 0; workers are
in those behind it, then servers, as `distributed.bundles` lists them. So what a run uses is what Tune has counted, it
starts whole or not at all, and it goes with the trial: when the group is removed, Ray kills what is left in it. Actors
are new in every attempt and are never restarted by Ray; in a lost one's place another is started in the same bundle.

Ray places them and nothing else: what they say to each other goes over the run's own links, which notice a lost node
long before Ray does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.errors import DistributedError
from distributed.launchers.choose import process_counts, tls_files
from distributed.links.token import Token

START_SECONDS = 600.0
END_SECONDS = 5.0  # that actors may take to end by themselves
BUNDLE = "bundle "  # and its number: what an actor is called


def has_bundles() -> bool:
    """Whether this process is in a placement group with bundles for others."""
    group = _own_group()
    return group is not None and len(group.bundle_specs) > 1


def node_address() -> str:
    """This node's address as the cluster knows it."""
    import ray

    return str(ray.util.get_node_ip_address())


def _own_group() -> Any:
    try:
        import ray
    except ImportError:
        return None
    return ray.util.get_current_placement_group() if ray.is_initialized() else None


class RayLauncher:
    """Starts agents as actors in this trial's bundles.

    Parameters
    ----------
    options: section `distribution`, with `threads`; see `distributed.strategy`.
    address: of the coordinator.
    token, run: the run's.

    Raises DistributedError outside of a trial whose group has a bundle for each process.
    """

    patience = START_SECONDS

    def __init__(self, options: Mapping[str, Any], address: str, token: Token, run: str):
        self._group = _own_group()
        counts = process_counts(options)
        bundles = 0 if self._group is None else len(self._group.bundle_specs)
        if bundles <= sum(counts.values()):
            here = f"here are {bundles}" if bundles else "this process is in no placement group"
            raise DistributedError(
                f"a run of {1 + sum(counts.values())} processes needs as many bundles, and {here}",
                where="distribution.launcher",
                allowed=["auto", "processes", "external"],
                hint="executor=ray_tune reserves them",
            )
        self._threads = {"worker": options["threads"], "server": 1}
        secret, beat, directory = token.reveal(), options["heartbeat_seconds"], str(Path.cwd())
        self._arguments = (address, secret, run, beat, tls_files(options), directory)
        self._free = {
            "worker": list(range(1, 1 + counts["worker"])),
            "server": list(range(1 + counts["worker"], 1 + sum(counts.values()))),
        }
        self._actors: dict[int, tuple[Any, Any]] = {}  # by bundle: the actor, and the end of its work

    def start(self, role: str, instead_of: str = "") -> str:
        """Start an actor in a free bundle of the role, or in that of the lost one, which is killed if it still lives.

        It is there as soon as Ray has made it. Returns the name of its bundle; where all bundles of the role are taken,
        none is started.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if instead_of.startswith(BUNDLE):
            bundle = int(instead_of.removeprefix(BUNDLE))
            self._kill(bundle)
        elif self._free[role]:
            bundle = self._free[role].pop(0)
        else:
            return ""
        needs = dict(self._group.bundle_specs[bundle])
        actor_class: Any = ray.remote(
            num_cpus=needs.pop("CPU", 0),
            num_gpus=needs.pop("GPU", 0),
            memory=needs.pop("memory", None),
            resources=needs,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        )(AgentActor)
        actor, name = actor_class.remote(), f"{BUNDLE}{bundle}"
        self._actors[bundle] = actor, actor.serve.remote(*self._arguments, role, self._threads[role], name)
        return name

    def ended(self) -> Mapping[str, str]:
        """By bundle, how each actor whose work has ended did. One for which there is no room goes on waiting."""
        import ray

        works = {work: bundle for bundle, (_, work) in self._actors.items()}
        if not works:
            return {}
        ended = {}
        for work in ray.wait(list(works), num_returns=len(works), timeout=0)[0]:
            try:
                ray.get(work)
                how = "ended"
            except Exception as error:  # Ray wraps what a worker raised, with a traceback in colours
                cause = getattr(error, "cause", None) or error
                how = f"ended: {type(cause).__name__}: {' '.join(str(cause).split())}"
            ended[f"{BUNDLE}{works[work]}"] = how
        return ended

    def close(self) -> None:
        """Wait for actors to end, and kill them: their bundles are free again then, for the next who has the group."""
        import ray

        works = [work for _, work in self._actors.values()]
        if works:
            with contextlib.suppress(Exception):  # a cluster that is gone ends its actors, too
                ray.wait(works, num_returns=len(works), timeout=END_SECONDS)
        for bundle in list(self._actors):
            self._kill(bundle)

    def _kill(self, bundle: int) -> None:
        import ray

        actor, _ = self._actors.pop(bundle, (None, None))
        if actor is not None:
            with contextlib.suppress(Exception):  # it is dead already
                ray.kill(actor, no_restart=True)


class AgentActor:
    """An actor that is an agent, for one run."""

    def serve(
        self,
        address: str,
        token: str,
        run: str,
        beat_seconds: float,
        tls: tuple[str, str],
        directory: str,
        role: str,
        threads: int,
        name: str,
    ) -> None:
        """Join the run and play a role until it is over; relative paths mean what they mean to the trial."""
        import torch

        from distributed.agent import serve

        if Path(directory).is_dir():
            os.chdir(directory)
        torch.set_num_threads(threads)
        with contextlib.suppress(DistributedError):  # the coordinator knows more of it, and tells
            serve(address, Token(token.encode()), run, role, beat_seconds, name, tls=tls)
