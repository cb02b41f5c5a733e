"""The strategy `ring_tmp` as the trainer sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.agent import Job
from distributed.parameter_server.staleness import summary_of
from distributed.ring.nodes_strategy import NodesStrategy
from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.cut import Cut, cut_model
from distributed.ring_tmp.executor import LAGS
from distributed.ring_tmp.probes import ProbePieces
from distributed.strategy import Probe, StepStats

PREVIOUS = "previous_parameters"  # the entry of a state


class StageRingStrategy(NodesStrategy[StageRingCoordinator]):
    """The model's stages lie on nodes round a ring; activations move, parameters do not.

    This process coordinates, evaluates and writes checkpoints. With `schedule=flush` results are those of
    `distributed.single`, bit for bit, whatever the number of nodes, and whoever is lost or comes. With `async` they are
    those of one process that takes each gradient at the parameters before the newest update (see `executor`), with the
    same freedom: which version a step uses is a function of the step, and the version before the newest belongs to
    the state. What is evaluated, and the model in the end, are the newest parameters.
    """

    coordinator = StageRingCoordinator

    def __init__(self, options: Mapping[str, Any]):
        super().__init__(options)
        self._lag = LAGS[options["schedule"]]
        self._node_bytes = (options["node_memory_mib"] << 20) or math.inf
        self._previous: torch.Tensor | None = None  # with two versions, that before the newest

    def _new_coordinator(self, job: Job, workload: Mapping[str, Any]) -> StageRingCoordinator:
        self._refuse_gpus()
        self._previous = self._values.detach().clone() if self._lag else None
        self._cut = self._share_of(self._cut_model(bool(job.options["shadows"])))
        self._cut.over(job.options["nodes"])  # not every model can be shared out so far
        places = self._places()
        self._pieces = ProbePieces(self._cut.parts, places)
        return self.coordinator(job, {"workload": workload, "layout": places}, self._cut)

    def _cut_model(self, shadows: bool) -> Cut:
        """Where the model can be cut, and what its stages cost."""
        return cut_model(self._workload, shadows, self._lag, self._node_bytes)

    def _share_of(self, cut: Cut) -> Cut:
        """The cut as a ring sees it."""
        return cut

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        decision, seen = self._ask_nodes_for(index, rate_scale, probe, horizon).wait_for(index)
        self._returned(index, decision.is_update, self._lag)
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
        """As of any strategy with members, and which stages each node had when the ring began.

        With `async` also `staleness`: updates between the parameters that gradients were taken at and those that they
        were applied to, over all `steps` of this attempt.
        """
        sharing = self._running().sharing or self._cut.over(self._options["nodes"])
        found = dict(super().report()) | {"cut": sharing.described()}
        if self._lag:
            found["staleness"] = summary_of(self._running().staleness)
        return found

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name; with `async` the parameters before the newest update too.

        The next step's gradient is taken at those, so that no checkpoint changes a bit of what follows.
        """
        found = super().state()
        return found if self._previous is None else found | {PREVIOUS: self._flat.views(self._previous.clone())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` returned; of a state without a version before the newest, that is both."""
        super().load_state(state)
        if self._previous is not None:
            named = state.get(PREVIOUS, state["parameters"])
            for name, view in self._flat.views(self._previous).items():
                view.copy_(named[name])

    def _buffers(self) -> Sequence[Any]:
        newest, *moments = super()._buffers()
        return [newest, *([] if self._previous is None else [self._previous]), *moments]
