"""The strategy `ring_tmp` as the trainer sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from distributed.agent import Job
from distributed.ring.nodes_strategy import NodesStrategy
from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.cut import Cut, cut_model
from distributed.ring_tmp.probes import ProbePieces
from distributed.strategy import Probe, StepStats

log = logging.getLogger(__name__)


class StageRingStrategy(NodesStrategy[StageRingCoordinator]):
    """The model's stages lie on nodes round a ring; activations move, parameters do not.

    This process coordinates, evaluates and writes checkpoints. Results are those of `distributed.single`, bit for bit,
    whatever the number of nodes, and whoever is lost or comes.
    """

    def _new_coordinator(self, job: Job, workload: Mapping[str, Any]) -> StageRingCoordinator:
        self._refuse_gpus()
        self._cut = self._cut_model(bool(job.options["shadows"]))
        partition = self._cut.over(job.options["nodes"])  # not every model can be shared out so far
        log.info("run %s: %s", job.run, partition.limit)
        places = self._places()
        self._pieces = ProbePieces(self._cut.parts, places)
        return self._coordinator_of(job, {"workload": workload, "layout": places})

    def _cut_model(self, shadows: bool) -> Cut:
        """Where the model can be cut, and what its stages cost."""
        return cut_model(self._workload, shadows)

    def _coordinator_of(self, job: Job, content: Mapping[str, Any]) -> StageRingCoordinator:
        return StageRingCoordinator(job, content, self._cut)

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        decision, seen = self._ask_nodes_for(index, rate_scale, probe, horizon).wait_for(index)
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

    def report(self) -> Mapping[str, Any]:
        """As of any strategy with members, and which stages lie on which node."""
        return dict(super().report()) | {"cut": self._cut.described(self._options["nodes"])}
