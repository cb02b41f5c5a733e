"""What coordinators have in common that decide who belongs to a ring, whatever goes round in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from distributed.agent import Job
from distributed.parameter_server.messages import Member, worker
from distributed.ring.membership import RingMembership
from distributed.ring.nodes_coordinator import NodesCoordinator

Kept = TypeVar("Kept", bound=RingMembership)


class AnyRingCoordinator(NodesCoordinator[Kept]):
    """Members of a ring, and what they say of steps: no gradient and no parameter passes here in a step.

    Parameters
    ----------
    job, contents: as for `NodesCoordinator`.
    membership: who belongs to the ring; it is made with this coordinator's `_order`, `_take_step` and `_state_is_lost`.
    """

    def __init__(self, job: Job, contents: Mapping[str, Any], membership: Kept):
        super().__init__(job, contents, membership)
        self._steps: dict[int, dict[str, Any]] = {}  # by step, what was said of those that were not asked for yet
        self._installed: set[Member] = set()  # who has the state that was given to it

    # ------------------------------------------------------------------------------------------------- the trainer's

    def wait_for(self, step: int) -> Mapping[str, Any]:
        """What nodes say of a step, once all of them have applied it. Steps before it are forgotten.

        facts: by seat, what was said of its share. about: what `Replica.apply` told.

        Raises StateLost where only a checkpoint can go on, DistributedError where nothing can.
        """
        self._wait_for_step(step, lambda: step in self._steps)
        with self._changed:
            for old in [one for one in self._steps if one < step]:
                del self._steps[old]
            return self._steps[step]

    # ------------------------------------------------------------------------------------------------- events

    def _forget(self, member: Member) -> None:
        """The link to it; and that it waited to be taken in."""
        self._links.drop(member.number)
        if not self._belongs(member):
            self._membership.leave(member.number)

    # ------------------------------------------------------------------------------------------------- what members say

    def _say_ready(self, member: Member, said: dict[str, Any]) -> None:
        self._serving[member.number] = said["addresses"]
        self._is_ready(member)
        if self._membership.epoch and not self._beginning:
            self._send(member, self._grant)
            self._membership.join(member.number)

    def _say_installed(self, member: Member, said: dict[str, Any]) -> None:
        self._installed.add(member)

    def _say_status(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_status(member.number, said)

    def _say_applied(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_applied(member.number, said["step"], said)

    # ------------------------------------------------------------------------------------------------- inside

    def _belongs(self, member: Member) -> bool:
        return member.number in self._membership.ring.order

    def _leave(self, member: Member) -> None:
        self._membership.leave(member.number)

    def _order(self, number: int, message: dict[str, Any]) -> None:
        self._send(worker(number), message)

    def _take_step(self, step: int, said: dict[str, Any]) -> None:
        self._steps[step] = said
        if not said["about"]["finite"]:
            self._grant_no_further(step)
