"""The process of a worker of `ddp`: the whole model, the whole optimizer, and a share of each step's slots."""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from distributed.agent import Control, Job
from distributed.arithmetic import FlatParameters, clip_, norm, square_sums
from distributed.ddp.group import broadcast, is_of_engine, join_group
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Link
from distributed.links.listener import Listener
from distributed.optimizers import build_optimizer
from distributed.parameter_server.messages import Kind
from distributed.process_meter import ProcessMeter
from distributed.process_report import process_report
from distributed.slot_tree import shares
from distributed.staging import choose_device
from distributed.strategy import Stage, WorkloadSpec
from distributed.timeline import Timeline


class _Loss(torch.nn.Module):
    """A slot's sum of token losses as a module's call, which is what DistributedDataParallel wraps."""

    def __init__(self, model: torch.nn.Module, stages: Sequence[Stage]):
        super().__init__()
        self.model, self._stages = model, stages

    def forward(self, slot: Any) -> torch.Tensor:
        """The loss of a slot; without one, a zero with which every parameter has something to do."""
        if slot is None:
            return torch.stack([(parameter * 0).sum() for parameter in self.model.parameters()]).sum()
        carried: dict[str, torch.Tensor] = {}
        for stage in self._stages:
            carried = stage(slot, carried)
        return carried["loss"]


@dataclass(frozen=True)
class _Grant:
    """How far a worker may go, and what concerns the steps up to there."""

    through: int = 0
    rate_scale: float = 1.0
    probe: bool = False


