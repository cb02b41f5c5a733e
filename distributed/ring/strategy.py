"""The strategy `ring_allreduce` as the trainer sees it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from distributed.agent import Job
from distributed.coordinating import inner_norms, step_stats
from distributed.launchers.choose import build_launcher, run_token
from distributed.parameter_server.members_strategy import MembersStrategy
from distributed.ring.any_coordinator import AnyRingCoordinator
from distributed.ring.coordinator import RingCoordinator
from distributed.ring.engine import EngineStrategy
from distributed.strategy import Probe, StepStats, Strategy, WorkloadSpec


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy: with the engine `own` that of this package, else torch's sums of the same buckets."""
    return RingStrategy(options) if options["engine"] == "own" else EngineStrategy(options)


Ringing = TypeVar("Ringing", bound=AnyRingCoordinator[Any])


class AnyRingStrategy(MembersStrategy[Ringing]):
    """A ring with seats, each of which has a share of every step, whatever goes round.

    This process coordinates, evaluates and writes checkpoints. A step's bits depend on how many nodes are configured,
    and on nothing else: not on timing, and not on who is lost or comes.
    """

    where = AnyRingCoordinator.where

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model here, for evaluation, and bring the nodes up."""
        options = self._options
        self._build(spec)
        token = run_token(options)
        workload = {"factory": spec.factory, "arguments": dict(spec.arguments)}
        self._coordinator = self._new_coordinator(Job("coordinator", 0, options["run"], token, options, {}), workload)
        self._launcher = build_launcher(options, self._coordinator.address, token, options["run"])
        self._coordinator.start(self._launcher)

    @abstractmethod
    def _new_coordinator(self, job: Job, workload: Mapping[str, Any]) -> Ringing:
        """The coordinator of the strategy's own nodes, which are told the workload's specification."""

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        coordinator = self._running()
        if not self._begun:
            coordinator.begin(index, [self._values, *self._moments.values()], self._updates)
            self._begun, self._granted = True, index - 1
        through = self._ask_for(index, horizon)
        if through is not None:
            coordinator.grant(index - 1, through, rate_scale, index if probe else 0)
        said = coordinator.wait_for(index)
        self._returned(index, said["about"]["finite"])
        return _stats(index, said, probe)

    def synchronize(self) -> None:
        """Wait until no change of members is under way: a step is told of once every node has applied it."""
        if self._begun:
            self._running().wait_until_rest(self._last)

    def _fetch(self, moments: list[torch.Tensor]) -> None:
        self._updates = self._running().pull(self._last, [self._values, *moments])


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
