"""A node's life in rings: what it computes, whom it is linked to, and what it tells the coordinator of all that."""

from __future__ import annotations

import time
from typing import Any

import torch

from distributed.agent import Control, Job
from distributed.errors import FrameError
from distributed.progress import Progress
from distributed.ring_tmp.executor import LAGS, Task, Work
from distributed.ring_tmp.grants import Grants
from distributed.ring_tmp.links import NeighbourLinks
from distributed.ring_tmp.mailbox import Mailbox
from distributed.ring_tmp.membership import Answer, Hello, RingMembership
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.node import RingTmpNode
from distributed.ring_tmp.parts import Gradients
from distributed.ring_tmp.passes import Passes
from distributed.ring_tmp.placement import Placement, newcomer
from distributed.ring_tmp.probes import ProbePieces, Words
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState
from distributed.ring_tmp.verdict import Status, Verdict
from distributed.strategy import Workload
from distributed.timeline import Timeline


class RingMember:
    """Node `job.number`, as long as its process lives: in one ring after the other, as the coordinator begins them.

    Parameters
    ----------
    job, control: the process's.
    links: to its neighbours.
    mailbox: where what comes is put.
    passes, workload: what it computes.
    timeline: of its process.
    """

    def __init__(
        self,
        job: Job,
        control: Control,
        links: NeighbourLinks,
        mailbox: Mailbox,
        passes: Passes,
        workload: Workload,
        timeline: Timeline,
    ):
        self._number, self._control, self._links, self._mailbox = job.number, control, links, mailbox
        self._passes, self._workload, self._timeline, self._faults = passes, workload, timeline, job.faults()
        self._lag = LAGS[job.options["schedule"]]
        self._grants = Grants(self._lag)
        self._gradients = Gradients(passes.parts, links.allocate)  # of one ring after the other
        self._pieces = ProbePieces(
            passes.parts, {name: (one[0], one[1]) for name, one in job.content["layout"].items()}
        )
        self.setup = Setup(
            passes.parts,
            workload.plan,
            workload.slot_tokens,
            workload.optimizer,
            lambda step: workload.learning_rate(step) * self._grants.scale(step),
            lag=self._lag,
            shadows=bool(job.options["shadows"]),
            probed=lambda step: self._grants.is_probed(step),
            look=self._look,
        )
        self.guest: tuple[int, tuple[int, ...]] | None = None
        """A node that is to be admitted, and the stages that it is to take."""
        self._node: RingTmpNode | None = None
        self._membership: RingMembership | None = None
        self._seen: list[tuple[Words, Words]] = []  # of the newest step, if it is probed: gradients and changes
        self._told = 0  # the newest step that the coordinator was told of
        self._protected = 0  # the newest epoch of which it was told that all is where it is to be
        self._stopped: float | None = None  # since when a change is under way

    # ------------------------------------------------------------------------------------------------- a life

    @property
    def node(self) -> RingTmpNode | None:
        """What it is in the ring that it is in; None: in none."""
        return self._node

    @property
    def is_playing(self) -> bool:
        """Whether it is in a ring, or waits to be taken into one."""
        return self._node is not None

    @property
    def applied(self) -> int:
        """The newest step that is in its state."""
        return self._node.applied if self._node is not None else 0

    @property
    def has_steps(self) -> bool:
        """Whether there is a step to be done."""
        return self._node is not None and self._node.applied < self._grants.through

    @property
    def own_states(self) -> dict[int, PartState]:
        """By stage, the states of its own stages."""
        node = self._node
        if node is None:
            return {}
        own = node.placement.stages_of(self._number)
        return {stage: state for stage, state in node.states.items() if stage in own}

    def new_gradient(self, stage: int, elements: int) -> torch.Tensor:
        """Memory for the gradient of a stage that the predecessor ships; called by a link's thread."""
        node = self._node
        if node is None or stage >= len(self.setup.parts) or self.setup.parts[stage].size != elements:
            raise FrameError(f"{elements} elements are no gradient of stage {stage}")
        return node.new_gradient(stage)

    def begin(self, placement: Placement, states: dict[int, PartState]) -> None:
        """Be a node of the first epoch of a ring."""
        self._play(placement, states)
        successor = placement.ring.successor(self._number)
        if successor != self._number:
            self._links.dial_first(successor, Hello(self._number, (), placement.ring.epoch))

    def join(self) -> None:
        """Wait for a node that admits this one."""
        if self._node is None:
            self._play(newcomer(self._number, len(self.setup.parts)), {})

    def leave(self) -> int:
        """Be in no ring any more, and forget everything; returns the highest epoch that it has heard of."""
        self._links.reset()
        self._passes.forget()
        epoch = self._membership.promised if self._membership is not None else 0
        if self._node is not None:
            self._node.leave()
        self._node, self._membership, self.guest = None, None, None
        self._grants = Grants(self._lag)
        return epoch

    def allow(self, message: dict[str, Any]) -> None:
        """The trainer asks for steps."""
        if self._grants.take(message) and self._node is not None:
            self._node.allow(self._grants.through)

    def _new_node(self, placement: Placement, states: dict[int, PartState]) -> RingTmpNode:
        return RingTmpNode(self._number, self.setup, self._links, states, placement, self._gradients, self._mailbox)

    def _play(self, placement: Placement, states: dict[int, PartState]) -> None:
        self._node = self._new_node(placement, states)
        self._membership = RingMembership(self._number, placement, self, self._links, shadows=self.setup.shadows)
        self._node.allow(self._grants.through)
        self._told = self._node.applied
        self._protected, self._stopped = placement.ring.epoch, None

    # ------------------------------------------------------------------------------------------------- work

    def work(self, progress: Progress) -> bool:
        """Do one thing, if there is one to do."""
        node = self._node
        if node is None or node.is_fenced:
            return False
        self._admit(node)
        task = node.next_task()
        self._tell_protected(node)
        if task is None:
            return False
        progress.work(task.work.value, task.step)
        self._timeline.main.step = task.step
        if task.work is Work.APPLY:
            self._faults.reach("apply", task.step)
            with self._timeline.main.busy:
                node.apply(task)
            self._faults.reach("applied", task.step)
            self._tell_applied(node)
            self._faults.reach("told", task.step)
        else:
            self._faults.reach(task.work.value, task.step)
            with self._timeline.main.busy:
                self._pass(node, task)
        return True

    def _pass(self, node: RingTmpNode, task: Task) -> None:
        probe = self._grants.is_probed(task.step)
        if task.work is Work.FORWARD:
            node.forwarded(task, self._passes.forward(task, node.take(task), node.states, probe))
            return
        buffers = node.gradient_buffers(task)
        node.backwarded(task, *self._passes.backward(task, node.take(task), node.states, buffers, probe))
        if node.executor.completed() == task.step:
            self._faults.reach("shipped", task.step)

    def _admit(self, node: RingTmpNode) -> None:
        """Admit a guest between two steps, since an open one is done anew."""
        if self.guest is None or self._membership is None or not node.executor.hold():
            return
        if self.guest[0] in self._membership.gone:
            self._control.tell({"say": "not admitted", "number": self.guest[0]})
            self.guest = None
            node.allow(self._grants.through)
        elif self._membership.admit(*self.guest):
            self.guest = None

    def _look(self, stage: int, gradient: torch.Tensor, change: torch.Tensor) -> None:
        self._seen.append((self._pieces.words(stage, gradient), self._pieces.words(stage, change)))

    def _tell_applied(self, node: RingTmpNode) -> None:
        """Tell of a step that was applied, by itself or because others had done it."""
        if node.applied <= self._told or node.decision is None:
            return
        self._told = node.applied
        if not node.decision.is_update:
            self._grants.refuse(node.applied)
        self._grants.forget(node.applied)
        seen, self._seen = self._seen, []
        about = {"say": "applied", "step": node.applied, "decision": node.decision.to_dict()}
        self._control.tell(about | {"seen": seen, "version": self._passes.version_of(node.applied)})

    def _tell_protected(self, node: RingTmpNode) -> None:
        epoch = node.placement.ring.epoch
        if epoch > self._protected and node.is_protected:
            self._protected = epoch
            self._control.tell({"say": "protected", "epoch": epoch})

    # ------------------------------------------------------------------------------------------------- neighbours

    def receive(self, message: Message) -> None:
        """A message of a neighbour. Raises FrameError for what it would not say."""
        if self._node is None or self._membership is None:
            return
        if message.kind in (Kind.WALK, Kind.VERDICT):
            self._faults.reach("walk" if message.kind == Kind.WALK else "verdict", 0)
            self._membership.receive(message)
        else:
            self._node.receive(message)

    def dialled(self, hello: Hello) -> Answer:
        """A node wants this one as its successor."""
        assert self._membership is not None
        return self._membership.dialled(hello)

    def linked(self) -> None:
        """The node that was dialled is the successor."""
        if self._membership is not None:
            self._membership.linked()

    def refused(self, number: int, is_first: bool, answer: Answer | None) -> None:
        """The node that was dialled cannot be reached (None), or does not accept."""
        if self._membership is None:
            return
        if is_first:  # the membership took it for linked
            self._membership.successor_lost()
        else:
            self._membership.refused(number, answer)

    def successor_lost(self) -> None:
        """The link to the successor has ended."""
        if self._membership is not None:
            self._membership.successor_lost()

    # ------------------------------------------------------------------------------------------------- as a Node

    def freeze(self) -> Status:
        """See `membership.Node`."""
        assert self._node is not None
        self._stopped = self._stopped or time.monotonic()
        status = self._node.freeze()
        self._faults.reach("freeze", self._node.applied + 1)
        return status

    def enter(self, verdict: Verdict) -> None:
        """See `membership.Node`."""
        node = self._node
        assert node is not None
        self._faults.reach("enter", node.applied + 1)
        was_new = not node.placement.ring.epoch
        self._passes.forget()
        node.enter(verdict)
        if was_new:
            self._told = node.applied
        self._tell_applied(node)
        if self.guest is not None and self.guest[0] in verdict.placement.ring.order:
            self.guest = None
        seconds = time.monotonic() - self._stopped if self._stopped is not None else 0.0
        self._stopped = None
        about = {"say": "entered", "placement": verdict.placement.to_dict(), "applied": node.applied}
        self._control.tell(about | {"seconds": seconds})
        self._tell_protected(node)

    def lost(self, verdict: Verdict, old: Placement) -> None:
        """See `membership.Node`."""
        assert self._node is not None
        self._node.lost(verdict, old)
        self._passes.forget()
        self._control.tell({"say": "state lost", "sentence": self._node.lost_sentence})

    def fenced(self) -> None:
        """See `membership.Node`: the coordinator ends the process."""
        assert self._node is not None
        self._node.fenced()
        self._control.tell({"say": "fenced"})
