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
from distributed.links.link import DISCARD, Discard, Payload
from distributed.process_meter import ProcessMeter
from distributed.ring.messages import Ring
from distributed.ring.neighbours import Neighbours
from distributed.ring_rotate.computation import Computation
from distributed.ring_rotate.messages import PHASES, Kind, Message
from distributed.ring_rotate.node import RotateNode
from distributed.ring_rotate.plan import Phase
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.state_service import StateService
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
        self._receiving = control.progress("neighbours")
        self._workload = WorkloadSpec(**job.content["workload"]).build()
        self._changed = threading.Condition()  # guards what follows
        self._links = Neighbours(
            job, control, self._place, self._deliver, lambda link: self._states.serve(link), phases=PHASES
        )
        self._meter = ProcessMeter(self._workload.device, self._links.shared_bytes)
        self._computation = Computation(self._workload, job.options["nodes"], self._check_wanted)
        self._node = RotateNode(
            job.number,
            self._computation.plan,
            self._workload.optimizer,
            self._computation.memories,
            self,
            shadows=bool(job.options["shadows"]),
        )
        self._states = StateService(self._node, self._changed, control)
        self._grants = Grants()
        self._words: deque[Message] = deque()
        self._interruptions = 0  # how many of them are `INTERRUPTING`
        self._over = False
        self._most_bytes = 0  # of parameters, gradients and optimizer state that were here at a time
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
        node, computation, main = self._node, self._computation, self._timeline.main
        with self._changed:
            step = main.step = node.applied + 1
            seats, probe = node.own_seats, self._grants.is_probed(step)
        self._progress.work("batches", step)
        with main.busy:
            computation.begin(step, seats, probe)
        phases = computation.plan.phases
        brought: dict[int, int] = {}  # by unit that is here, the gather that has brought it
        self._open(phases[0])
        for number, phase in enumerate(phases):
            self._until(lambda: all(map(node.gathers.is_here, phase.gathers)), "parameters", step)
            brought |= zip(phase.brings, phase.gathers, strict=True)
            if number:
                self._let_go(phases[number - 1], brought, step)
            if number + 1 < len(phases):
                self._open(phases[number + 1])
            if number > 1:  # so that gradients of two phases are here, at most
                done = phases[number - 2].completes
                self._until(lambda: all(map(node.reduces.is_done, done)), "room for gradients", step)
            self._progress.work(phase.kind.value, step)
            self._faults.reach(phase.kind.value, step)
            with main.busy:
                complete = computation.run(phase)
            self._note_bytes(sum(one.nbytes for of_seats in complete.values() for one in of_seats.values()))
            with self._changed:
                for unit, gradients in complete.items():
                    node.reduces.contribute(unit, gradients)
            del complete
        self._let_go(phases[-1], brought, step)
        self._speak(step)
        self._apply(step)

    def _speak(self, step: int) -> None:
        """Say what there is to say of this node's seats, once their gradients are complete."""
        node, specification = self._node, self._workload.optimizer
        said = self._computation.facts()
        self._until(lambda: node.is_complete, "gradients", step)
        self._progress.work("square sums", step)
        with self._timeline.main.busy:
            for seat, of_seat in said.items():
                gradient, shard = node.gradient(seat), node.shards[seat]
                of_seat["rate"] *= self._grants.scale(step)
                of_seat["squares"] = shard.square_sum(gradient)
                of_seat["clipped"] = shard.squares(gradient, list(specification.parameter_max_norms))
                of_seat["probed"] = shard.squares(gradient) if of_seat["probe"] else {}
        self._faults.reach("complete", step)
        with self._changed:
            node.speak(said)
        self._until(lambda: node.is_decided, "what others say", step)

    def _apply(self, step: int) -> None:
        self._progress.work("update", step)
        self._faults.reach("summed", step)
        with self._timeline.main.busy, self._changed:
            told = self._node.apply()
            if not told["about"]["finite"]:  # what was granted beyond is not begun
                self._grants.refuse(step)
            self._grants.forget(step)
        self._faults.reach("applied", step)
        self._control.tell(told)
        self._faults.reach("told", step)

    def _open(self, phase: Phase) -> None:
        """Make room for what a phase needs that is not here."""
        with self._timeline.main.copy, self._changed:
            self._check_wanted()
            for gather in phase.gathers:
                self._node.open_gather(gather)
        self._note_bytes(0)

    def _let_go(self, phase: Phase, brought: dict[int, int], step: int) -> None:
        """Give the memory of units back that a phase was the last to read for now, once they are sent on."""
        gathers = [brought[unit] for unit in phase.frees]
        self._until(lambda: all(map(self._node.gathers.is_gone, gathers)), "its successor to take parameters", step)
        for unit in phase.frees:
            self._computation.memories[unit].free()

    def _until(self, condition: Callable[[], bool], what: str, step: int) -> None:
        """Wait for something that neighbours bring about."""
        self._progress.wait(what, step)
        with self._changed:
            self._check_wanted()
            while not condition():
                with self._timeline.main.wait_recv:
                    self._changed.wait()
                self._check_wanted()

    def _check_wanted(self) -> None:
        """Whether the open step is still of use."""
        if self._over or self._interruptions:
            raise Withdrawn

    def _note_bytes(self, more: int) -> None:
        with self._changed:
            self._most_bytes = max(self._most_bytes, self._node.bytes + self._computation.bytes + more)

    # ------------------------------------------------------------------------------------------------- coordinator

    def _listen(self) -> None:
        self._control.listen(self._listening, self._hear)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _hear(self, message: dict[str, Any]) -> None:
        """In the thread that listens: what does not wait for a phase to end is done at once."""
        if message["do"] == "report":
            self._control.tell(
                {
                    "say": "report",
                    "times": self._timeline.totals().to_dict(),
                    "links": self._links.counters(),
                    "use": self._meter.to_dict() | {"model_bytes": self._most_bytes},
                    "timeline": self._timeline.take().decode(),
                }
            )
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
                    status = node.reconfigure(Seating(ring, tuple(message["owners"])))
                self._links.enter(ring, message["addresses"])
                self._control.tell(status)
            case "settle":
                self._faults.reach("settle", node.applied + 1)
                with self._changed:
                    node.settle(message["epoch"], message["newest"], message["said"], message["give"])
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

    def _place(self, frame: Frame) -> torch.Tensor | memoryview | Discard | None:
        with self._changed:
            return self._node.place(frame) if frame.epoch == self._node.seating.ring.epoch else DISCARD

    def _deliver(self, frame: Frame, payload: memoryview) -> None:
        kind = Kind(frame.kind)
        self._receiving.work(PHASES[kind], frame.step)
        self._faults.reach(PHASES[kind], frame.step)
        content = as_tensor(payload, torch.float32) if kind == Kind.REDUCE else payload
        with self._changed:
            self._node.receive(frame, content)
            self._changed.notify_all()
        self._receiving.wait("its neighbours")
