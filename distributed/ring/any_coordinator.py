"""What coordinators of rings have in common, whatever goes round in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from distributed.agent import Job
from distributed.parameter_server.messages import Member, worker
from distributed.parameter_server.state_members import StateMembers
from distributed.ring.membership import RingMembership

Kept = TypeVar("Kept", bound=RingMembership)


class AnyRingCoordinator(StateMembers[Kept]):
    """Members of a ring, and what they say of steps: no gradient and no parameter passes here in a step.

    Public methods are called by the trainer's thread; what they wait for is brought about by the coordinator's own.

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    contents: what nodes are told.
    membership: who belongs to the ring; it is made with this coordinator's `_order`, `_take_step` and `_state_is_lost`.
    """

    where = "the ring"

    def __init__(self, job: Job, contents: Mapping[str, Any], membership: Kept):
        super().__init__(job, {"worker": contents}, membership)
        self._steps: dict[int, dict[str, Any]] = {}  # by step, what was said of those that were not asked for yet
        self._installed: set[Member] = set()  # who has the state that was given to it
        self._grant: dict[str, Any] = {"do": "grant", "after": 0, "through": 0, "rate_scale": 1.0, "probe": 0}

    # ------------------------------------------------------------------------------------------------- the trainer's

    @abstractmethod
    def begin(self, step: int, buffers: Sequence[torch.Tensor], updates: int) -> None:
        """Give the nodes the state before `step`, and let all begin there."""

    @abstractmethod
    def pull(self, step: int, buffers: Sequence[torch.Tensor]) -> int:
        """Write the nodes' state after `step` into flat buffers: parameters, then moments as far as asked for.

        Returns how many updates they have made. Raises StateLost where it cannot be the run's.
        """

    def grant(self, after: int, through: int, rate_scale: float, probe: int) -> None:
        """Let nodes begin steps up to `through`, and look into step `probe`, where the trainer knows of those up to
        `after`."""
        self._grant = {"do": "grant", "after": after, "through": through, "rate_scale": rate_scale, "probe": probe}
        for member in list(self._agents):
            self._send(member, self._grant)

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
            self._grant = self._grant | {"through": step}  # for those who come later

    def _patience(self) -> float:
        assert self._replacements is not None
        return self._replacements.patience
