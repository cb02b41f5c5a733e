"""A process of a distributed run, before and while it plays a role.

Every process but the coordinator's is the same program: it connects to the coordinator with the run's token, is told
its role, and plays it until the control link ends. So it does not matter who started it: a launcher on this machine, a
Ray actor in a trial's placement group, or a person on another host (`python -m distributed.launch`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from distributed.errors import DistributedError, LinkClosed, LinkError
from distributed.links.addresses import Addresses, own_address
from distributed.links.faults import Fault, Faults
from distributed.links.frames import Frame, json_payload
from distributed.links.handshake import Identity
from distributed.links.link import Link, LinkOptions, Payload, Peer
from distributed.links.listener import Membership, connect
from distributed.links.tls import tls_contexts
from distributed.links.token import Token
from distributed.parameter_server.messages import Kind, read_control
from distributed.progress import Progress
from distributed.strategy import load

ROLES = {
    "ddp.worker": "distributed.ddp.worker:Worker",
    "parameter_server.server": "distributed.parameter_server.server:Server",
    "parameter_server.worker": "distributed.parameter_server.worker:Worker",
    "parameter_server.asynchronous_worker": "distributed.parameter_server.asynchronous_process:AsynchronousWork",
    "ring.engine": "distributed.ring.engine_worker:EngineWorker",
    "ring.worker": "distributed.ring.worker:Worker",
    "ring_rotate.worker": "distributed.ring_rotate.worker:Worker",
    "ring_tmp.worker": "distributed.ring_tmp.worker:Worker",
    "ring_torus.worker": "distributed.ring_torus.worker:TorusWorker",
}
"""What a process may be told to be."""

CONNECT_SECONDS = 60.0  # that an agent goes on looking for its coordinator
SILENCE_SECONDS = 600.0  # without a sign of life before a coordinator counts as gone: it may be stopped for a while
END_SECONDS = 2.0  # that a process may go on with what it is at once its control link has ended


@dataclass(frozen=True)
class Job:
    """What a process is told to be.

    role, number: its place among the run's processes; a number is given once.
    run: names the run; only its processes are joined.
    options: section `distribution` of the configuration, as plain data.
    content: what else the role needs.
    """

    role: str
    number: int
    run: str
    token: Token
    options: Mapping[str, Any]
    content: Mapping[str, Any]

    def faults(self) -> Faults:
        """The failures that this process is to have."""
        return Faults([Fault.parse(text) for text in self.options["faults"]], self.role, self.number)

    def membership(self, epoch: int = 0, **options: Any) -> Membership:
        """What this process needs to make links."""
        return Membership(
            Identity(self.run, Peer(self.role, self.number, epoch=epoch)),
            self.token,
            LinkOptions(checksum=self.options["checksum"], stall_seconds=self.options["deadline_seconds"], **options),
            *tls_contexts(self.options["tls_certificate"], self.options["tls_key"]),
        )


class Control:
    """An agent's end of its link to the coordinator.

    `inbox` receives `("control", message)` for each message, and `("ended", reason)` at the end. What its
    threads are at is told by the link's own thread, whatever they do.
    """

    def __init__(self, link: Link):
        self._link = link
        self._ended = threading.Event()
        self._reason: LinkError | None = None
        self._progress: list[Progress] = []
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        link.start(lambda frame: None, self._deliver, self._end)

    def progress(self, name: str) -> Progress:
        """The notes of a thread of this process, to be judged by the coordinator."""
        self._progress.append(Progress(name))
        return self._progress[-1]

    def tell(self, message: Mapping[str, Any], written: bool = False) -> None:
        """Say something to the coordinator; if it is gone, `inbox` says so.

        written: return once it is on its way, and arrives even where this process is killed the next moment.
        """
        with contextlib.suppress(LinkError):
            self._link.send(Frame(kind=Kind.CONTROL), json_payload(message))
            if written:
                self._link.flush()

    def send(self, frame: Frame, payload: Payload) -> None:
        """Send the coordinator a frame of another kind; the payload must stay as it is until it is written."""
        with contextlib.suppress(LinkError):
            self._link.send(frame, payload)

    def tell_failure(self, error: Exception) -> None:
        """Say that this process cannot go on, to a coordinator that ends the run for it."""
        mistake = None
        if isinstance(error, DistributedError):
            mistake = {name: getattr(error, name) for name in ("what", "where", "allowed", "hint")}
        text = "".join(traceback.format_exception(error))
        self.tell({"say": "failed", "error": text, "mistake": mistake})

    def listen(self, progress: Progress, obey: Callable[[dict[str, Any]], None]) -> None:
        """Obey each message until the link ends. For a thread of its own, beside the one that computes.

        What `obey` raises is told: the thread that computes would wait for ever for what this one takes in.
        """
        while True:
            progress.wait("the coordinator")
            what, message = self.inbox.get()
            progress.work(f"word '{message['do']}'" if what == "control" else "end")
            if what == "ended":
                return
            try:
                obey(message)
            except Exception as error:
                self.tell_failure(error)

    def wait_for_end(self) -> LinkError | None:
        """Until the link has ended. Returns why, or None where it was meant: the run is over."""
        self._ended.wait()
        return None if isinstance(self._reason, LinkClosed) and self._reason.orderly else self._reason

    def close(self) -> None:
        """End the link."""
        self._link.close(1.0)

    def _deliver(self, frame: Frame, payload: memoryview) -> None:
        message = read_control(frame, payload)
        if message.get("do") == "pulse":
            self.tell({"say": "pulse", "threads": [one.pulse() for one in self._progress]})
        else:
            self.inbox.put(("control", message))

    def _end(self, reason: LinkError) -> None:
        self._reason = reason
        self._ended.set()
        self.inbox.put(("ended", reason))


class Role(Protocol):
    """What a process plays. Built with its job and its control link."""

    def run(self) -> None:
        """Play it until the control link ends."""


def serve(
    address: str,
    token: Token,
    run: str,
    wanted: str = "any",
    beat_seconds: float = 1.0,
    name: str = "",
    patience: float = CONNECT_SECONDS,
    tls: tuple[str, str] = ("", ""),
    silence_seconds: float = SILENCE_SECONDS,
) -> None:
    """Join a run and play what role the coordinator at `address` gives, until it says that all is over.

    This process ends soon after its control link, whatever its threads are at then.

    wanted: `worker`, `server`, or `any`.
    name: what its launcher calls it, who is told so when another is to take its place.
    patience: seconds to go on trying while nobody listens at `address`.
    tls: files of the run's certificate and of its key, where its links use TLS.
    silence_seconds: without a word from the coordinator before it counts as gone.

    Raises DistributedError where the coordinator cannot be reached, does not want this process, has given it up, or is
    lost itself.
    """
    options = LinkOptions(beat_seconds=beat_seconds, silence_seconds=silence_seconds, checksum="always")
    membership = Membership(Identity(run, Peer("agent", os.getpid())), token, options, *tls_contexts(*tls))
    coordinator = Addresses.parse(address)
    control = Control(connect(coordinator, membership, kind="tcp", patience=patience))
    finished = threading.Event()
    threading.Thread(target=_end_in_time, args=(run, control, finished), name="end", daemon=True).start()
    try:
        about = {"say": "here", "wanted": wanted, "pid": os.getpid(), "host": socket.gethostname(), "name": name}
        control.tell(about)
        what, message = control.inbox.get()
        if what == "ended":
            raise DistributedError(f"the coordinator has no use for this process: {message}")
        job_options = message["options"] | {"bind": own_address(coordinator)}
        job = Job(message["role"], message["number"], run, token, job_options, message["content"])
        try:
            role: Role = load(ROLES[message["be"]])(job, control)
            role.run()
        except Exception as error:
            control.tell_failure(error)
        lost = control.wait_for_end()
        if lost is not None:
            raise DistributedError(f"the coordinator is gone or has given this process up: {lost}", where=f"run {run}")
    finally:
        control.close()
        finished.set()


def _end_in_time(run: str, control: Control, finished: threading.Event) -> None:
    """End this process behind its control link, also where a thread of its role hangs or computes for long."""
    lost = control.wait_for_end()
    if finished.wait(END_SECONDS):
        return
    if lost is not None:
        print(f"run {run}: this process is given up, whatever it is at: {lost}", file=sys.stderr, flush=True)
    os._exit(0 if lost is None else 1)
