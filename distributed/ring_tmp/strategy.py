"""The strategy `ring_tmp` as the trainer sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError
from distributed.launchers.choose import build_launcher, run_token
from distributed.parameter_server.members_strategy import MembersStrategy
from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.cut import cut_model
from distributed.ring_tmp.probes import ProbePieces
from distributed.strategy import Probe, StepStats, WorkloadSpec

log = logging.getLogger(__name__)


class StageRingStrategy(MembersStrategy[StageRingCoordinator]):
    """The model's stages lie on nodes round a ring; activations move, parameters do not.

    This process coordinates, evaluates and writes checkpoints. Results are those of `distributed.single`, bit for bit,
    whatever the number of nodes, and whoever is lost or comes.
    """

    where = StageRingCoordinator.where

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model here, for evaluation, cut it, and bring the nodes up."""
        options = self._options
        self._build(spec)
        if self._workload.device != "cpu":
            raise DistributedError(
                "the ring's nodes compute on CPUs",
                where="device",
                allowed=["cpu"],
                hint="device=cpu, or distribution=ring_allreduce, which computes on GPUs",
            )
        self._cut = cut_model(self._workload, bool(options["shadows"]))
        partition = self._cut.over(options["nodes"])  # before any process: not every model can be shared out so far
        log.info("run %s: %s", options["run"], partition.limit)
        token = run_token(options)
        ranges = {name: (start, start + shape.numel()) for name, (start, shape) in self._flat.layout.items()}
        self._pieces = ProbePieces(self._cut.parts, ranges)
        content = {"workload": {"factory": spec.factory, "arguments": dict(spec.arguments)}, "layout": ranges}
        self._coordinator = StageRingCoordinator(
            Job("coordinator", 0, options["run"], token, options, {}), content, self._cut
        )
        self._launcher = build_launcher(options, self._coordinator.address, token, options["run"])
        self._coordinator.start(self._launcher)

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        coordinator = self._running()
        if not self._begun:
            coordinator.begin(index, [self._values, *self._moments.values()], self._updates)
            self._begun, self._granted = True, index - 1
        through = self._ask_for(index, horizon)
        if through is not None:
            coordinator.grant(index - 1, through, rate_scale, index if probe else 0)
        decision, seen = coordinator.wait_for(index)
        self._returned(index, decision.is_update)
        found = None
        if probe:
            gradients, changes = ([one[number] for one in seen] for number in (0, 1))
            found = Probe(self._pieces.norms(gradients), self._pieces.norms(changes), decision.inner)
        return StepStats(
            index=index,
            loss=decision.loss,
            target_tokens=decision.target_tokens,
            source_tokens=decision.source_tokens,
            gradient_norm=decision.norm,
            learning_rate=self._workload.learning_rate(index) * rate_scale,
            probe=found,
        )

    def synchronize(self) -> None:
        """Wait until no change of members is under way: a step is told of once every node has applied it."""
        if self._begun:
            self._running().wait_until_rest(self._last)

    def report(self) -> Mapping[str, Any]:
        """As of any strategy with members, and which stages lie on which node."""
        return dict(super().report()) | {"cut": self._cut.described(self._options["nodes"])}

    def _fetch(self, moments: list[torch.Tensor]) -> None:
        self._updates = self._running().pull(self._last, [self._values, *moments])
