"""The strategy `ring_allreduce` as the trainer sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from distributed.agent import Job
from distributed.arithmetic import FlatParameters, norm
from distributed.errors import DistributedError
from distributed.launchers.choose import Launcher, build_launcher, prepare, run_token
from distributed.optimizers import build_optimizer
from distributed.ring.coordinator import RingCoordinator
from distributed.ring.engine import EngineStrategy
from distributed.run_figures import RunFigures
from distributed.state import from_state, to_state
from distributed.strategy import Probe, StepStats, Strategy, WorkloadSpec

AHEAD = 4  # steps that may be begun before the trainer asks for them


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy: with the engine `own` that of this package, else torch's sums of the same buckets."""
    return RingStrategy(options) if options["engine"] == "own" else EngineStrategy(options)


class RingStrategy:
    """Every node has the whole model and the whole optimizer; gradients are summed round a ring.

    This process coordinates, evaluates and writes checkpoints. A step's bits depend on how many workers are configured,
    and on nothing else: not on timing, and not on who is lost or comes.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._options = options
        self._coordinator: RingCoordinator | None = None
        self._launcher: Launcher | None = None
        self._begun = False  # whether the nodes have the state
        self._granted = self._last = self._updates = 0
        self._fresh = True  # whether this process has the parameters of `_last`

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model here, for evaluation, and bring the nodes up."""
        options = self._options
        prepare(options, [spec.module])
        self._workload = spec.build()
        self._figures = RunFigures(self._workload.device)
        self._model = self._workload.build_model()
        self._flat = FlatParameters(self._model)
        rule = build_optimizer(self._workload.optimizer)
        self._moments = {slot: torch.zeros_like(self._flat.values) for slot in rule.slots}
        token = run_token(options)
        workload = {"factory": spec.factory, "arguments": dict(spec.arguments)}
        self._coordinator = RingCoordinator(Job("coordinator", 0, options["run"], token, options, {}), workload)
        self._launcher = build_launcher(options, self._coordinator.address, token, options["run"])
        self._coordinator.start(self._launcher)

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        coordinator = self._running()
        if not self._begun:
            coordinator.begin(index, [self._flat.values, *self._moments.values()], self._updates)
            self._begun, self._granted = True, index - 1
        self._figures.step_asked()
        through = max(index, min(horizon or index, index + AHEAD))
        few = through - self._granted < AHEAD // 2 and through != horizon  # fewer messages, unless these are the last
        if through > self._granted and (index > self._granted or not few):
            coordinator.grant(index - 1, through, rate_scale, index if probe else 0)
            self._granted = through
        said = coordinator.wait_for(index)
        self._last, self._fresh = index, False
        if not said["about"]["finite"]:  # nobody has begun what comes behind it, though it was allowed
            self._granted = index
        self._figures.step_returned(ahead=self._granted > index)
        return _stats(index, said, probe)

    def halt(self) -> int:
        """The last step that was begun."""
        return max(self._granted, self._last)

    def synchronize(self) -> None:
        """Wait until no change of members is under way: a step is told of once every node has applied it."""
        if self._begun:
            self._running().wait_until_rest(self._last)

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU."""
        self._pull(whole=True)
        return to_state(self._flat, self._flat.values, self._moments, self._updates)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` returned; the nodes get it with the next step."""
        self._updates = from_state(state, self._flat, self._flat.values, self._moments)
        self._begun, self._fresh = False, True

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        """The model of this process, with the nodes' parameters."""
        self._pull(whole=False)
        with torch.inference_mode():
            yield self._model

    def journals(self) -> Mapping[str, bytes]:
        """Times of every node."""
        return self._running().journals()

    def report(self) -> Mapping[str, Any]:
        """What `RunFigures.of` makes of all nodes' reports, losses and recoveries."""
        found = dict(self._running().report())
        return self._figures.of(found.pop("processes")) | found

    def close(self) -> None:
        """Stop every process."""
        with ExitStack() as closing:  # the processes whatever becomes of their links
            if self._launcher is not None:
                closing.callback(self._launcher.close)
            if self._coordinator is not None:
                closing.callback(self._coordinator.close)
            self._coordinator = self._launcher = None

    def _running(self) -> RingCoordinator:
        if self._coordinator is None:
            raise DistributedError("is not running", where=RingCoordinator.where)
        return self._coordinator

    def _pull(self, whole: bool) -> None:
        """Get what the nodes have, unless it is here already."""
        if not self._begun or (self._fresh and not whole):
            return
        moments = list(self._moments.values()) if whole else []
        with torch.inference_mode():
            self._updates = self._running().pull(self._last, [self._flat.values, *moments])
        self._fresh = True


def _stats(index: int, said: Mapping[str, Any], probe: bool) -> StepStats:
    """What nodes have said of a step, together."""
    shares = [share for _, share in sorted(said["facts"].items(), key=lambda one: int(one[0]))]
    leaves = [leaf for share in shares for leaf in share["leaves"].values()]
    about = said["about"]
    seen = None
    if probe:
        inner: dict[str, list[float]] = {}
        for leaf in leaves:
            for name, sums in leaf["inner"].items():
                inner.setdefault(name, []).extend(sums)
        seen = Probe(about["gradients"], about["updates"], {name: norm(sums) for name, sums in inner.items()})
    tokens = shares[0]["tokens"]
    return StepStats(
        index=index,
        loss=math.fsum(loss for leaf in leaves for loss in leaf["losses"]) / tokens,
        target_tokens=tokens,
        source_tokens=sum(leaf["source_tokens"] for leaf in leaves),
        gradient_norm=about["norm"],
        learning_rate=about["rate"],
        probe=seen,
    )
