"""The process of a node: one thread computes, one listens to the coordinator, one sums what the predecessor sends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.arithmetic import square_sums
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import Discard
from distributed.process_meter import ProcessMeter
from distributed.process_report import process_report
from distributed.ring.host_memory import HostMemory
from distributed.ring.messages import Kind, Ring
from distributed.ring.neighbours import PHASES, Neighbours
from distributed.ring.node import RingNode, Share
from distributed.ring.replica import Replica, Update
from distributed.ring.state_service import StateService
from distributed.staging import choose_device, is_staged
from distributed.strategy import WorkloadSpec
from distributed.timeline import Timeline

JSON_KINDS = (Kind.FACTS, Kind.ROLL_FACTS, Kind.STATE_FACTS)


class Withdrawn(Exception):
    """What is being computed is of no use any more."""


@dataclasses.dataclass(frozen=True)
class _Grant:
    """What the trainer asked for of the steps that it allows; `probe`: the step to look into, 0 for none."""

    rate_scale: float = 1.0
    probe: int = 0


class Worker:
    """Node `job.number`: computes its share of each step, sums it round the ring, and applies the sum."""

    def __init__(self, job: Job, control: Control):
        self._job, self._control = job, control
        self._timeline, self._faults = Timeline(f"worker {job.number}"), job.faults()
        self._progress, self._listening = control.progress("compute"), control.progress("control")
        self._receiving = control.progress("predecessor")
        self._workload = WorkloadSpec(**job.content["workload"]).build()
        choose_device(self._workload.device, job.number)
        self._links = Neighbours(job, control, self._place, self._deliver, lambda link: self._states.serve(link))
        self._changed = threading.Condition()  # guards what follows
        staged = is_staged(torch.device(self._workload.device), job.options["staging"] == "always")
        allocate = None if staged else self._links.allocate
        self._replica = replica = Replica(self._workload, job.options["bucket_mib"], self._check_wanted, allocate)
        shared = self._links.allocate if self._links.arena is not None else None
        self._memory = memory = HostMemory(replica, staged, shared, self._timeline.main)
        self._meter = ProcessMeter(self._workload.device, self._links.shared_bytes)
        release, allocate_gradient = memory.gradients.release, memory.gradients.new_buffer
        self._node = RingNode(
            job.number,
            job.options["workers"],
            self._workload.plan.groups,
            replica.buckets,
            self._links,
            memory.state,
            allocate_gradient,
            release,
            final=self._is_final,
            is_whole=False,
        )
        self._states = StateService(self._node, memory, self._changed, control)
        self._grant, self._refused = _Grant(), 0
        self._share = Share(0, 0, 0, range(0))  # the newest that was begun
        self._final: list[tuple[int, int, torch.Tensor]] = []  # epoch, bucket, sum: what is final and not squared yet
        self._squares: dict[int, list[float]] = {}  # by bucket, of the newest sum
        self._applying = self._over = False
        self._listener = threading.Thread(target=self._listen, name="control", daemon=True)
        control.tell({"say": "ready", "addresses": self._links.addresses})

    def run(self) -> None:
        """Compute until the control link ends."""
        self._listener.start()
        while (work := self._next_work()) is not None:
            work()
        self._memory.gradients.close()
        self._links.close()

    # ------------------------------------------------------------------------------------------------- computing

    def _next_work(self) -> Callable[[], None] | None:
        """What to do now: apply a sum, compute a share, or what can be done of a norm before the sum is whole.

        Waits until there is something; None where all is over.
        """
        node = self._node
        self._progress.wait("something to compute, behind its share", node.summed)
        with self._changed:
            while not self._over:
                if node.is_whole and node.applied < node.summed:
                    self._applying = True
                    return self._apply
                share = node.next_share()
                if share is not None:
                    self._share = share
                    return partial(self._compute, share)
                if self._final:
                    return partial(self._square, *self._final.pop())
                with self._waiting():
                    self._changed.wait()
        return None

    def _waiting(self) -> AbstractContextManager[None]:
        """How the time counts until there is something to do."""
        main, node = self._timeline.main, self._node
        if (self._share.epoch, self._share.step) == (node.ring.epoch, node.summed + 1):
            return main.wait_recv  # its shares are in the sum
        # It is not idle while the trainer asks for no step: at an evaluation everybody rests.
        return main.wait_barrier if node.through > node.summed else contextlib.nullcontext()

    def _compute(self, share: Share) -> None:
        main, step = self._timeline.main, share.step
        main.step = step
        self._progress.work("gradient", step)
        self._faults.reach("forward", step)
        with main.busy, contextlib.suppress(Withdrawn):
            grant = self._grant
            facts, computed = self._replica.gradient(step, share.leaves, grant.probe == step, self._ready)
            gradient = self._memory.gradients.finish(computed)
            tokens = sum(self._workload.slot_tokens(step))
            said = {
                "leaves": {leaf: dataclasses.asdict(one) for leaf, one in facts.items()},
                "tokens": tokens,
                "rate": self._workload.learning_rate(step) * grant.rate_scale,
                "probe": grant.probe == step,
            }
            with self._changed:
                is_taken = self._node.contribute(share, gradient, json.dumps(said).encode())
            if not is_taken:
                self._memory.gradients.release(gradient)
            self._faults.reach("pushed", step)

    def _check_wanted(self) -> None:
        """Before a stage: whether the share is still of use."""
        share = self._share
        with self._changed:
            if self._over or not self._node.wants(share):
                raise Withdrawn
        self._progress.work("forward pass", share.step)

    def _ready(self, bucket: int, gradient: torch.Tensor) -> None:
        """The backward pass has completed a bucket."""
        share = self._share
        self._progress.work("backward pass", share.step)
        self._faults.reach("backward", share.step)

        def sum_up(bucket: int, gradient: torch.Tensor) -> None:
            with self._changed:
                self._node.ready(share, bucket, gradient)

        self._memory.gradients.hand_on(bucket, gradient, sum_up)

    def _is_final(self, step: int, bucket: int, gradient: torch.Tensor) -> None:
        """A bucket is summed; told under the lock."""
        self._final.append((self._node.ring.epoch, bucket, gradient))

    def _square(self, epoch: int, bucket: int, gradient: torch.Tensor) -> None:
        """A part of the norm of a sum that may be of no use any more."""
        with self._timeline.main.busy:
            squares = square_sums(gradient, *self._replica.buckets[bucket])
        with self._changed:
            if self._node.ring.epoch == epoch:
                self._squares[bucket] = squares

    def _apply(self) -> None:
        """Bring the newest sum into the state."""
        node = self._node
        step, gradient, facts = node.summed, node.gradient, node.facts
        assert gradient is not None
        self._progress.work("update", step)
        self._faults.reach("summed", step)
        with self._timeline.main.busy:
            said = [json.loads(content) for content in facts.values()]
            leaves = [leaf for one in said for leaf in one["leaves"].values()]
            update = Update(
                number=node.updates + 1,
                loss=math.fsum(loss for leaf in leaves for loss in leaf["losses"]) / said[0]["tokens"],
                rate=said[0]["rate"],
                probe=said[0]["probe"],
            )
            for bucket, bounds in enumerate(self._replica.buckets):
                if bucket not in self._squares:
                    self._squares[bucket] = square_sums(gradient, *bounds)
            about = self._replica.apply(gradient, [one for some in self._squares.values() for one in some], update)
        self._faults.reach("applied", step)
        with self._changed:
            if not about["finite"]:  # what was granted beyond is not begun
                node.through, self._refused = step, step
            if node.owes_state:
                self._memory.fetch()
            node.has_applied(step, about["finite"], about)
            self._applying = False
            self._final.clear()
            self._squares.clear()
            self._changed.notify_all()
        self._faults.reach("told", step)

    # ------------------------------------------------------------------------------------------------- coordinator

    def _listen(self) -> None:
        self._control.listen(self._listening, self._obey)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _obey(self, message: dict[str, Any]) -> None:
        node = self._node
        match message["do"]:
            case "clear":
                self._links.leave()
                with self._changed:
                    while self._applying:
                        self._changed.wait()
                    node.clear()
                    self._grant, self._refused = _Grant(), 0
                    self._forget_sum()
                self._control.tell({"say": "cleared"})
            case "reconfigure":
                ring = Ring.from_dict(message["ring"])
                self._faults.reach("reconfigure", node.summed + 1)
                self._links.leave()
                with self._changed:
                    status = node.reconfigure(ring)
                    self._forget_sum()
                self._links.enter(ring, message["addresses"])
                self._control.tell(status)
            case "roll":
                with self._changed:
                    node.roll(message["epoch"], message["nodes"])
            case "transfer":
                with self._changed:
                    if not self._applying:
                        self._memory.fetch()
                    node.transfer(message["epoch"], message["nodes"])
            case "resume":
                with self._changed:
                    node.resume(message["epoch"], message["open"])
                    self._changed.notify_all()
            case "grant":
                with self._changed:
                    if message["after"] >= self._refused:
                        node.through = message["through"]
                        self._grant = _Grant(message["rate_scale"], message["probe"])
                        self._changed.notify_all()
            case "digest":
                digest = int(self._replica.flat.values.view(torch.int32).sum(dtype=torch.int64))
                self._control.tell({"say": "digest", "step": message["step"], "digest": digest})
            case "report":
                self._control.tell(process_report(self._timeline, self._meter, links=self._links.counters()))

    def _forget_sum(self) -> None:
        if not self._applying:
            self._squares.clear()
        self._final.clear()
        self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------- links

    def _place(self, frame: Frame) -> torch.Tensor | Discard | None:
        with self._changed:
            return self._node.place(frame)

    def _deliver(self, frame: Frame, payload: memoryview) -> None:
        """A frame from the predecessor."""
        kind = Kind(frame.kind)
        self._receiving.work(PHASES[kind], frame.step)
        self._faults.reach(PHASES[kind], frame.step)
        content = bytes(payload) if kind in JSON_KINDS else as_tensor(payload, torch.float32)
        with self._changed:
            was_whole = self._node.is_whole
            self._node.receive(frame, content)
            if self._node.is_whole and not was_whole:
                self._memory.bring()
            self._changed.notify_all()
        self._receiving.wait("its predecessor")
