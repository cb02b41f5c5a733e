"""A node of the stage ring, without threads, sockets or a model: what it does with what comes, and what it sends.

The process around it receives, computes and sends. Between two tasks, and nowhere else, it hands over what has come:

    for event in node.mailbox.events():     # other messages, ends of links
        node.receive(event)                 # or membership.receive, membership.successor_lost, …
    task = node.next_task()
    if task is None:
        node.mailbox.wait()
    elif task.work is Work.APPLY:
        decision = node.apply(task)         # tell whoever wants to know of steps
    elif task.work is Work.FORWARD:
        outputs = …(node.take(task), node.states[stage].of_version(task.version) for the range's stages)
        node.forwarded(task, outputs)       # None behind the last range
    else:
        gradients = …(node.take(task)), added to node.gradient_buffers(task)
        node.backwarded(task, gradients, facts)     # None before the first range

What it receives belongs to it. A tensor that it sends stays as it is: activations for ever, a gradient until all nodes
have applied its step, a state until the first step is applied, before which all of it has been read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.errors import FrameError
from distributed.ring_tmp.barrier import PrepareBarrier
from distributed.ring_tmp.executor import Executor, Task, Work
from distributed.ring_tmp.mailbox import Key, Mailbox
from distributed.ring_tmp.messages import Kind, Message, Outbox
from distributed.ring_tmp.open_steps import OpenSteps
from distributed.ring_tmp.parts import Gradients
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Decision, StepFacts
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState
from distributed.ring_tmp.streams import StateStreams
from distributed.ring_tmp.verdict import Status, Stream, Verdict


class RingTmpNode:
    """Node `number`.

    Parameters
    ----------
    setup: what all agree on.
    outbox: to the neighbours.
    states: of the stages that this node owns, and of those whose second copy it has, after the same step.
    placement: that of the first epoch; `placement.newcomer` for a node that is still to be admitted.
    gradients: buffers that links can send from.
    mailbox: where threads that receive put what comes, of this node and of others before it in its process.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        outbox: Outbox,
        states: Mapping[int, PartState],
        placement: Placement,
        gradients: Gradients | None = None,
        mailbox: Mailbox | None = None,
    ):
        self.number, self.setup = number, setup
        self.states = dict(states)
        """By stage, what this node has of the model, whole."""
        self.mailbox = Mailbox() if mailbox is None else mailbox
        self.decision: Decision | None = None
        """Of the newest step that is applied; None where it was loaded."""
        self.lost_sentence = ""
        """Why only checkpoints can go on; empty where nothing is lost."""
        self.lost_placement: Placement | None = None
        self.is_fenced = False
        self._outbox = outbox
        self._steps = OpenSteps(setup.plan, gradients or Gradients(setup.parts))
        self._through = self.applied = max((state.step for state in self.states.values()), default=0)
        self._ahead: list[Message] = []  # of epochs that are still to be entered
        self._is_frozen = False
        self._is_new = not placement.ring.epoch
        self._enter(placement, ())

    # ------------------------------------------------------------------------------------------------- membership

    def freeze(self) -> Status:
        """See `membership.Node`."""
        self._is_frozen = True
        self.mailbox.close()
        held = tuple(sorted(self.states))
        return Status(self.number, self.placement, self.applied, self.decision, held, is_new=self._is_new)

    def enter(self, verdict: Verdict) -> None:
        """See `membership.Node`: roll forward if others have, forget the open steps, send what neighbours lack."""
        if self._is_new:
            self.applied, self.decision, self._is_new = verdict.step, verdict.decision, False
        elif self.applied < verdict.step:
            assert verdict.decision is not None
            self._apply(verdict.decision)
        self._enter(verdict.placement, verdict.streams)

    def lost(self, verdict: Verdict, old: Placement) -> None:
        """See `membership.Node`: nothing is done before `reload`."""
        self.lost_sentence = verdict.sentence([part.name for part in self.setup.parts], old, shadows=self.setup.shadows)
        self.lost_placement = verdict.placement
        self.states, self.applied, self._is_new = {}, -1, False

    def reload(self, step: int, states: Mapping[int, PartState]) -> None:
        """Go on from checkpoints behind a loss, all nodes of the same `step`, as `lost_placement` says who has what."""
        assert self.lost_placement is not None
        self.states, self.applied, self.decision = dict(states), step, None
        placement, self.lost_placement, self.lost_sentence = self.lost_placement, None, ""
        self._enter(placement, ())

    def fenced(self) -> None:
        """See `membership.Node`: the process ends."""
        self._is_frozen = self.is_fenced = True

    def leave(self) -> None:
        """Be in no ring any more; the buffers of its gradients are for the next node that has them."""
        self._is_frozen = True
        self._steps.leave()

    def _enter(self, placement: Placement, streams: Sequence[Stream]) -> None:
        setup = self.setup
        self.placement, self._is_frozen = placement, False
        self.executor = Executor(self.number, placement, setup.plan, setup.computed, setup.lag, self.applied)
        self.executor.through = self._through
        self._ships = setup.shadows and len(placement.ring.order) > 1
        self._own = placement.stages_of(self.number)
        self._shadowed = placement.shadowed_by(self.number) if setup.shadows else []
        self._steps.forget()
        self._has_spoken = 0  # the newest step of which it has said its word in this epoch
        rule, tokens, number = setup.optimizer, setup.tokens, self.number
        self._barrier = PrepareBarrier(number, setup.parts, placement, rule, tokens, self._send_word)
        self._streams = StateStreams(number, setup, placement, streams, self._outbox, self.applied)
        self.mailbox.enter(placement.ring.epoch, self.executor.expects, self.executor.limit)
        self._streams.send(self.states)
        ahead, self._ahead = self._ahead, []
        for message in ahead:
            self.receive(message)
        self._advance()

    @property
    def is_protected(self) -> bool:
        """Whether this node has all that it is to have, and has sent on what others lack."""
        return self._streams.are_done and not self._is_frozen

    # ------------------------------------------------------------------------------------------------- work

    def allow(self, through: int) -> None:
        """Steps up to this one may begin."""
        self._through = max(self._through, through)
        self.executor.through = self._through

    def next_task(self) -> Task | None:
        """What to do now; None: wait until something comes."""
        if self._is_frozen or any(stage not in self.states for stage in self._own):
            return None
        step = self.applied + 1
        if self._barrier.decision(step) is not None:
            return Task(Work.APPLY, step, version=step)
        return self.executor.next_task(self.mailbox)

    def take(self, task: Task) -> Any:
        """What has come for a pass: activations, or their gradients; None at the ends of the model."""
        return None if task.key is None else self.mailbox.take(task.key)

    def gradient_buffers(self, task: Task) -> dict[int, torch.Tensor]:
        """By stage of a backward pass, the buffer [elements of its part] to which it is to add."""
        assert task.range is not None
        return self._steps.buffers(task.step, range(task.range.start, task.range.stop), task.slot)

    def forwarded(self, task: Task, outputs: Any) -> None:
        """A forward pass is done; its outputs go on, unless this was the last range."""
        assert task.range is not None
        self.executor.done(task)
        if not task.range.is_last:
            self._outbox.to_successor(self._message(Kind.FORWARD, task.step, (task.range.stop, task.slot), outputs))

    def backwarded(self, task: Task, gradients: Any, facts: StepFacts | None = None) -> None:
        """A backward pass is done; the gradients of its inputs go back, unless this was the first range.

        facts: what is known of the slot now.
        """
        assert task.range is not None
        if not task.range.is_first:
            tags = (task.range.start, task.slot)
            self._outbox.to_predecessor(self._message(Kind.BACKWARD, task.step, tags, gradients))
        if facts is not None:
            self._steps.add(task.step, facts)
        if self.executor.done(task):
            for stage in range(task.range.start, task.range.stop):
                self._complete(task.step, stage)
            self._advance()

    def apply(self, task: Task) -> Decision:
        """Apply a step that all agree on; returns its numbers."""
        decision = self._barrier.decision(task.step)
        assert decision is not None
        self._apply(decision)
        self._advance()
        return decision

    # ------------------------------------------------------------------------------------------------- messages

    def new_gradient(self, stage: int) -> torch.Tensor:
        """A buffer to receive a `GRADIENT` in."""
        return self._steps.new_gradient(stage)

    def receive(self, message: Message) -> None:
        """Take in what a neighbour says of anything but activations and walks.

        Raises FrameError for what no neighbour that keeps to the rules would send.
        """
        epoch = self.placement.ring.epoch
        if message.epoch > epoch:
            self._ahead.append(message)
        if message.epoch != epoch or self._is_frozen:
            if message.kind == Kind.GRADIENT and message.epoch <= epoch:
                self._steps.refuse(message.payload)
            return
        match message.kind:
            case Kind.FORWARD | Kind.BACKWARD:
                self.mailbox.put(epoch, Key(message.step, message.kind, *message.tags), message.payload)
            case Kind.GRADIENT:
                self._take_gradient(message)
            case Kind.SUMS:
                self._check_step(message)
                self._barrier.hear(message.step, *message.tags, message.payload)
            case Kind.STATE | Kind.STATE_END:
                self._take_state(message)
            case _:
                raise FrameError(f"a node of the ring does not say {message.kind.name}")
        self._advance()

    def _take_gradient(self, message: Message) -> None:
        stage = message.tags[0]
        self._check_step(message)
        if message.payload.numel() != self.setup.parts[stage].size:
            raise FrameError(f"a gradient of {message.payload.numel()} elements for stage {stage}")
        if stage not in self._shadowed or not self._steps.take_copy(message.step, stage, message.payload):
            raise FrameError(f"the gradient of stage {stage} of step {message.step} has come twice, or astray")

    def _check_step(self, message: Message) -> None:
        """A neighbour may have applied one step more, and be as far as that lets it be."""
        if not self.applied < message.step <= self.applied + 2 + self.setup.lag:
            what = f"{message.kind.name} of step {message.step}"
            raise FrameError(f"{what} comes to a node that has applied {self.applied}")

    def _take_state(self, message: Message) -> None:
        stage = message.tags[0]
        if message.kind == Kind.STATE:
            self._streams.take_buffer(stage, message.tags[1], message.payload)
        else:
            self.states[stage] = self._streams.take_end(stage, message.payload, self.applied)
            self._streams.send(self.states)

    def _send_word(self, step: int, origin: int, round_: int, word: bytes) -> None:
        self._outbox.to_successor(self._message(Kind.SUMS, step, (origin, round_), word))

    def _message(self, kind: Kind, step: int, tags: tuple[int, int], payload: Any) -> Message:
        return Message(kind, self.placement.ring.epoch, step, tags, payload)

    # ------------------------------------------------------------------------------------------------- inside

    def _advance(self) -> None:
        """Speak of the open step, once all is there that this node's word vouches for."""
        step = self.applied + 1
        if self._has_spoken == step or not self._streams.are_done:
            return
        if self._steps.has_all(step, self._own, self._shadowed):
            self._has_spoken = step
            self._barrier.speak(step, *self._steps.own(step))

    def _complete(self, step: int, stage: int) -> None:
        """The last backward pass of a stage is done."""
        gradient = self._steps.complete(step, stage)
        if self._ships:
            self._outbox.to_successor(self._message(Kind.GRADIENT, step, (stage, 0), gradient))

    def _apply(self, decision: Decision) -> None:
        """Step all that this node holds, from gradients that are all here."""
        step = decision.step
        rate, is_probed = self.setup.rate(step), self.setup.probed(step)
        for stage, gradient in self._steps.all(step).items():
            change = self.states[stage].apply(gradient, decision, rate, is_probed)
            if change is not None:
                self.setup.look(stage, gradient, change)
        self._steps.close(step, shipped=self._ships)
        for stage in [one for one in self.states if self.states[one].step < step]:
            del self.states[stage]  # kept until now for the case that its new holders were lost before they had it
        if not decision.is_update:  # behind it none begins that has not been begun by somebody perhaps
            self._through = min(self._through, step + self.setup.lag)
        self.applied, self.decision = step, decision
        self.executor.applied, self.executor.through = step, self._through
        self._barrier.forget(step)
