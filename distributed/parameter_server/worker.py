"""The process of a worker: one thread computes, one listens to the coordinator, those of its links take answers in."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.arithmetic import FlatParameters
from distributed.gradients import NodeGradients
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Discard
from distributed.parameter_server.data_links import DataLinks
from distributed.parameter_server.messages import Kind, Member, Table, server
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.synchronous_worker import Grant, SynchronousWorker
from distributed.process_meter import ProcessMeter
from distributed.process_report import process_report
from distributed.slot_tree import Node
from distributed.staging import Staged, Staging, Unstaged, choose_device, copies_of, is_staged
from distributed.strategy import WorkloadSpec
from distributed.timeline import Timeline


class Withdrawn(Exception):
    """What is being computed is of no use any more."""


class Worker:
    """Worker `job.number`: computes the gradients of its share of each step."""

    _gradients_are_only_read = True

    def __init__(self, job: Job, control: Control):
        self._job, self._control = job, control
        self._timeline = Timeline(f"worker {job.number}")
        self._faults = job.faults()
        self._progress, self._listening = control.progress("compute"), control.progress("control")
        spec = WorkloadSpec(**job.content["workload"])
        self._workload = spec.build()
        choose_device(self._workload.device, job.number)
        model = self._workload.build_model()
        self._links = DataLinks(job, control, self._place, self._deliver, listen=False)
        setup = Setup.from_dict(job.content["setup"])
        self._flat, self._staging = self._memory(model, setup)
        self._meter = ProcessMeter(self._workload.device, self._links.shared_bytes)
        self._changed = threading.Condition()  # guards the protocol's state
        self._core = self._protocol(job.number, setup)
        self._gradients = NodeGradients(
            self._workload,
            model,
            self._flat,
            setup.shard_map.pieces,
            self._wait_for_parameters,
            only_read=self._gradients_are_only_read,
        )
        self._computing: tuple[int, Node] = (0, (0, 0))
        self._over = False
        self._listener = threading.Thread(target=self._listen, name="control", daemon=True)
        control.tell({"say": "ready"})

    def run(self) -> None:
        """Compute until the control link ends."""
        self._listener.start()
        while self._work_once():
            pass
        self._staging.close()
        self._links.close()

    def _memory(self, model: torch.nn.Module, setup: Setup) -> tuple[FlatParameters, Staging]:
        """The model's flat buffers, and what links read and write of them."""
        device = next(model.parameters()).device
        if not is_staged(device, self._job.options["staging"] == "always"):
            flat = FlatParameters(model, self._links.allocate)
            return flat, Unstaged(flat)
        flat = FlatParameters(model)
        shared = self._links.allocate if self._links.arena is not None else None
        return flat, Staged(flat, setup.shard_map.pieces, copies_of(device), shared, self._timeline.main)

    def _protocol(self, number: int, setup: Setup) -> SynchronousWorker:
        staging = self._staging
        return SynchronousWorker(number, setup, self._links, staging.values, staging.release, self._links.allocate)

    def _work_once(self) -> bool:
        """Compute what is next, when there is something; False where all is over."""
        main = self._timeline.main
        with self._changed:
            work = self._core.next_node()
            self._progress.wait("something to compute, behind its share", self._core.step)
            while work is None and not self._over:
                # It is not idle while the trainer asks for no step: at an evaluation everybody rests.
                with main.wait_barrier if self._core.is_wanted else contextlib.nullcontext():
                    self._changed.wait()
                work = self._core.next_node()
        if work is None or self._over:
            return False
        main.step = work[0]
        with main.busy, contextlib.suppress(Withdrawn):
            self._compute(*work)
        return True

    def _compute(self, step: int, node: Node) -> None:
        self._computing = (step, node)
        self._progress.work("gradient", step)
        with self._changed:
            grant = self._core.grant
        self._faults.reach("forward", step)

        def push(index: int, gradient: torch.Tensor) -> None:
            with self._changed:
                self._core.push(step, node, index, gradient)

        def ready(index: int, gradient: torch.Tensor) -> None:
            self._progress.work("backward pass", step)
            self._staging.hand_on(index, gradient, push)

        with torch.enable_grad():
            facts, computed = self._gradients.compute(step, node, grant.probe, ready)
        gradient = self._staging.finish(computed)
        self._faults.reach("pushed", step)
        tokens = sum(self._workload.slot_tokens(step))
        rate = self._workload.learning_rate(step) * grant.rate_scale
        with self._changed:
            if self._core.step == step:
                leaves = {leaf: dataclasses.asdict(one) for leaf, one in facts.items()}
                self._core.contribute(node, tokens, rate, leaves)
            elif not self._core.has(gradient):  # the step was over before any of it was pushed
                self._staging.release(gradient)

    def _wait_for_parameters(self, pieces: Sequence[int]) -> None:
        """Before a stage: until its parameters are those that the step before has left."""
        step, _ = self._computing
        with self._timeline.main.wait_recv, self._changed:
            self._progress.wait("the parameters", step - 1)
            while not self._core.is_fresh(pieces):
                if self._over or not self._core.wants(*self._computing):
                    raise Withdrawn
                self._changed.wait()
        self._staging.use(pieces)
        self._progress.work("forward pass", step)

    def _listen(self) -> None:
        self._control.listen(self._listening, self._obey)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "resume":
                table = Table.from_dict(message["table"])
                members = set(map(server, table.servers))
                self._links.admit(table.epoch, lambda member: member in members)
                self._links.drop(lambda member: member in members)
                for one in table.servers:
                    self._links.connect(server(one), message["addresses"][str(one)])
                with self._changed:
                    self._resume(table, message)
                    self._changed.notify_all()
            case "grant":
                with self._changed:
                    self._core.allow(Grant(message["through"], message["rate_scale"], message["probe"]))
                    self._changed.notify_all()
            case "clear":
                with self._changed:
                    self._core.clear()
                    self._changed.notify_all()
                self._control.tell({"say": "cleared"})
            case "report":
                wire = self._core.wire.sent.to_dict()
                self._control.tell(process_report(self._timeline, self._meter, links=self._links.counters(), wire=wire))

    def _resume(self, table: Table, message: dict[str, Any]) -> None:
        self._core.resume(table, message["open"], message["mine"])

    def _place(self, frame: Frame) -> torch.Tensor | Discard | None:
        return self._core.place(frame)

    def _deliver(self, member: Member, frame: Frame, payload: memoryview) -> None:
        if frame.kind == Kind.REPLY:
            if not self._core.put(frame, as_tensor(payload, torch.float32)):
                return
            self._staging.arrived(frame.tags[0])
        with self._changed:
            self._core.receive(member, frame)
            self._changed.notify_all()
