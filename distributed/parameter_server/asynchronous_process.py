"""The process of a worker under SSP and ASP."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.arithmetic import clip_, clip_parameters_, norm, parameter_norms, square_sums
from distributed.parameter_server.asynchronous_worker import Assignment, AsynchronousWorker, assignment_of
from distributed.parameter_server.kept_back import frames_of, put
from distributed.parameter_server.messages import Table
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.worker import Worker
from distributed.slot_tree import shares


class AsynchronousWork(Worker):
    """Worker `job.number`: computes tickets from whatever values it was answered, and clips its own gradients."""

    _core: AsynchronousWorker  # type: ignore[assignment]
    _gradients_are_only_read = False  # they are clipped in place

    def __init__(self, job: Job, control: Control):
        self._leaves = [range(0)]
        super().__init__(job, control)
        self._leaves = shares(self._workload.plan.groups, job.content["setup"]["options"]["shares"])

    def _protocol(self, number: int, setup: Setup) -> AsynchronousWorker:  # type: ignore[override]
        staging = self._staging
        return AsynchronousWorker(number, setup, self._links, staging.values, staging.release, self._links.allocate)

    def _resume(self, table: Table, message: dict[str, Any]) -> None:
        self._core.resume(table)

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "ticket":
                with self._changed:
                    self._core.take(assignment_of(message))
                    self._changed.notify_all()
            case "memory":
                memory = self._core.wire.memory
                if memory is not None:
                    put(memory, message["frame"], message["payload"])
            case "remember":
                self._tell_kept_back()
            case _:
                super()._obey(message)

    def _tell_kept_back(self) -> None:
        """Send the coordinator what is kept back; it gives out no ticket before it has all of it."""
        kept = self._core.kept_back()
        for frame, content in frames_of(*kept) if kept else ():
            self._control.send(frame, content)
        self._control.tell({"say": "remembered", "part": kept[0] if kept else None})

    def _wait_for_parameters(self, pieces: Sequence[int]) -> None:
        """Do not wait: values of several moments must not be mixed, so all are here before a ticket is begun."""
        self._staging.use(pieces)
        self._progress.work("forward pass", self._timeline.main.step)

    def _work_once(self) -> bool:
        main = self._timeline.main
        with self._changed:
            while not self._core.is_fresh() and not self._over:
                ticket = self._core.assignment.ticket if self._core.assignment else None
                self._progress.wait("the values" if ticket else "a ticket", ticket.step if ticket else 0)
                # With a ticket it waits for values; at a horizon, where there is none for it, it rests.
                waits = main.wait_recv if ticket else main.wait_barrier
                with contextlib.nullcontext() if self._core.is_parked else waits:
                    self._changed.wait()
            assignment = self._core.assignment
        if self._over or assignment is None:
            return False
        main.step = assignment.ticket.step
        with main.busy:
            self._compute_ticket(assignment)
        return True

    def _compute_ticket(self, assignment: Assignment) -> None:
        step, share = assignment.ticket
        self._progress.work("gradient", step)
        leaves = self._leaves[share]
        self._faults.reach("forward", step)
        with torch.enable_grad():
            facts, computed = self._gradients.compute(
                step, (leaves.start, leaves.stop), assignment.probe, lambda index, buffer: None, own_mean=True
            )
        specification = self._workload.optimizer
        gradient_norm = norm(square_sums(computed))
        losses = [loss for one in facts.values() for loss in one.losses]
        finite = math.isfinite(gradient_norm) and all(map(math.isfinite, losses))
        rate = self._workload.learning_rate(step) * assignment.rate_scale
        said = {
            "say": "computed",
            "step": step,
            "share": share,
            "norm": gradient_norm,
            "rate": rate,
            "finite": finite,
            "gradients": parameter_norms(self._flat, computed) if assignment.probe else {},
            "leaves": {str(leaf): dataclasses.asdict(one) for leaf, one in facts.items()},
        }
        if finite:
            clip_(computed, gradient_norm, specification.max_norm)
            clip_parameters_(self._flat, computed, specification.parameter_max_norms)
        gradient = self._staging.finish(computed)
        # A server may apply the push and this process be killed: a replay records its word then, and so must the run,
        # not that of whoever computes the ticket for the other servers.
        self._control.tell(said, written=True)
        with self._changed:
            if self._core.assignment is not assignment:
                self._staging.release(gradient)  # cleared meanwhile
            elif finite:
                self._core.push(gradient, rate)
            else:
                self._staging.release(gradient)
                self._core.give_up()
        self._faults.reach("pushed", step)
