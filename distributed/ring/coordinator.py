"""The coordinator of a ring: what the trainer asks of its nodes, and the way to their state; no gradient passes it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError, LinkError
from distributed.links.frames import Frame
from distributed.parameter_server.members import names_of
from distributed.parameter_server.messages import Kind, Member, worker
from distributed.ring.any_coordinator import AnyRingCoordinator
from distributed.ring.membership import RingMembership
from distributed.strategy import StateLost


class RingCoordinator(AnyRingCoordinator[RingMembership]):
    """Members of a ring of which each has the whole state.

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    workload: the specification that nodes build theirs from.
    """

    roles: Mapping[str, str] = {"worker": "ring.worker"}

    def __init__(self, job: Job, workload: Mapping[str, Any]):
        membership = RingMembership(self._order, self._take_step, self._state_is_lost, job.options["workers"])
        super().__init__(job, {"workload": workload}, membership)
        self._digests: dict[Member, int] = {}  # of the parameters of the step that was asked for

    # ------------------------------------------------------------------------------------------------- the trainer's

    def begin(self, step: int, buffers: Sequence[torch.Tensor], updates: int) -> None:
        """Give the nodes the state before `step`, and let all begin there: the first gets it, and passes it on."""
        while not self._install(step, buffers, updates):
            pass  # somebody was lost before two had it: it is here, so that the others can have it all

    def _install(self, step: int, buffers: Sequence[torch.Tensor], updates: int) -> bool:
        with self._changed:
            self._anew()
            self._installed.clear()
            self._steps.clear()
        members = self._ready_and_cleared()
        first = min(members).number
        with contextlib.suppress(LinkError):  # it is gone, or its link is, and is tried again
            for index, buffer in enumerate(buffers):
                frame = Frame(kind=Kind.STATE, step=step - 1, tags=(0, index, updates))
                self._link(first).send(frame, buffer.detach().cpu())
        self._wait(
            lambda: bool(self._installed) or not members <= self._ready or not self._links.lead_to(frozenset({first})),
            lambda: f"worker {first} to take the state",
        )
        if not self._installed:
            return False
        self._put("begin", step)
        try:
            self._wait(lambda: self._membership.at_work and not self._beginning, lambda: "the state to go round")
        except StateLost:
            return False
        return True

    def pull(self, step: int, buffers: Sequence[torch.Tensor]) -> int:
        """Write the nodes' state after `step` into flat buffers: parameters, then moments as far as asked for.

        Returns how many updates they have made. Raises StateLost where nodes do not have the same bits.
        """
        self._compare(step)
        limit = time.monotonic() + 10 * self._options["deadline_seconds"]
        while True:
            self.wait_until_rest(step)
            with self._changed:
                self._links.received.clear()
                epoch, one = self._membership.epoch, self._membership.ring.order[0]
            with contextlib.suppress(LinkError):  # it is gone, and the epoch with it, or the link alone
                self._link(one).send(Frame(kind=Kind.PULL, step=step, tags=(0, len(buffers), 0)))

            def is_there() -> bool:
                return len(self._links.received) == len(buffers)

            def is_over(epoch: int = epoch, asked: int = one) -> bool:
                return self._membership.epoch != epoch or not self._links.lead_to(frozenset({asked}))

            self._wait(lambda: is_there() or is_over(), lambda: f"the state of step {step}")
            with self._changed:
                if is_there():
                    updates = 0
                    for (_, index), (content, made) in self._links.received.items():
                        buffers[index].copy_(content)
                        updates = made
                    self._links.received.clear()
                    return updates
                if time.monotonic() > limit:
                    raise DistributedError(f"no link to worker {one} lasts", where=self.where)
                self._changed.wait(0.05)  # one whose link ends first is lost a moment later

    def _compare(self, step: int) -> None:
        """Have all nodes add up the bits of their parameters, which must be the same."""
        self.wait_until_rest(step)
        with self._changed:
            self._digests.clear()
            asked = [worker(number) for number in self._membership.ring.order]
        for member in asked:
            self._send(member, {"do": "digest", "step": step})
        self._wait(
            lambda: all(member in self._digests or member not in self._ready for member in asked),
            lambda: f"what {names_of(set(asked) & self._ready - self._digests.keys())} have after step {step}",
        )
        if len(set(self._digests.values())) > 1:
            raise StateLost(f"after step {step} the workers' parameters are not the same")

    # ------------------------------------------------------------------------------------------------- events

    def _on_begin(self, step: int) -> None:
        """One of those who are ready has the state, unless it is gone; some may just have come."""
        self._beginning = False
        self._membership.begin([member.number for member in self._ready], step)

    # ------------------------------------------------------------------------------------------------- what members say

    def _say_digest(self, member: Member, said: dict[str, Any]) -> None:
        self._digests[member] = said["digest"]

    def _say_rolled(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_rolled(member.number, said["epoch"])

    def _say_joined(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_joined(member.number, said["epoch"])
