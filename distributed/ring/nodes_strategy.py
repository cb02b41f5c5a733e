"""What strategies have in common whose nodes lie round a ring, whatever these compute."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from distributed.agent import Job
from distributed.errors import DistributedError
from distributed.launchers.choose import build_launcher, run_token
from distributed.parameter_server.members_strategy import MembersStrategy
from distributed.ring.nodes_coordinator import NodesCoordinator
from distributed.strategy import WorkloadSpec

Nodes = TypeVar("Nodes", bound=NodesCoordinator[Any])


class NodesStrategy(MembersStrategy[Nodes]):
    """This process coordinates, evaluates and writes checkpoints."""

    where = NodesCoordinator.where

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
    def _new_coordinator(self, job: Job, workload: Mapping[str, Any]) -> Nodes:
        """The coordinator of the strategy's own nodes, which are told the workload's specification.

        What cannot be trained so is refused here, before there is any process.
        """

    def _ask_nodes_for(self, index: int, rate_scale: float, probe: bool, horizon: int | None) -> Nodes:
        """Have a step done, and some ahead; returns who will tell of it."""
        coordinator = self._running()
        if not self._begun:
            coordinator.begin(index, self._buffers(), self._updates)
            self._begun, self._granted = True, index - 1
        through = self._ask_for(index, horizon)
        if through is not None:
            coordinator.grant(index - 1, through, rate_scale, index if probe else 0)
        return coordinator

    def _buffers(self) -> Sequence[Any]:
        """What nodes are given and asked for, as their coordinator takes it: the newest parameters first."""
        return [self._values, *self._moments.values()]

    def _places(self) -> dict[str, tuple[int, int]]:
        """By parameter, where it lies in the flat buffer."""
        return {name: (start, start + shape.numel()) for name, (start, shape) in self._flat.layout.items()}

    def _refuse_gpus(self) -> None:
        """Raise DistributedError where the nodes' computation cannot be where it was asked for."""
        if self._workload.device != "cpu":
            raise DistributedError(
                "the ring's nodes compute on CPUs",
                where="device",
                allowed=["cpu"],
                hint="device=cpu, or distribution=ring_allreduce, which computes on GPUs",
            )

    def _fetch(self, whole: bool) -> None:
        self._updates = self._running().pull(self._last, self._buffers() if whole else [self._values])
