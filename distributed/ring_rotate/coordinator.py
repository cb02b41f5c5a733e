"""The coordinator of a ring among which parameters rotate: shards to their seats, and back, one after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError, LinkError
from distributed.links.frames import Frame, json_payload
from distributed.parameter_server.messages import Kind as StateKind
from distributed.parameter_server.messages import Member, worker
from distributed.ring.any_coordinator import AnyRingCoordinator
from distributed.ring_rotate.membership import RotateMembership
from distributed.ring_rotate.messages import Kind
from distributed.ring_rotate.plan import RotationPlan
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.shard import gathered, norm_of, scatter
from distributed.strategy import StateLost


class RotateCoordinator(AnyRingCoordinator[RotateMembership]):
    """Members of a ring, each with its shards.

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    workload: the specification that nodes build theirs from.
    plan: what goes round.
    """

    roles: Mapping[str, str] = {"worker": "ring_rotate.worker"}

    def __init__(self, job: Job, workload: Mapping[str, Any], plan: RotationPlan):
        self._plan, self._shadows = plan, bool(job.options["shadows"])
        membership = RotateMembership(
            self._order, self._take_step, self._state_is_lost, plan.seats, shadows=self._shadows
        )
        super().__init__(job, {"workload": workload, "named": plan.named}, membership)

    # ------------------------------------------------------------------------------------------------- the trainer's

    def _install(self, step: int, buffers: Sequence[torch.Tensor], updates: int) -> bool:
        with self._changed:
            self._anew()
            self._installed.clear()
            self._steps.clear()
        members = self._ready_and_cleared()
        if not members <= self._ready:
            return False
        seating = RotateMembership.first_seating([member.number for member in members], self._plan.seats)
        taking = {worker(number) for number in seating.ring.order}
        try:
            for number in seating.ring.order:
                self._give(number, seating, step - 1, buffers, updates)
        except LinkError:
            self._pause()
            return False
        self._wait(
            lambda: (
                self._installed >= taking
                or not taking <= self._ready
                or not self._links.lead_to(frozenset(seating.ring.order))
            ),
            lambda: "the nodes to take the state",
        )
        if not self._installed >= taking:
            self._pause()
            return False
        self._put("begin", seating, step)
        try:
            self._wait(lambda: self._membership.at_work and not self._beginning, lambda: "the ring to begin")
        except StateLost:
            return False  # it is here still
        return True

    def _give(self, number: int, seating: Seating, step: int, buffers: Sequence[torch.Tensor], updates: int) -> None:
        """Send a node its shards. Raises LinkError where it cannot be reached."""
        link = self._link(number)
        copies = seating.shadowed_by(number) if self._shadows else []
        for seat in [*seating.seats_of(number), *copies]:
            for index, buffer in enumerate(buffers):
                content = gathered(self._plan, seat, buffer.detach().cpu())
                link.send(Frame(kind=Kind.STATE, step=step, tags=(seat, index, 0)), content)
        link.send(Frame(kind=Kind.STATE_END, step=step), json_payload({"updates": updates}))

    def pull(self, step: int, buffers: Sequence[torch.Tensor]) -> int:
        """Write the nodes' state after `step` into flat buffers, shard after shard: never more of it is on its way."""
        updates = 0
        for seat in range(self._plan.seats):
            updates = self._pull_shard(seat, step, buffers)
        return updates

    def _pull_shard(self, seat: int, step: int, buffers: Sequence[torch.Tensor]) -> int:
        limit = time.monotonic() + 10 * self._options["deadline_seconds"]
        while True:
            self.wait_until_rest(step)
            with self._changed:
                self._links.received.clear()
                epoch, owner = self._membership.epoch, self._membership.seating.owners[seat]
            with contextlib.suppress(LinkError):  # it is gone, and the epoch with it, or the link alone
                self._link(owner).send(Frame(kind=StateKind.PULL, step=step, tags=(seat, len(buffers), 0)))

            def is_there() -> bool:
                return len(self._links.received) == len(buffers)

            def is_over(epoch: int = epoch, asked: int = owner) -> bool:
                return self._membership.epoch != epoch or not self._links.lead_to(frozenset({asked}))

            self._wait(lambda: is_there() or is_over(), lambda: f"shard {seat} of step {step}")
            with self._changed:
                if is_there():
                    updates = 0
                    for (_, index), (content, made) in self._links.received.items():
                        scatter(self._plan, seat, content, buffers[index])
                        updates = made
                    self._links.received.clear()
                    return updates
            if time.monotonic() > limit:
                raise DistributedError(f"no link to worker {owner} lasts", where=self.where)
            self._pause()  # one whose link ends first is lost a moment later

    # ------------------------------------------------------------------------------------------------- events

    def _on_begin(self, seating: Seating, step: int) -> None:
        """All have their shards; some may be gone since, and some may just have come."""
        self._beginning = False
        self._membership.begin_with(seating, [member.number for member in self._ready], step)

    def _say_settled(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_settled(member.number, said["epoch"])

    # ------------------------------------------------------------------------------------------------- inside

    def _take_step(self, step: int, said: Any) -> None:
        """What live nodes have said of a step, as one: of what a probe saw each has said what its shards are."""
        told: list[dict[str, Any]] = said
        facts, about = told[0]["facts"], told[0]["about"]
        of_seats = [facts[str(seat)] for seat in range(self._plan.seats)]
        changes: dict[str, Mapping[str, float]] = {}
        for one in told:
            changes |= one["about"]["changes"]
        names = sorted({name for one in of_seats for name in one["probed"]})
        moved = [{"moved": changes.get(str(seat), {})} for seat in range(self._plan.seats)]
        found = {
            "norm": about["norm"],
            "rate": about["rate"],
            "finite": about["finite"],
            "gradients": self._by_parameter(of_seats, "probed", names),
            "updates": self._by_parameter(moved, "moved", names),
        }
        super()._take_step(step, {"facts": facts, "about": found})

    def _by_parameter(self, said: Sequence[Mapping[str, Any]], what: str, names: Sequence[str]) -> dict[str, float]:
        return {name: norm_of(said, what, name) for name in names}
