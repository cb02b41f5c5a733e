"""The strategy `ring_tmp` with `mode=rotate` as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.agent import Job
from distributed.ring.strategy import AnyRingStrategy
from distributed.ring_rotate.computation import plan_of
from distributed.ring_rotate.coordinator import RotateCoordinator


class RotateStrategy(AnyRingStrategy[RotateCoordinator]):
    """Every node has a shard of the parameters and of the optimizer; what a layer needs goes round when it needs it."""

    def _new_coordinator(self, job: Job, workload: Mapping[str, Any]) -> RotateCoordinator:
        self._refuse_gpus()
        plan, self._groups = plan_of(self._workload, job.options["nodes"], self._places())
        return RotateCoordinator(job, workload, plan)

    def report(self) -> Mapping[str, Any]:
        """As of any strategy with members, and which parts of the model go round together."""
        return dict(super().report()) | {"cut": {"groups": self._groups}}
