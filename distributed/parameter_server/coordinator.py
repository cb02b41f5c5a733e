"""The coordinator: what the trainer asks of the members of a run, and the way to the servers' state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError, LinkError
from distributed.links.frames import Frame
from distributed.parameter_server.members import RESUMABLE
from distributed.parameter_server.membership import Membership
from distributed.parameter_server.messages import Kind, Member, server
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.state_members import StateMembers


@dataclass
class Applied:
    """What servers said of a step: the decision, and of a probed step the parts of each shard."""

    decision: dict[str, Any]
    probed: dict[str, Any] = field(default_factory=dict)


class Coordinator(StateMembers[Membership]):
    """What the trainer asks for.

    Public methods are called by the trainer's thread; what they wait for is brought about by the coordinator's own.

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    setup: of the run.
    workload: the specification that workers build theirs from.
    """

    def __init__(self, job: Job, setup: Setup, workload: Mapping[str, Any]):
        self._setup = setup
        about: dict[str, Any] = {"setup": setup.to_dict()}
        contents = {"server": about, "worker": about | {"workload": workload}}
        super().__init__(job, contents, self._new_membership(bool(job.options["shadows"])))
        self._applied: dict[int, Applied] = {}
        self._installed: set[int] = set()
        self._grant: dict[str, Any] = {"do": "grant", "through": 0, "rate_scale": 1.0, "probe": False}

    # ------------------------------------------------------------------------------------------------- the trainer's

    def begin(self, step: int, values: torch.Tensor, moments: Sequence[torch.Tensor], updates: int) -> None:
        """Give the servers the state before `step`, and let all members begin there."""
        while not self._install(step, values, moments, updates):
            pass  # one of them was lost meanwhile: the state is here, so that the others can have it all

    def _install(self, step: int, values: torch.Tensor, moments: Sequence[torch.Tensor], updates: int) -> bool:
        with self._changed:
            self._anew()
            self._installed.clear()
            self._applied.clear()
        members = self._clear()
        servers = sorted(member.number for member in members if member.role == "server")
        if not servers:
            raise DistributedError("no server is left", where=self.where, hint=RESUMABLE)
        self._install_workers([member.number for member in members if member.role == "worker"])
        try:
            for shard in range(self._setup.shards):
                one = servers[shard % len(servers)]
                for buffer, content in enumerate([values, *moments]):
                    part = self._setup.shard_map.gather(shard, content.detach().cpu())
                    frame = Frame(kind=Kind.STATE, step=step - 1, tags=(shard, buffer, updates))
                    self._link(one).send(frame, part)
                self._install_rest(one, shard, step, updates)
        except LinkError as error:
            why = str(error)
            self._wait(lambda: not members <= self._ready, lambda: f"the loss of a server: {why}")
        self._wait(
            lambda: len(self._installed) == self._setup.shards or not members <= self._ready,
            lambda: f"servers {servers} to take shards {sorted(set(range(self._setup.shards)) - self._installed)}",
        )
        with self._changed:
            if members <= self._ready:
                self._put("begin", servers, step)
                return True
        return False

    def grant(self, through: int, rate_scale: float, probe: bool) -> None:
        """Let workers begin steps up to `through`."""
        self._grant = {"do": "grant", "through": through, "rate_scale": rate_scale, "probe": probe}
        for member in list(self._agents):
            if member.role == "worker":
                self._send(member, self._grant)

    def wait_for(self, step: int) -> Applied:
        """What the servers say of a step, once it is applied. Steps before it are forgotten.

        Raises StateLost where only a checkpoint can go on, DistributedError where nothing can.
        """

        def is_there() -> bool:
            one = self._applied.get(step)
            return one is not None and (not one.decision["probe"] or len(one.probed) == self._shards_with_pieces())

        self._wait_for_step(step, is_there)
        with self._changed:
            for old in [one for one in self._applied if one < step]:
                del self._applied[old]
            return self._applied[step]

    def pull(self, step: int, values: torch.Tensor, moments: Sequence[torch.Tensor]) -> int:
        """Write the servers' state after `step` into flat buffers; without `moments`, parameters only.

        Returns how many updates the servers have made.
        """
        limit = time.monotonic() + 10 * self._options["deadline_seconds"]
        while True:
            self.wait_until_rest(step)
            with self._changed:
                self._links.received.clear()
                epoch, primary = self._membership.table.epoch, self._membership.table.primary
            buffers = [values, *moments]
            shards = [shard for shard in range(self._setup.shards) if self._setup.shard_map.size(shard)]
            for shard in shards:
                frame = Frame(kind=Kind.PULL, step=step, tags=(shard, len(buffers), 0))
                with contextlib.suppress(LinkError):  # its server is gone and the epoch with it, or the link alone
                    self._link(primary[shard]).send(frame)

            def is_there(wanted: int = len(shards) * len(buffers), epoch: int = epoch) -> bool:
                return len(self._links.received) == wanted or self._membership.table.epoch != epoch

            def is_broken(asked: frozenset[int] = frozenset(primary[shard] for shard in shards)) -> bool:
                return not self._links.lead_to(asked)

            self._wait(lambda: is_there() or is_broken(), lambda: f"the state of step {step}")
            with self._changed:
                if self._membership.table.epoch != epoch:
                    continue
                if not is_there():
                    if time.monotonic() > limit:
                        raise DistributedError(f"no link to servers {primary} lasts", where="the parameter server")
                    self._changed.wait(0.05)  # a server whose link ends first is lost a moment later
                    continue
                received = dict(self._links.received)
                for (shard, buffer), (content, _) in received.items():
                    self._setup.shard_map.scatter(shard, content, buffers[buffer])
                made = max(updates for _, updates in received.values())
                self._links.received.clear()
                return made

    def report(self) -> Mapping[str, Any]:
        """What was lost and how long that took, and what every process reports: see `RunFigures.of`."""
        return dict(super().report()) | {"dropped": [dict(one) for one in self._membership.dropped]}

    # ------------------------------------------------------------------------------------------------- events

    def _on_begin(self, servers: list[int], step: int) -> None:
        self._beginning = False
        workers = [member.number for member in self._ready if member.role == "worker"]  # some may just have come
        self._membership.begin(workers, servers, step)
        gone = [server(one) for one in servers if server(one) not in self._ready]
        if gone:
            self._membership.leave(*gone)

    def _forget(self, member: Member) -> None:
        """The link to it."""
        if member.role == "server":
            self._links.drop(member.number)

    # ------------------------------------------------------------------------------------------------- what members say

    def _say_serving(self, member: Member, said: dict[str, Any]) -> None:
        self._serving[member.number] = said["addresses"]
        self._is_ready(member)

    def _say_ready(self, member: Member, said: dict[str, Any]) -> None:
        self._is_ready(member)
        if self._membership.table.epoch and not self._beginning:
            self._welcome(member)
            self._membership.join(member.number)

    def _say_rolled(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_rolled(member.number, said["epoch"])

    def _say_protected(self, member: Member, said: dict[str, Any]) -> None:
        self._membership.on_protected(said["shard"], said["epoch"])

    def _say_status(self, member: Member, said: dict[str, Any]) -> None:
        if said.get("decision"):
            self._note_applied(member, said)
        self._membership.on_status(member.number, said)

    def _say_installed(self, member: Member, said: dict[str, Any]) -> None:
        self._installed.add(said["shard"])

    def _say_applied(self, member: Member, said: dict[str, Any]) -> None:
        self._note_applied(member, said)
        self._membership.applied(said["decision"]["step"])

    # ------------------------------------------------------------------------------------------------- inside

    def _new_membership(self, shadows: bool) -> Membership:
        return Membership(self._setup, self._send, shadows=shadows, lost=self._state_is_lost)

    def _belongs(self, member: Member) -> bool:
        return member in self._membership.table.members

    def _leave(self, member: Member) -> None:
        self._membership.leave(member)

    def _welcome(self, member: Member) -> None:
        """What a worker has to know that comes later than others."""
        self._send(member, self._grant)

    def _note_applied(self, member: Member, said: dict[str, Any]) -> None:
        one = self._applied.setdefault(said["decision"]["step"], Applied(said["decision"]))
        one.probed.update(said["probed"])

    def _install_workers(self, workers: Sequence[int]) -> None:
        """What belongs to workers of the state that training begins from: nothing under BSP."""

    def _install_rest(self, number: int, shard: int, step: int, updates: int) -> None:
        """What belongs to a shard beside its buffers: under BSP their frames say all of it."""

    def _shards_with_pieces(self) -> int:
        return sum(1 for shard in range(self._setup.shards) if self._setup.shard_map.size(shard))
