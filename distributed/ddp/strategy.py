"""The strategy `ddp` as the trainer sees it: the yardstick, summed by torch's own engine in its own order."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from distributed.agent import Job
from distributed.control import Agent, ControlPlane
from distributed.coordinating import CoordinatingStrategy, inner_norms, step_stats
from distributed.ddp.group import check_gpus, open_store
from distributed.errors import DistributedError, LinkError
from distributed.launchers.choose import build_launcher, run_token, where_to_listen, who_starts
from distributed.links.addresses import Addresses
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Link
from distributed.links.listener import connect
from distributed.parameter_server.messages import Kind, Member, worker
from distributed.strategy import Probe, StateLost, StepStats, WorkloadSpec

LOOK_SECONDS = 1.0  # between looks at clocks and processes while nobody says anything


class DdpStrategy(CoordinatingStrategy):
    """Every worker has the whole model and the whole optimizer; this process coordinates, evaluates and saves.

    Each computes its share of a step's groups of slots, accumulating over its slots, and gradients are summed by
    `torch.nn.parallel.DistributedDataParallel` while the last of these is in its backward pass. Losses are weighted by
    tokens as everywhere. Not exact: sums are in the engine's order.

    When a worker is lost the others cannot go on, and only a checkpoint can: StateLost.
    """

    role = "ddp.worker"
    """What its processes are to be (`distributed.agent.ROLES`)."""

    def __init__(self, options: Mapping[str, Any]):
        super().__init__(options)
        self._plane: ControlPlane | None = None
        self._store: Any = None
        self._link: Link | None = None  # to worker 0, for whole states
        self._members: dict[int, Agent] = {}
        self._said: dict[str, dict[int, dict[str, Any]]] = {}  # the newest messages by what is said and worker
        self._steps: dict[int, dict[int, dict[str, Any]]] = {}  # by step and worker, those not yet returned
        self._times: dict[int, bytes] = {}  # of workers' timelines, what journals do not have yet
        self._interrupted = (math.inf, "")  # since when, and how, workers are without each other
        self._arrived: queue.SimpleQueue[tuple[int, torch.Tensor]] = queue.SimpleQueue()
        self._given = False  # whether this process was given a state, which workers do not begin with by themselves

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model here, for evaluation, and bring the workers up."""
        options = self._options
        check_gpus(options["engine"], options["workers"], share_host=who_starts(options) == "processes")
        self._build(spec)
        host, _ = where_to_listen(options)
        token = run_token(options)
        self._job = Job("coordinator", 0, options["run"], token, options, {})
        self._plane = ControlPlane(self._job)
        self._store, store_port = open_store(host)
        self._content = {
            "workload": {"factory": spec.factory, "arguments": dict(spec.arguments)},
            "workers": options["workers"],
            "store": {"host": host, "port": store_port},
        }
        self._launcher = build_launcher(options, self._plane.address, token, options["run"])
        for _ in range(options["workers"]):
            self._launcher.start("worker")
        self._hear(lambda: self._all_said("ready"), "all workers to start", self._launcher.patience)
        addresses = Addresses.from_dict(self._said["ready"][0]["addresses"])
        self._link = connect(addresses, self._job.membership())
        self._link.start(
            lambda frame: torch.empty(frame.length // 4),
            lambda frame, payload: self._arrived.put((frame.tags[1], as_tensor(payload, torch.float32).clone())),
            lambda reason: None,
        )

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """The stats of step `index`, which may have been begun before."""
        if not self._begun:
            if self._given:
                self._load()
            self._begun, self._granted = True, index - 1
        through = self._ask_for(index, horizon)
        if through is not None:
            self._tell(
                {"do": "grant", "after": index - 1, "through": through, "rate_scale": rate_scale, "probe": probe}
            )
        self._hear(lambda: len(self._steps.get(index, ())) == self._options["workers"], f"step {index}", math.inf)
        parts = [part for _, part in sorted(self._steps.pop(index).items())]
        self._updates += parts[0]["finite"]
        self._returned(index, parts[0]["finite"])
        return self._stats(index, parts)

    def synchronize(self) -> None:
        """A step is applied everywhere once all workers have told of it."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` returned; the workers get it with the next step."""
        super().load_state(state)
        self._given = True

    def journals(self) -> Mapping[str, bytes]:
        """Times of every worker."""
        self._ask({"do": "report"}, "report")
        times, self._times = self._times, {}
        return {f"timeline-worker-{number}.jsonl": content for number, content in times.items()}

    def report(self) -> Mapping[str, Any]:
        """What `RunFigures.of` makes of all workers' reports; the engine counts no bytes."""
        said = self._ask({"do": "report"}, "report")
        return self._figures.of({str(worker(number)): one for number, one in sorted(said.items())})

    def _hang_up(self, closing: ExitStack) -> None:
        if self._plane is not None:
            closing.callback(self._plane.close)
        if self._link is not None:
            self._link.shutdown()
            closing.callback(self._link.close, 1.0)
        self._link = self._plane = self._store = None

    # ------------------------------------------------------------------------------------------------- the state

    def _load(self) -> None:
        """Give the workers what this process was given: through the first, who passes it on."""
        seconds = 10 * self._options["deadline_seconds"]
        self._said.pop("loaded", None)
        self._steps.clear()
        self._tell({"do": "load", "updates": self._updates, "seconds": seconds})
        assert self._link is not None
        for index, buffer in enumerate((self._values, *self._moments.values())):
            self._link.send(Frame(kind=Kind.STATE, tags=(0, index, 0)), buffer.detach().cpu())
        self._hear(lambda: self._all_said("loaded"), "workers to take the state", seconds)

    def _fetch(self, whole: bool) -> None:
        """Raises StateLost where the workers are not of one mind."""
        buffers = [self._values, *(self._moments.values() if whole else [])]
        digests = self._ask({"do": "send", "buffers": len(buffers)}, "digest")
        if len({one["digest"] for one in digests.values()}) > 1:
            raise StateLost(f"after step {self._last} the workers' parameters are not the same")
        for _ in buffers:
            try:
                index, content = self._arrived.get(timeout=10 * self._options["deadline_seconds"])
            except queue.Empty:
                raise StateLost(f"worker 0 does not send the state of step {self._last}") from None
            buffers[index].copy_(content)

    # ------------------------------------------------------------------------------------------------- the workers

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._plane is None:
            raise DistributedError("is not running", where=self._options["name"])
        for agent in self._members.values():
            self._plane.send(agent, message)

    def _ask(self, message: Mapping[str, Any], answer: str) -> dict[int, dict[str, Any]]:
        """Say something to all workers; their answers."""
        self._said.pop(answer, None)
        self._tell(message)
        self._hear(lambda: self._all_said(answer), f"what all workers say of '{message['do']}'")
        return self._said[answer]

    def _all_said(self, what: str) -> bool:
        return len(self._said.get(what, ())) == self._options["workers"]

    def _hear(self, until: Callable[[], bool], what: str, seconds: float | None = None) -> None:
        """Listen to the workers until it holds; their deaths are noticed by the silence of their links."""
        assert self._plane is not None
        limit = time.monotonic() + (10 * self._options["deadline_seconds"] if seconds is None else seconds)
        while not until():
            since, how = self._interrupted
            given_up = since + 2 * self._options["deadline_seconds"]
            try:
                event, *rest = self._plane.inbox.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._look_after_starts()
                if time.monotonic() > given_up:
                    raise StateLost(f"workers have lost each other: {how}") from None
                if time.monotonic() > limit:
                    raise DistributedError(f"waited in vain for {what}", where=self._options["name"]) from None
                continue
            getattr(self, f"_on_{event}")(*rest)

    def _look_after_starts(self) -> None:
        """Raise DistributedError where a process has ended before it could say a word."""
        if self._launcher is not None and not self._all_said("ready"):
            for name, how in self._launcher.ended().items():
                raise DistributedError(f"{name} {how} before it was ready", where=self._options["name"])

    def _on_here(self, agent: Agent) -> None:
        number = len(self._members)
        if number == self._options["workers"]:
            agent.link.shutdown()  # the group is complete
            return
        assert self._plane is not None
        agent.member = worker(number)
        self._members[number] = agent
        word = {"role": "worker", "number": number, "be": self.role}
        self._plane.send(agent, word | {"options": dict(self._options), "content": self._content})

    def _on_said(self, agent: Agent, said: dict[str, Any]) -> None:
        assert agent.member is not None
        number = agent.member.number
        if said["say"] == "stepped":
            self._steps.setdefault(said["step"], {})[number] = said
        elif said["say"] == "interrupted":
            self._interrupted = min(self._interrupted, (time.monotonic(), said["reason"]))
        elif said["say"] == "failed" and said["mistake"]:
            raise DistributedError(**said["mistake"] | {"where": said["mistake"]["where"] or str(agent.member)})
        elif said["say"] == "failed":
            raise RuntimeError(f"{agent.member} failed:\n{said['error']}")
        else:
            self._said.setdefault(said["say"], {})[number] = said
        if said["say"] == "report":
            self._times[number] = self._times.get(number, b"") + said["timeline"].encode()

    def _on_gone(self, agent: Agent, reason: LinkError) -> None:
        member: Member | None = agent.member
        if member is None:
            return
        if not self._all_said("ready"):
            raise DistributedError(f"{member} ended before all were ready: {reason}", where=self._options["name"])
        raise StateLost(f"{member} is lost ({reason}), and the others cannot go on without it")

    def _stats(self, index: int, parts: list[dict[str, Any]]) -> StepStats:
        first = parts[0]
        seen = Probe(first["gradients"], first["updates"], inner_norms(parts)) if "gradients" in first else None
        return step_stats(index, parts, first["tokens"], first["norm"], first["rate"], seen)
