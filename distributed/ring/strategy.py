"""The strategy `ring_allreduce` as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from distributed.agent import Job
from distributed.coordinating import inner_norms, step_stats
from distributed.ring.any_coordinator import AnyRingCoordinator
from distributed.ring.coordinator import RingCoordinator
from distributed.ring.engine import EngineStrategy
from distributed.ring.nodes_strategy import NodesStrategy
from distributed.strategy import Probe, StepStats, Strategy


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy: with the engine `own` that of this package, else torch's sums of the same buckets."""
    return RingStrategy(options) if options["engine"] == "own" else EngineStrategy(options)


Ringing = TypeVar("Ringing", bound=AnyRingCoordinator[Any])


class AnyRingStrategy(NodesStrategy[Ringing]):
    """A ring with seats, each of which has a share of every step, whatever goes round.

    A step's bits depend on how many nodes are configured, and on nothing else: not on timing, and not on who is lost or
    comes.
    """

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        said = self._ask_nodes_for(index, rate_scale, probe, horizon).wait_for(index)
        self._returned(index, said["about"]["finite"])
        return _stats(index, said, probe)


class RingStrategy(AnyRingStrategy[RingCoordinator]):
    """Every node has the whole model and the whole optimizer; gradients are summed round a ring."""

    def _new_coordinator(self, job: Job, workload: Mapping[str, Any]) -> RingCoordinator:
        return RingCoordinator(job, workload)


def _stats(index: int, said: Mapping[str, Any], probe: bool) -> StepStats:
    """What nodes have said of a step, together."""
    shares = [share for _, share in sorted(said["facts"].items(), key=lambda one: int(one[0]))]
    leaves = [leaf for share in shares for leaf in share["leaves"].values()]
    about = said["about"]
    seen = Probe(about["gradients"], about["updates"], inner_norms(leaves)) if probe else None
    return step_stats(index, leaves, shares[0]["tokens"], about["norm"], about["rate"], seen)