class Worker:
    """Worker `job.number`."""

    def __init__(self, job: Job, control: Control):
        content = job.content
        self._number, self._count, self._control = job.number, content["workers"], control
        self._timeline, self._faults = Timeline(f"worker {job.number}"), job.faults()
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        self._workload = workload = WorkloadSpec(**content["workload"]).build()
        choose_device(workload.device, job.number)
        self._meter = ProcessMeter(workload.device)
        self._model = workload.build_model()
        self._flat = FlatParameters(self._model)
        self._rule = build_optimizer(workload.optimizer)
        self._moments = {slot: torch.zeros_like(self._flat.values) for slot in self._rule.slots}
        self._state = {slot: self._flat.views(buffer) for slot, buffer in self._moments.items()}
        each = workload.plan.slots_per_group
        groups = shares(workload.plan.groups, self._count)[job.number]
        self._slots = range(groups.start * each, groups.stop * each)
        self._updates, self._last, self._refused, self._grant = 0, 0, 0, _Grant()
        self._group = join_group(
            job.options["engine"],
            content["store"]["host"],
            content["store"]["port"],
            address=job.options["bind"],
            rank=job.number,
            size=self._count,
            device=self._flat.values.device,
            seconds=job.options["deadline_seconds"],
        )
        self._prepare_sums(job.options["bucket_mib"])
        self._states: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        self._link: Link | None = None
        self._listener: Listener | None = None
        if job.number == 0:  # whole states pass through it
            membership = job.membership()
            self._listener = Listener(lambda: membership, self._accept, bind=job.options["bind"])
        addresses = None if self._listener is None else self._listener.addresses.as_dict()
        control.tell({"say": "ready", "addresses": addresses})

    def run(self) -> None:
        """Make steps as they are granted, until the control link ends."""
        main = self._timeline.main
        try:
            while True:
                with main.wait_barrier:
                    message = self._inbox.get()
                if message is None:
                    break
                self._obey(message)
                while self._last < self._grant.through and not self._ended.is_set():
                    self._step(self._last + 1)
                    while not self._inbox.empty() and (message := self._inbox.get()) is not None:
                        self._obey(message)
        except RuntimeError as error:
            if not is_of_engine(error):
                raise
            self._control.tell({"say": "interrupted", "reason": str(error).split(". ")[0]})
            self._ended.wait()
        if self._link is not None:
            self._link.close(1.0)
        if self._listener is not None:
            self._listener.close()

    def _prepare_sums(self, bucket_mib: int) -> None:
        """Have gradients summed over the group while a backward pass goes on."""
        loss = _Loss(self._model, self._workload.stages(self._model))
        self._loss = DistributedDataParallel(
            loss,
            process_group=self._group,
            bucket_cap_mb=bucket_mib,
            gradient_as_bucket_view=True,
            init_sync=False,  # every process builds the same bits
            find_unused_parameters=self._has_unused(loss),
        )

    def _step(self, step: int) -> None:
        grant, workload = self._grant, self._workload
        self._timeline.main.step = step
        tokens = sum(workload.slot_tokens(step))
        with self._timeline.main.busy:
            losses, facts, total = self._gradient(step, tokens, grant.probe)
            sums = {name: square_sums(parameter.grad.view(-1)) for name, parameter in self._parameters()}
            gradient_norm = norm([one for some in sums.values() for one in some])
            rate = workload.learning_rate(step) * grant.rate_scale
            finite = math.isfinite(gradient_norm) and bool(torch.isfinite(total))
            probed = grant.probe and self._number == 0
            before = self._flat.values.clone() if probed else None
            if finite:
                self._clip(sums, gradient_norm)
                self._update(rate)
            if before is not None:
                before.sub_(self._flat.values)
                facts["gradients"] = {name: norm(own) for name, own in sums.items()}
                facts["updates"] = {
                    name: norm(square_sums(view.reshape(-1))) for name, view in self._flat.views(before).items()
                }
            for _, parameter in self._parameters():
                parameter.grad = None
            self._last = step
            if not finite:  # what was granted beyond is not begun
                self._refused, self._grant = step, dataclasses.replace(grant, through=step)
            facts |= {"step": step, "losses": losses.tolist(), "norm": gradient_norm, "rate": rate, "finite": finite}
            self._control.tell({"say": "stepped", **facts})

    def _gradient(self, step: int, tokens: int, probe: bool) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
        """Bring the step's whole gradient into the parameters.

        Returns the losses of this worker's slots, what else they tell, and the sum of all workers' losses, [1] in fp64.
        """
        counts = self._workload.slot_tokens(step)
        mine: list[int | None] = [number for number in self._slots if counts[number]] or [None]
        facts: dict[str, Any] = {"tokens": tokens, "source_tokens": 0, "inner": {}}
        losses: list[torch.Tensor] = []
        self._faults.reach("forward", step)
        for number in mine:
            is_last = number == mine[-1]
            slot = None if number is None else self._workload.slot(step, number, probe)
            with nullcontext() if is_last else self._loss.no_sync():
                with self._workload.autocast():
                    loss = self._loss(slot)
                if slot is not None:
                    losses.append(loss.detach())
                if is_last:  # ahead of the buckets, so that it is there long before it is needed
                    total = loss.new_zeros(1, dtype=torch.float64)
                    for one in losses:
                        total += one
                    summed = self._group.allreduce([total])
                    self._faults.reach("backward", step)
                # Sums are divided by the number of workers in DistributedDataParallel, which so becomes no mean.
                self._backward(loss / tokens * self._count)
            if slot is not None:
                facts["source_tokens"] += slot.source_tokens
                for name, sums in slot.inner_square_sums().items() if probe else ():
                    facts["inner"].setdefault(name, []).extend(one / self._count**2 for one in sums)
        with self._timeline.main.wait_recv:
            summed.wait()
        return torch.stack(losses) if losses else total.new_zeros(0), facts, total

    def _backward(self, loss: torch.Tensor) -> None:
        """The backward pass; what it waits at its end for sums of other workers is no work."""
        engine = torch.autograd.Variable._execution_engine
        with ExitStack() as waiting:
            span = self._timeline.main.wait_recv

            def begin(gradient: torch.Tensor) -> None:
                # Called once all gradients are computed, ahead of what DistributedDataParallel leaves for that moment.
                engine.queue_callback(lambda: waiting.enter_context(span))

            loss.register_hook(begin)
            loss.backward()

    def _clip(self, sums: Mapping[str, Sequence[float]], gradient_norm: float) -> None:
        """Globally, then parameter by parameter where the specification says so."""
        specification = self._workload.optimizer
        for name, parameter in self._parameters():
            clip_(parameter.grad, gradient_norm, specification.max_norm)
            own = specification.parameter_max_norms.get(name, 0.0)
            if own:
                clip_(parameter.grad, norm(square_sums(parameter.grad.view(-1))), own)

    def _update(self, rate: float) -> None:
        self._updates += 1
        with torch.no_grad():
            for name, parameter in self._parameters():
                moments = {slot: views[name].view(-1) for slot, views in self._state.items()}
                self._rule.apply(parameter.data.view(-1), parameter.grad.view(-1), moments, self._updates, rate)

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "grant" if message["after"] >= self._refused:
                self._last = max(self._last, message["after"])
                self._grant = _Grant(message["through"], message["rate_scale"], message["probe"])
            case "load":
                self._updates, self._last, self._refused = message["updates"], 0, 0
                with torch.no_grad():
                    for buffer in (self._flat.values, *self._moments.values()):
                        if self._number == 0:
                            buffer.copy_(self._states.get(timeout=message["seconds"]))
                        broadcast(self._group, buffer)
                self._control.tell({"say": "loaded"})
            case "send":
                self._control.tell({"say": "digest", "digest": self._digest()})
                if self._link is not None:
                    for index, buffer in enumerate((self._flat.values, *self._moments.values())[: message["buffers"]]):
                        self._link.send(Frame(kind=Kind.STATE, tags=(0, index, 0)), buffer.detach().cpu())
                    self._link.flush()
            case "report":
                self._control.tell(process_report(self._timeline, self._meter))

    def _digest(self) -> int:
        """Of all parameters: an exact sum of their bits, which all workers must agree in."""
        return int(self._flat.values.view(torch.int32).sum(dtype=torch.int64))

    def _has_unused(self, loss: _Loss) -> bool:
        """Whether there are parameters that a slot does not use; all slots have the same graph."""
        tokens = self._workload.slot_tokens(1)
        number = next((number for number, count in enumerate(tokens) if count), None)
        if number is None:
            return True
        with self._workload.autocast():
            value = loss(self._workload.slot(1, number))
        value.backward()
        unused = any(parameter.grad is None for _, parameter in self._parameters())
        for _, parameter in self._parameters():
            parameter.grad = None
        return unused

    def _parameters(self) -> Sequence[tuple[str, Any]]:
        return list(self._model.named_parameters())

    def _accept(self, link: Link) -> None:
        self._link = link
        link.start(
            lambda frame: torch.empty(frame.length // 4),
            lambda frame, payload: self._states.put(as_tensor(payload, torch.float32).clone()),
            lambda reason: None,
        )

    def _listen(self) -> None:
        while True:
            what, message = self._control.inbox.get()
            if what == "ended":
                break
            self._inbox.put(message)
        self._ended.set()
        self._inbox.put(None)
