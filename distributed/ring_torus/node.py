"""A node of one of several rings: its ring computes a share of each step, and equal stages sum over the rings.

Nothing is told of a step in its ring before the words of all holders of this node's stages are here
(`distributed.ring_torus.cross_sum`). So who has heard all nodes of its ring, as the prepare barrier wants it, knows
that every sum of every stage is whole in every ring: all rings clip by the same norm, and all apply the step, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distributed.errors import FrameError
from distributed.ring_tmp.mailbox import Mailbox
from distributed.ring_tmp.messages import Kind, Message, Outbox
from distributed.ring_tmp.node import RingTmpNode
from distributed.ring_tmp.parts import Gradients
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Decision
from distributed.ring_tmp.setup import Setup
from distributed.ring_tmp.shadow import PartState
from distributed.ring_torus.cross_sum import CrossSum
from distributed.ring_torus.share import ShareSteps, share_tokens
from distributed.slot_tree import shares


class TorusNode(RingTmpNode):
    """Node `number`, which has second copies in the other rings and keeps none for its own.

    Parameters
    ----------
    setup, outbox, states, placement, gradients, mailbox: as for `RingTmpNode`; all of them its own ring's.
    column: the nodes that hold the same stages, by ring; this one is among them.
    across: sends a message to a neighbour in the column, by its number.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        outbox: Outbox,
        states: Mapping[int, PartState],
        placement: Placement,
        gradients: Gradients,
        mailbox: Mailbox,
        column: Sequence[int],
        across: Callable[[int, Message], None],
    ):
        self._column, self._across = tuple(column), across
        position, plan = self._column.index(number), setup.plan
        sizes = {stage: setup.parts[stage].size for stage in placement.stages_of(number)}
        self._sums = CrossSum(position, len(column), plan.groups, sizes, self._send_across, gradients.release)
        groups = shares(plan.groups, len(column))[position]
        own = replace(setup, own_tokens=share_tokens(setup.tokens, plan, groups), shadows=False)
        super().__init__(number, own, outbox, states, placement, gradients, mailbox)
        self._steps = self._shares = ShareSteps(plan, gradients, self._sums.nodes)

    def receive_across(self, number: int, message: Message) -> None:
        """Take in what a neighbour in the column says. Raises FrameError for what it would not say."""
        if message.epoch != self.placement.ring.epoch or self._is_frozen:
            return
        if number not in self._column:
            raise FrameError(f"node {number} does not hold the same stages")
        self._check_step(message)
        self._sums.receive(self._column.index(number), message.kind, message.step, message.tags, message.payload)
        self._advance()

    def allow(self, through: int) -> None:
        """Steps up to this one may begin; also those of which this ring computes nothing."""
        super().allow(through)
        self._advance()

    def follow(self, decision: Decision) -> None:
        """Apply a step that another node has applied: so its sums are whole here. For one that stands still."""
        if decision.step == self.applied + 1:
            self._take_sums(decision.step)
            if not self._shares.has_all(decision.step, self._own, ()):
                raise RuntimeError(f"step {decision.step} was applied elsewhere, and is not whole here")
            self._apply(decision)

    def leave(self) -> None:
        """Be in no ring any more."""
        super().leave()
        self._sums.discard()

    # ------------------------------------------------------------------------------------------------- inside

    def _complete(self, step: int, stage: int) -> None:
        self._sums.ready(step, stage, self._shares.share(step, stage))

    def _advance(self) -> None:
        """Say what is due across the rings, then in this one."""
        step = self.applied + 1
        if step <= self._through and not self.executor.slots(step):
            for stage in self._own:
                if not self._sums.has(step, stage):
                    self._complete(step, stage)
        if self._sums.is_whole(step):
            self._sums.say(step, self._shares.facts(step))
            facts = self._sums.others(step)
            if facts is not None and self._take_sums(step):
                self._shares.add(step, facts)
        super()._advance()

    def _take_sums(self, step: int) -> bool:
        """Make the sums over all rings this node's gradients; False where they are, or are not whole."""
        gradients = self._sums.take(step)
        for stage, gradient in (gradients or {}).items():
            self._shares.put(step, stage, gradient)
        return gradients is not None

    def _apply(self, decision: Decision) -> None:
        super()._apply(decision)
        self._sums.forget(decision.step)

    def _send_across(self, position: int, kind: Kind, step: int, tags: tuple[int, int], payload: Any) -> None:
        self._across(self._column[position], self._message(kind, step, tags, payload))
