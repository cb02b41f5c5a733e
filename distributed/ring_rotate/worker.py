"""The process of a node: one thread computes and plays the node, links' threads take in what neighbours send."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Discard, Payload
from distributed.process_meter import ProcessMeter
from distributed.process_report import process_report
from distributed.ring.messages import Ring
from distributed.ring.neighbours import Neighbours
from distributed.ring_rotate.computation import Computation
from distributed.ring_rotate.messages import PHASES, Kind, Message
from distributed.ring_rotate.node import RotateNode
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.state_service import StateService
from distributed.ring_rotate.step import Steps
from distributed.ring_tmp.grants import Grants
from distributed.strategy import WorkloadSpec
from distributed.timeline import Timeline

INTERRUPTING = ("clear", "reconfigure")  # words behind which the open step is of no use


class Withdrawn(Exception):
    """What is being computed is of no use any more."""


class Worker:
    """Node `job.number`: computes the shares of its seats with parameters that come and go, and steps its shards."""

    def __init__(self, job: Job, control: Control):
        self._job, self._control = job, control
        self._timeline, self._faults = Timeline(f"worker {job.number}"), job.faults()
        self._progress, self._listening = control.progress("compute"), control.progress("control")
        self._receiving, self._hearing = control.progress("predecessor"), control.progress("successor")
        self._workload = WorkloadSpec(**job.content["workload"]).build()
        self._changed = threading.Condition()  # guards what follows
        self._links = Neighbours(
            job, control, self._place, self._deliver, lambda link: self._states.serve(link), phases=PHASES
        )
        self._meter = ProcessMeter(self._workload.device, self._links.shared_bytes)
        named = {name: (bounds[0], bounds[1]) for name, bounds in job.content["named"].items()}
        self._computation = Computation(self._workload, job.options["nodes"], self._check_wanted, named)
        self._node = RotateNode(
            job.number,
            self._computation.plan,
            self._workload.optimizer,
            self._computation.memories,
            self,
            shadows=bool(job.options["shadows"]),
        )
        self._steps = Steps(
            self._node, self._computation, self._workload.optimizer, self._changed, self._timeline.main, self._reach
        )
        self._states = StateService(self._node, self._changed, control)
        self._grants = Grants()
        self._words: deque[Message] = deque()
        self._interruptions = 0  # how many of them are `INTERRUPTING`
        self._over = False
        self._listener = threading.Thread(target=self._listen, name="control", daemon=True)
        control.tell({"say": "ready", "addresses": self._links.addresses})

    def run(self) -> None:
        """Play the node until the control link ends."""
        self._listener.start()
        while True:
            self._progress.wait("something to do, behind step", self._node.applied)
            with self._changed:
                while not (self._over or self._words or self._may_step):
                    self._changed.wait()  # the trainer asks for no step, or no ring is there: nobody is idle
                if self._over:
                    break
                word = self._words.popleft() if self._words else None
                self._interruptions -= word is not None and word["do"] in INTERRUPTING
            if word is not None:
                self._obey(word)
            else:
                with contextlib.suppress(Withdrawn):
                    self._step()
        self._links.close()

    @property
    def _may_step(self) -> bool:
        return self._node.is_running and self._node.applied < self._grants.through

    # ------------------------------------------------------------------------------------------------- a step

    def _step(self) -> None:
        node, main = self._node, self._timeline.main
        with self._changed:
            self._check_wanted()
            step = main.step = node.applied + 1
            scale, probe = self._grants.scale(step), self._grants.is_probed(step)
        for wait in self._steps.walk(step, scale, probe):
            self._progress.wait(wait.what, step)
            with self._changed:
                self._check_wanted()
                while not wait.is_over():
                    with main.wait_recv:
                        self._changed.wait()
                    self._check_wanted()
        self._reach("summed", step)
        with main.busy, self._changed:
            told = node.apply()
            self._has_applied(told)
        self._reach("applied", step)
        self._control.tell(told)
        self._reach("told", step)

    def _has_applied(self, told: Message) -> None:
        if not told["about"]["finite"]:  # what was granted beyond is not begun
            self._grants.refuse(told["step"])
        self._grants.forget(told["step"])

    def _reach(self, what: str, step: int) -> None:
        self._progress.work(what, step)
        self._faults.reach(what, step)

    def _check_wanted(self) -> None:
        """Whether the open step is still of use."""
        if self._over or self._interruptions:
            raise Withdrawn

    # ------------------------------------------------------------------------------------------------- coordinator

    def _listen(self) -> None:
        self._control.listen(self._listening, self._hear)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _hear(self, message: dict[str, Any]) -> None:
        """In the thread that listens: what does not wait for a phase to end is done at once."""
        if message["do"] == "report":
            report = process_report(self._timeline, self._meter, links=self._links.counters())
            report["use"]["model_bytes"] = self._steps.most_bytes
            self._control.tell(report)
            return
        if message["do"] in INTERRUPTING:
            self._links.leave()
        with self._changed:
            if message["do"] == "grant":
                self._grants.take(message)
            else:
                self._words.append(message)
                self._interruptions += message["do"] in INTERRUPTING
            self._changed.notify_all()

    def _obey(self, message: Message) -> None:
        """In the thread that plays the node, between steps."""
        node = self._node
        match message["do"]:
            case "clear":
                self._links.leave()
                self._computation.forget()
                with self._changed:
                    node.clear()
                    self._grants = Grants()
                self._control.tell({"say": "cleared"})
            case "reconfigure":
                self._faults.reach("reconfigure", node.applied + 1)
                self._links.leave()
                self._computation.forget()
                ring = Ring.from_dict(message["ring"])
                with self._changed:
                    status = node.reconfigure(Seating(ring, tuple(message["owners"])), message["new"])
                self._links.enter(ring, message["addresses"])
                self._control.tell(status)
            case "settle":
                self._faults.reach("settle", node.applied + 1)
                with self._changed:
                    told = node.settle(message["epoch"], message["newest"], message["said"], message["give"])
                    if told is not None:
                        self._has_applied(told)
            case "resume":
                with self._changed:
                    node.resume(message["epoch"], message["open"])

    # ------------------------------------------------------------------------------------------------- neighbours

    def send(self, frame: Frame, payload: Payload = b"", done: Callable[[], None] | None = None) -> None:
        """Part of `messages.Outbox`."""
        if done is None:
            self._links.send(frame, payload)
            return

        def is_written() -> None:
            with self._changed:
                done()
                self._changed.notify_all()

        self._links.send(frame, payload, is_written)

    def send_back(self, frame: Frame) -> None:
        """Part of `messages.Outbox`."""
        self._links.send_back(frame)

    def tell(self, message: Message) -> None:
        """Part of `messages.Outbox`."""
        self._control.tell(message)

    def _place(self, frame: Frame) -> torch.Tensor | Discard | None:
        with self._changed:
            return self._node.place(frame)

    def _deliver(self, frame: Frame, payload: memoryview) -> None:
        kind = Kind(frame.kind)
        progress, whom = self._receiving, "its predecessor"
        if kind == Kind.ROOM:  # it comes by the other link, in a thread of its own
            progress, whom = self._hearing, "its successor"
        progress.work(PHASES[kind], frame.step)
        self._faults.reach(PHASES[kind], frame.step)
        content = as_tensor(payload, torch.float32) if kind == Kind.REDUCE else payload
        with self._changed:
            self._node.receive(frame, content)
            self._changed.notify_all()
        progress.wait(whom)
