"""The process of a server: one thread that owns all state, fed by the links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.links.frames import Frame, as_tensor
from distributed.parameter_server.asynchronous_server import AsynchronousServer
from distributed.parameter_server.data_links import DataLinks
from distributed.parameter_server.messages import COORDINATOR, Kind, Member, Table, server
from distributed.parameter_server.replay import read_replay
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.synchronous_server import SynchronousServer
from distributed.process_meter import ProcessMeter
from distributed.process_report import process_report
from distributed.timeline import Timeline

TENSORS = (Kind.SHADOW, Kind.STATE, Kind.REPLY)
"""Kinds of frames whose payload is fp32."""


def payload_of(frame: Frame, payload: memoryview) -> torch.Tensor | bytes:
    """A frame's payload as the protocol wants it."""
    if frame.kind in TENSORS:
        return as_tensor(payload, torch.float32)
    if frame.kind in (Kind.PUSH, Kind.SUMS):
        return as_tensor(payload, torch.uint8)
    return bytes(payload)


def _protocol(job: Job, links: DataLinks) -> SynchronousServer | AsynchronousServer:
    """What this server does with what it is told, by the run's mode."""
    setup = Setup.from_dict(job.content["setup"])
    reach = job.faults().reach
    if setup.options["mode"] == "bsp":
        return SynchronousServer(job.number, setup, links, links.allocate, reach)
    replay = read_replay(Path(setup.options["replay"]), setup.shards) if setup.options["replay"] else None
    orders = {shard: replay.order(shard) for shard in range(setup.shards)} if replay else None
    return AsynchronousServer(job.number, setup, links, links.allocate, reach, orders)


class Server:
    """Server `job.number`: takes frames and messages one after the other, whoever they come from."""

    def __init__(self, job: Job, control: Control):
        self._number, self._control, self._inbox = job.number, control, control.inbox
        self._timeline = Timeline(f"server {job.number}")
        self._progress = control.progress("state")
        self._links = DataLinks(
            job,
            control,
            self._place,
            self._deliver,
            listen=True,
        )
        self._links.accepted = lambda member: self._inbox.put(("linked", member))
        self._meter = ProcessMeter(shared=self._links.shared_bytes)
        self._core = _protocol(job, self._links)
        self._progress.explain = self._core.missing
        self._reconfigure: dict[str, Any] | None = None
        control.tell({"say": "serving", "addresses": self._links.addresses})

    def run(self) -> None:
        """Serve until the control link ends."""
        main = self._timeline.main
        with torch.inference_mode():
            while True:
                main.step = self._core.step
                self._progress.wait("messages", self._core.step)
                with main.wait_recv:
                    what, *rest = self._inbox.get()
                self._progress.work(what, self._core.step)
                if what == "ended":
                    self._links.close()
                    return
                with main.busy:
                    getattr(self, f"_on_{what}")(*rest)

    def _on_frame(self, member: Member, frame: Frame, payload: torch.Tensor | bytes) -> None:
        self._core.receive(member, frame, payload)

    def _on_linked(self, member: Member) -> None:
        self._answer_if_linked()

    def _on_control(self, message: dict[str, Any]) -> None:
        epoch = message.get("epoch", self._core.table.epoch)
        match message["do"]:
            case "reconfigure":
                self._reconfigure = message
                self._link_up(message)
            case "roll" if epoch == self._core.table.epoch and isinstance(self._core, SynchronousServer):
                self._core.roll(message["decision"])
                self._control.tell({"say": "rolled", "epoch": epoch})
            case "rest" if isinstance(self._core, AsynchronousServer):
                self._core.rest(message["step"], message["dropped"])
            case "protect" if epoch == self._core.table.epoch:
                self._core.protect(set(message["shards"]))
            case "resume" if message["table"]["epoch"] == self._core.table.epoch:
                if isinstance(self._core, AsynchronousServer):
                    self._core.resume()
                else:
                    leaves = message["leaves"]
                    self._core.resume(message["open"], None if leaves is None else frozenset(leaves))
            case "clear":
                self._core.clear()
                self._control.tell({"say": "cleared"})
            case "report":
                told = process_report(self._timeline, self._meter, links=self._links.counters())
                if isinstance(self._core, AsynchronousServer):
                    traces = {
                        str(shard): [(step, content.hex()) for step, content in parts]
                        for shard, parts in self._core.traces().items()
                    }
                    told |= {"staleness": self._core.staleness(), "traces": traces}
                self._control.tell(told)

    def _link_up(self, message: dict[str, Any]) -> None:
        """Make the links of a new table: a server connects to those before it, and waits for those behind it."""
        table = Table.from_dict(message["table"])
        members = {*map(server, table.servers), *(Member("worker", one) for one in table.workers), COORDINATOR}
        self._links.admit(table.epoch, lambda member: member in members)
        self._links.drop(lambda member: member in members)
        for one in table.servers:
            if one < self._number and not self._links.connect(server(one), message["addresses"][str(one)]):
                return  # the coordinator knows, and says what now
        self._answer_if_linked()

    def _answer_if_linked(self) -> None:
        """Take over the new table once all links to other servers are there."""
        if self._reconfigure is None:
            return
        table = Table.from_dict(self._reconfigure["table"])
        if all(one == self._number or self._links.has(server(one)) for one in table.servers):
            self._reconfigure = None
            self._control.tell({"say": "status"} | self._core.reconfigure(table))

    def _deliver(self, member: Member, frame: Frame, payload: memoryview) -> None:
        """Called by the link's thread: gradients of several workers are decoded side by side."""
        content = payload_of(frame, payload)
        if frame.kind == Kind.PUSH:
            content = self._core.decode(frame, as_tensor(payload, torch.uint8))
        self._inbox.put(("frame", member, frame, content))

    def _place(self, frame: Frame) -> torch.Tensor | None:
        if frame.kind == Kind.STATE:
            return torch.empty(frame.length // 4)
        return self._core.place(frame)
