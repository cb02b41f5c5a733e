"""The process of a node: one thread plays it (`distributed.ring_tmp.member`), others only bring what comes for it."""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.errors import FrameError, LinkError
from distributed.links.link import Link
from distributed.process_meter import ProcessMeter
from distributed.process_report import process_report
from distributed.ring_tmp.evaluations import Evaluations
from distributed.ring_tmp.links import Dialled, NeighbourLinks
from distributed.ring_tmp.mailbox import Mailbox
from distributed.ring_tmp.member import RingMember
from distributed.ring_tmp.membership import Answer, Hello
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.part_files import write_own
from distributed.ring_tmp.passes import Passes
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.speeds import model_work, rate, width_of
from distributed.ring_tmp.state_service import StateService
from distributed.strategy import WorkloadSpec
from distributed.timeline import Timeline


class Worker:
    """Node `job.number`: what comes, and who is to know of it."""

    member: type[RingMember] = RingMember
    """What plays it."""

    def __init__(self, job: Job, control: Control):
        self._control = control
        self._progress, self._listening = control.progress("compute"), control.progress("control")
        self._timeline = Timeline(f"worker {job.number}")
        self._mailbox = Mailbox()
        self._states = StateService(job, self._mailbox, control, lambda: self._member.setup)
        self._links = NeighbourLinks(job, control, self._mailbox, self._new_gradient, self._states.serve)
        self._workload = workload = WorkloadSpec(**job.content["workload"]).build()
        self._meter = ProcessMeter(workload.device, self._links.shared_bytes)
        passes = Passes(workload)
        self._member = self.member(job, control, self._links, self._mailbox, passes, workload, self._timeline)
        self._faults = job.faults()
        self._evaluations = Evaluations(job.number, passes, self._links, control, self._faults)
        self._waiting: list[tuple[Link, Hello]] = []  # nodes that dialled before this one was in a ring
        self._over = False
        self._listener = threading.Thread(target=self._listen, name="control", daemon=True)
        control.tell({"say": "ready", "addresses": self._links.addresses})

    def run(self) -> None:
        """Play the node until the control link ends."""
        self._listener.start()
        while not self._over:
            for link, event in self._mailbox.events():
                self._handle(link, event)
            if self._over or self._member.work(self._progress):
                continue
            if self._evaluations.work(self._member.node, self._progress):
                continue
            self._progress.wait("messages of its neighbours", self._member.applied)
            with self._idle():
                self._mailbox.wait()
        self._links.close()

    def _idle(self) -> AbstractContextManager[None]:
        """How the time counts until something comes: it is not idle while the trainer asks for no step."""
        return self._timeline.main.wait_recv if self._member.has_steps else contextlib.nullcontext()

    def _new_gradient(self, stage: int, elements: int) -> torch.Tensor:
        """Memory for what the predecessor ships; called by a link's thread."""
        return self._member.new_gradient(stage, elements)

    # ------------------------------------------------------------------------------------------------- events

    def _handle(self, link: Link | None, event: Any) -> None:
        """Take in what was posted."""
        member, links = self._member, self._links
        if isinstance(event, Dialled):
            if links.dialled(event):
                member.refused(event.number, links.is_first, None)
        elif link is None:
            self._obey(event)
        elif isinstance(event, LinkError):
            self._waiting = [one for one in self._waiting if one[0] is not link]
            match links.ended(link):
                case "next":
                    member.successor_lost()
                case "candidate":
                    member.refused(links.wanted, links.is_first, None)
        elif isinstance(event, Message):
            self._hear(link, event)
        elif member.applied == event["step"]:  # it is `pull`; where it is too early, the coordinator asks again
            own = {stage: one for stage, one in member.own_states.items() if event["stage"] in (None, stage)}
            self._states.send(link, event["step"], event["buffers"], own)

    def _hear(self, link: Link, message: Message) -> None:
        """Take in a message of a node."""
        member, links = self._member, self._links
        if message.kind == Kind.HELLO:
            content = message.payload
            hello = Hello(content["number"], tuple(content["gone"]), content["epoch"], content["after"])
            self._waiting.append((link, hello))
            self._answer()
        elif message.kind == Kind.ANSWER:
            answer, is_first = Answer(**message.payload), links.is_first
            if links.answered(link, answer):
                if not answer.is_accepted:
                    member.refused(links.wanted, is_first, answer)
                elif not is_first:  # of the first successor the membership knows already
                    member.linked()
        elif message.kind == Kind.SCORED:
            if link is links.before:
                self._evaluations.arrive(message)
        elif link is links.next or link is links.before:  # else it is of a link that is not used any more
            try:
                member.receive(message)
            except FrameError:
                link.shutdown()  # it is not to be trusted any more, and its end is an event

    def _answer(self) -> None:
        """Answer the nodes that want this one as their successor, as soon as it can be one."""
        if self._member.is_playing:
            waiting, self._waiting = self._waiting, []
            for link, hello in waiting:
                self._links.accept(link, self._member.dialled(hello))

    # ------------------------------------------------------------------------------------------------- coordinator

    def _listen(self) -> None:
        """In a thread of its own: hand on what the coordinator says, and answer what is no matter of the node."""
        self._control.listen(self._listening, self._forward)
        self._mailbox.post((None, {"do": "end"}))

    def _forward(self, message: dict[str, Any]) -> None:
        if "addresses" in message:
            self._links.learn(message["addresses"])
        if message["do"] == "report":
            self._control.tell(process_report(self._timeline, self._meter, links=self._links.counters()))
        else:
            self._mailbox.post((None, message))

    def _obey(self, message: dict[str, Any]) -> None:
        member = self._member
        match message["do"]:
            case "end":
                self._over = True
            case "measure":
                self._control.tell({"say": "measured", "rate": self._rate()})
            case "clear":
                self._waiting.clear()
                self._evaluations.forget()
                self._control.tell({"say": "cleared", "epoch": member.leave()})
            case "begin":
                placement = Placement.from_dict(message["placement"])
                member.begin(placement, self._states.taken())
                self._answer()
            case "join":
                member.join()
                self._answer()
            case "admit":
                member.guest = (message["number"], tuple(message["stages"]))
            case "grant":
                member.allow(message)
            case "score":
                self._evaluations.ask(message)
            case "searched":
                self._evaluations.end_search()
            case "write":
                self._write(message)

    def _write(self, order: dict[str, Any]) -> None:
        """Write the node's own stages where the trainer says; of an epoch that is over, it says so itself."""
        node = self._member.node
        if node is None or node.placement.ring.epoch != order["epoch"] or node.applied != order["step"]:
            return
        self._progress.work("write", node.applied)
        self._faults.reach("write", node.applied)
        own = self._member.own_states
        stages, refused = write_own(Path(order["directory"]), order["word"], own)
        updates = max((state.updates for state in own.values()), default=0)
        about = {"say": "written", "epoch": order["epoch"], "stages": stages, "updates": updates}
        self._control.tell(about | {"refused": refused})

    def _rate(self) -> float:
        """How often a second this process can do what the model needs, with its threads; see `speeds`."""
        shapes = (one.shape for part in self._member.setup.parts for one in part.held)
        return rate(model_work(self._workload, width_of(shapes)), lambda: self._progress.work("measuring itself"))
