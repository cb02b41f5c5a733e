"""The strategy `parameter_server` as the trainer sees it, and the coordinator behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from distributed.agent import Job
from distributed.arithmetic import norm, parameter_norms
from distributed.coordinating import AHEAD, inner_norms, step_stats
from distributed.launchers.choose import build_launcher, run_token
from distributed.parameter_server.asynchronous_coordinator import AsynchronousCoordinator
from distributed.parameter_server.coordinator import Applied, Coordinator
from distributed.parameter_server.members_strategy import MembersStrategy
from distributed.parameter_server.setup import Setup, Wire
from distributed.shards import MIB
from distributed.staging import is_staged
from distributed.strategy import Probe, StepStats, WorkloadSpec

LEFT_OUT = "left_out.jsonl"  # the journal of steps to which not every leaf of the summation tree has contributed


class ParameterServerStrategy(MembersStrategy[Coordinator]):
    """Shards on servers, gradients from workers; this process coordinates, evaluates and writes checkpoints.

    Under BSP its results are those of `distributed.single`, bit for bit, whatever the numbers of workers and servers.
    """

    def __init__(self, options: Mapping[str, Any]):
        super().__init__(options)
        self._is_synchronous = options["mode"] == "bsp"
        self._left_out: list[str] = []  # lines that no journal has yet

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model here, for evaluation, and bring workers and servers up."""
        options = self._options
        self._build(spec)
        layout = {name: (start, start + shape.numel()) for name, (start, shape) in self._flat.layout.items()}
        setup = Setup(
            elements=self._values.numel(),
            layout=layout,
            shards=options["servers"],
            bucket_bytes=options["bucket_mib"] * MIB,
            leaves=self._workload.plan.groups,
            optimizer=self._workload.optimizer,
            backup=options["backup"],
            lost_leaves=options["on_loss"],
            workers=options["workers"],
            widths={name: shape[1] for name, (_, shape) in self._flat.layout.items() if len(shape) == 2},
            wire=Wire(
                type=options["wire"],
                sparse=options["sparse"],
                top_k=options["top_k"],
                warm_up=options["top_k_warm_up"],
                momentum=options["top_k_momentum"],
            ),
            options={
                "mode": options["mode"],
                "staleness": options["staleness"],
                "workers": options["workers"],
                "apply_every": options["apply_every"],
                "rate_scaling": options["rate_scaling"],
                "shares": options["workers"] if options["batch_per"] == "step" else 1,
                "train_id": options["train_id"],
                "replay": options.get("replay", ""),
            },
        )
        token = run_token(options)
        workload = {"factory": spec.factory, "arguments": dict(spec.arguments)}
        kind = Coordinator if self._is_synchronous else AsynchronousCoordinator
        self._coordinator = kind(Job("coordinator", 0, options["run"], token, options, {}), setup, workload)
        self._launcher = build_launcher(options, self._coordinator.address, token, options["run"])
        self._coordinator.start(self._launcher)

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        coordinator = self._running()
        if not self._begun:
            coordinator.begin(index, self._values, list(self._moments.values()), self._updates)
            self._begun, self._granted = True, index - 1
        before = self._parameters() if probe and not self._is_synchronous else None
        through = self._ask_for(index, horizon, AHEAD + (0 if self._is_synchronous else self._options["workers"]))
        if through is not None:
            coordinator.grant(through, rate_scale, probe)
        applied = coordinator.wait_for(index)
        self._returned(index, applied.decision["finite"])
        self._note_left_out(index, applied.decision["leaves"])
        return self._stats(index, applied.decision, self._probe(applied, before) if probe else None)

    def halt(self) -> int:
        """The last step that was begun."""
        if isinstance(self._coordinator, AsynchronousCoordinator) and self._begun:
            self._granted = self._coordinator.halt()
        return super().halt()

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU."""
        return super().state() | self._kept_back()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` returned; the servers get it with the next step."""
        super().load_state(state)
        self._give_to_model()
        self._restore_kept_back(state)

    def journals(self) -> Mapping[str, bytes]:
        """Times of every process; under SSP and ASP the shards' traces; which leaves were left out of which steps."""
        found = dict(super().journals())
        if self._left_out:
            found[LEFT_OUT] = "".join(self._left_out).encode()
            self._left_out.clear()
        return found

    def _note_left_out(self, index: int, leaves: Iterable[Any]) -> None:
        """Under `on_loss=drop` and with backup workers a step may be the sum of fewer leaves than its plan has."""
        left_out = sorted(set(range(self._workload.plan.groups)) - set(map(int, leaves)))
        if left_out:
            self._left_out.append(json.dumps({"step": index, "leaves": left_out}) + "\n")

    def _host_values(self) -> torch.Tensor:
        """What servers say comes to the host; the model, where it lies elsewhere, gets it before it evaluates."""
        values = self._flat.values
        staged = is_staged(values.device, self._options["staging"] == "always")
        return torch.empty(values.numel()).copy_(values) if staged else values

    def _fetch(self, whole: bool) -> None:
        moments = list(self._moments.values()) if whole else []
        self._updates = self._running().pull(self._last, self._values, moments)
        self._give_to_model()

    def _give_to_model(self) -> None:
        if self._values is not self._flat.values:
            with torch.no_grad():
                self._flat.values.copy_(self._values)

    def _kept_back(self) -> dict[str, Any]:
        """What workers keep back of their gradients, by the number of each, as an entry of the state; else nothing."""
        coordinator = self._coordinator
        if not isinstance(coordinator, AsynchronousCoordinator) or not coordinator.kept_back.is_used:
            return {}
        memories = coordinator.memories() if self._begun else coordinator.kept_back.memories
        buffers = {str(part): memory.buffers for part, memory in sorted(memories.items())}
        views = {part: {name: self._flat.views(one) for name, one in own.items()} for part, own in buffers.items()}
        return {"kept_back": views}

    def _restore_kept_back(self, state: Mapping[str, Any]) -> None:
        coordinator = self._coordinator
        if isinstance(coordinator, AsynchronousCoordinator):
            memories = {}
            for part, buffers in state.get("kept_back", {}).items():
                memory = memories[int(part)] = coordinator.kept_back.new()
                for name, buffer in memory.buffers.items():
                    for parameter, view in self._flat.views(buffer).items():
                        view.copy_(buffers[name][parameter])
            coordinator.restore(memories)

    def _parameters(self) -> torch.Tensor:
        """The servers' parameters now, in a buffer of their own."""
        self.synchronize()
        self._pull(whole=False)
        return self._values.clone()

    def _probe(self, applied: Applied, before: torch.Tensor | None) -> Probe:
        """What was seen of a probed step: the servers' parts under BSP, else the worker's and what became of it."""
        inside = inner_norms(applied.decision["leaves"].values())
        if before is None:
            names = self._flat.layout
            return Probe(_norms(applied.probed, "gradients", names), _norms(applied.probed, "updates", names), inside)
        updates = parameter_norms(self._flat, before.sub_(self._parameters()))
        return Probe(applied.probed, updates, inside)

    def _stats(self, index: int, decision: Mapping[str, Any], probe: Probe | None) -> StepStats:
        leaves = decision["leaves"].values()
        tokens = sum(leaf["tokens"] for leaf in leaves)
        return step_stats(index, leaves, tokens, decision["norm"], decision["rate"], probe)


def _norms(probed: Mapping[str, Any], kind: str, names: Mapping[str, Any]) -> dict[str, float]:
    """Each parameter's norm from its parts in all shards."""
    return {name: norm([one for parts in probed.values() for one in parts[kind].get(name, [])]) for name in names}
