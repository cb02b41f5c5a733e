"""The coordinator of an SSP or ASP run: it hands tickets out and lets everybody rest where the trainer evaluates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distributed.agent import Job
from distributed.control import Agent
from distributed.errors import DistributedError, LinkError
from distributed.links.frames import Frame, json_payload
from distributed.parameter_server.asynchronous_membership import AsynchronousMembership
from distributed.parameter_server.computed_tickets import ComputedTickets
from distributed.parameter_server.coordinator import Applied, Coordinator
from distributed.parameter_server.dropped_tickets import DroppedTickets
from distributed.parameter_server.kept_back import KeptBack, frames_of
from distributed.parameter_server.membership import Membership
from distributed.parameter_server.messages import Kind, Member, server, worker
from distributed.parameter_server.replay import Replay, ReplayPool, read_replay, trace_name
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.staleness import StalenessMeter
from distributed.parameter_server.tickets import Ticket, TicketPool
from distributed.parameter_server.top_k import ErrorFeedback
from distributed.parameter_server.trace import TraceWriter


class AsynchronousCoordinator(Coordinator):
    """Members, tickets and horizons.

    Parameters
    ----------
    job, setup, workload: as for `Coordinator`.
    """

    roles: Mapping[str, str] = {**Coordinator.roles, "worker": "parameter_server.asynchronous_worker"}

    def __init__(self, job: Job, setup: Setup, workload: Mapping[str, Any]):
        super().__init__(job, setup, workload)
        self._shares = setup.options["shares"]
        self._replay: Replay | None = None
        if setup.options["replay"]:
            self._replay = read_replay(Path(setup.options["replay"]), setup.shards)
        self._pool: TicketPool | ReplayPool = TicketPool()
        self._computed = ComputedTickets()
        self._idle: list[Member] = []
        self._wanted_step = 0  # up to which the trainer wants steps
        self._asked: dict[str, Any] = {"rate_scale": 1.0, "probe": False}
        self._rested: dict[int, int] = {}  # by shard, the horizon that it came to
        self._resting = 0  # the horizon that was asked for
        self._parts: dict[tuple[int, int], bytes] = {}  # of traces, by shard and horizon, that journals do not have yet
        self._traced = 0  # the newest horizon that they have
        self._epoch = 0  # the newest one that went to work
        self._dropped = DroppedTickets(self._shares, self._replay.dropped() if self._replay else ())
        self.kept_back = KeptBack(setup)
        self._restored = False  # whether training is to begin from a state that somebody trained before
        self._remembered: set[Member] = set()

    @property
    def processes(self) -> Mapping[str, int]:
        """How many it takes, by role: as many as are asked for; in a replay the workers that the traces need."""
        counts = dict(super().processes)
        if self._replay:
            counts["worker"] = max(counts["worker"], self._replay.pool().processes)
        return counts

    # ------------------------------------------------------------------------------------------------- the trainer's

    def begin(self, step: int, values: torch.Tensor, moments: Sequence[torch.Tensor], updates: int) -> None:
        """Give the servers the state before `step`, and let all members begin there."""
        with self._changed:
            shards = self._shards_with_pieces()
            self._pool = self._replay.pool() if self._replay else TicketPool(self._shares, shards, step)
            if not self._replay:
                self._dropped.restart(step - 1)
            self._computed.clear()
            self._parts.clear()
            self._traced = step - 1
            self._idle.clear()
            self._rested, self._resting = dict.fromkeys(range(self._setup.shards), step - 1), step - 1
        super().begin(step, values, moments, updates)
        with self._changed:
            if self._restored and self.kept_back.is_used:
                self.kept_back.begin(step - 1)
            self._restored = False

    def restore(self, memories: Mapping[int, ErrorFeedback]) -> None:
        """What workers had kept back in the state that training is to begin from."""
        self.kept_back.memories, self._restored = dict(memories), True

    def memories(self) -> Mapping[int, ErrorFeedback]:
        """What each worker keeps back now, by the part that it plays; everybody rests."""
        if not self.kept_back.is_used:
            return {}
        with self._changed:
            asked = [member for member in self._ready if member.role == "worker"]
            self.kept_back.gather()
            self._remembered.clear()
        self._wait(  # also whoever computes a ticket that all servers have from another
            lambda: all(member in self._idle or member not in self._ready for member in asked),
            lambda: "workers to finish what they compute",
        )
        for member in asked:
            self._send(member, {"do": "remember"})
        self._wait(
            lambda: all(member in self._remembered or member not in self._ready for member in asked),
            lambda: "what workers keep back",
        )
        return self.kept_back.memories

    def grant(self, through: int, rate_scale: float, probe: bool) -> None:
        """Let workers begin steps up to `through`."""
        self._put("grant", through, {"rate_scale": rate_scale, "probe": probe})

    def halt(self) -> int:
        """Begin no further step; the last one begun."""
        with self._changed:
            self._wanted_step = self._pool.withdraw() if isinstance(self._pool, TicketPool) else self._pool.begun
            return self._wanted_step

    def wait_for(self, step: int) -> Applied:
        """What was computed of a step, once all servers have applied it."""

        def is_there() -> bool:
            tickets = self._tickets(step) if self._pool.complete >= step else []
            return bool(tickets) and all(self._computed.are_told(ticket, self._may_speak) for ticket in tickets)

        self._wait_for_step(step, is_there)
        with self._changed:
            said = [self._computed.of(ticket) for ticket in self._tickets(step)]
            self._computed.forget(step)
        decision = {
            "leaves": {leaf: facts for one in said for leaf, facts in one["leaves"].items()},
            "norm": math.fsum(one["norm"] for one in said) / len(said),
            "rate": said[0]["rate"],
            "finite": all(one["finite"] for one in said),
        }
        names = said[0]["gradients"]
        return Applied(
            decision, {name: math.fsum(one["gradients"][name] for one in said) / len(said) for name in names}
        )

    def wait_until_rest(self, step: int) -> None:
        """Let everybody rest behind `step`: the servers use what they have gathered, clocks begin anew."""
        self._put("rest", step)
        self._wait(
            lambda: self._membership.at_work and all(at >= step for at in self._rested.values()),
            lambda: f"the servers to rest after step {step}",
        )

    def journals(self) -> Mapping[str, bytes]:
        """New lines of every process's timeline, and what happened to each shard."""
        found = dict(super().journals())
        begun = self.kept_back.records()
        for shard in range(self._setup.shards):
            parts = [begun, *(self._parts[one, step] for one, step in sorted(self._parts) if one == shard)]
            if any(parts):
                found[trace_name(shard)] = self._head(shard) + b"".join(parts)
        self._traced = max([self._traced, *(step for _, step in self._parts)])
        self._parts.clear()
        return found

    def report(self) -> Mapping[str, Any]:
        """Times, traffic and losses, and how stale the pushes were."""
        found = dict(super().report())
        meter = StalenessMeter()
        with self._changed:
            for said in self._reports.values():
                if said.get("staleness"):
                    meter.add(said["staleness"])
        found["lost"] = found["lost"] | {"tickets": len(self._dropped)}
        found |= {"staleness": meter.summary(), "dropped": self._dropped.between(0, self._wanted_step)}
        return found | ({"kept_back": self.kept_back.report()} if self.kept_back.is_used else {})

    # ------------------------------------------------------------------------------------------------- its thread

    def _journals_in(self, member: Member, said: Mapping[str, Any]) -> dict[str, bytes]:
        """Beside its times, what happened to each shard, where its primary was lost before it had said so itself."""
        for name, parts in said.get("traces", {}).items():
            for step, content in parts:
                if step > self._traced:
                    self._parts.setdefault((int(name), int(step)), bytes.fromhex(content))
        return super()._journals_in(member, said)

    def _new_membership(self, shadows: bool) -> Membership:
        return AsynchronousMembership(self._setup, self._send, shadows=shadows, lost=self._state_is_lost)

    def _install_workers(self, workers: Sequence[int]) -> None:
        """Give workers what was kept back in the state that training begins from."""
        if self._restored and self.kept_back.is_used:
            for number, source in self.kept_back.deal_out(workers).items():
                for frame, content in frames_of(number, self.kept_back.memories[source]):
                    if worker(number) in self._agents:
                        self._plane.send_frame(self._agents[worker(number)], frame, content)

    def _install_rest(self, number: int, shard: int, step: int, updates: int) -> None:
        """The numbers that belong to a shard's buffers."""
        rest = {
            "updates": updates,
            "complete": step - 1,
            "newer": [],
            "history": [],
            "pulls": [],
            "gathered": [],
            "staleness": {},
        }
        self._link(number).send(Frame(kind=Kind.SHARD, step=step - 1, tags=(shard, 0, 0)), json_payload(rest))

    def _on_grant(self, through: int, asked: dict[str, Any]) -> None:
        self._wanted_step, self._asked = max(self._wanted_step, through), asked
        self._go_on()

    def _on_rest(self, step: int) -> None:
        self._wanted_step = min(self._wanted_step, step)
        self._go_on()
        self._rest_if_due(step)

    def _go_on(self) -> None:
        """Hand out what may be handed out; in a replay, rest first where the run rested."""
        if self._pool.granted < self._wanted_step and all(at >= self._resting for at in self._rested.values()):
            self._pool.grant(self._wanted_step)
        idle, self._idle = self._idle, []
        for member in idle:
            self._hand_out(member)

    def _rest_if_due(self, step: int) -> None:
        if step > self._resting and self._pool.complete >= step and self._membership.at_work:
            self._resting = step
            for one in self._membership.table.servers:
                self._send_rest(one)

    def _send_rest(self, one: int) -> None:
        dropped = self._dropped.between(min(self._rested.values()), self._resting)
        self._send(server(one), {"do": "rest", "step": self._resting, "dropped": dropped})

    def _then(self) -> None:
        """After a change of members: a lost worker's tickets are dealt with, a horizon under way is asked for again."""
        table = self._membership.table
        if not self._membership.at_work or table.epoch == self._epoch:
            return
        self._epoch = table.epoch
        if isinstance(self._pool, TicketPool):
            self._dropped.decide(self._pool)
            self._go_on()
        if any(at < self._resting for at in self._rested.values()):
            for one in table.servers:
                self._send_rest(one)

    def _hand_out(self, member: Member) -> None:
        ticket = self._pool.take(member.number)
        word: dict[str, Any] = {"do": "ticket", "step": None}
        if ticket is None:
            self._idle.append(member)
        else:
            word |= {"step": ticket.step, "share": ticket.share, "part": self._pool.part(member.number), **self._asked}
        self._send(member, word)

    def _on_gone(self, agent: Agent, reason: LinkError) -> None:
        member = agent.member
        if member is not None and member in self._idle:
            self._idle.remove(member)
        if isinstance(self._pool, ReplayPool) and not self._closing:
            why = str(reason) if member is None else self._given_up.get(member, str(reason))
            self._fail(DistributedError(f"{member} was lost in a replay: {why}", hint="begin the replay again"))
            return
        if member in self._ready and member.role == "worker":
            self.kept_back.lost += self.kept_back.is_used
        known = len(self._recoveries)
        super()._on_gone(agent, reason)
        for recovery in self._recoveries[known:]:
            recovery["step"] = self._pool.complete + 1
        if member is not None and member.role == "worker" and isinstance(self._pool, TicketPool):
            if self._options["on_loss"] == "drop":
                self._dropped.withhold(member.number, self._pool)
            else:
                self._pool.lose(member.number)
            self._go_on()

    # ------------------------------------------------------------------------------------------------- what members say

    def _welcome(self, member: Member) -> None:
        """Nothing: it asks for a ticket."""
        self.kept_back.from_nothing += self.kept_back.is_used

    def _say_status(self, member: Member, said: dict[str, Any]) -> None:
        for shard, tickets in said["tickets"].items():
            for step, share, part in tickets:
                self._note_applied_push(Ticket(step, share), part, int(shard))
        self._dropped.applied(Ticket(*ticket) for ticket in said["applied"])
        super()._say_status(member, said)

    def _say_memory(self, member: Member, said: dict[str, Any]) -> None:
        self.kept_back.take(said["frame"], said["payload"])

    def _say_remembered(self, member: Member, said: dict[str, Any]) -> None:
        if said["part"] is not None:
            self.kept_back.complete(said["part"])
        self._remembered.add(member)

    def _say_wants(self, member: Member, said: dict[str, Any]) -> None:
        self._hand_out(member)

    def _say_computed(self, member: Member, said: dict[str, Any]) -> None:
        ticket = Ticket(said["step"], said["share"])
        self._computed.say(ticket, self._pool.part(member.number), said)
        if not said["finite"] and isinstance(self._pool, TicketPool):
            self._pool.drop(ticket)

    def _say_pushed(self, member: Member, said: dict[str, Any]) -> None:
        self._note_applied_push(Ticket(said["step"], said["share"]), said["part"], said["shard"])
        if isinstance(self._pool, ReplayPool) and self._pool.at_rest and self._pool.granted < self._wanted_step:
            self._rest_if_due(self._pool.granted)

    def _note_applied_push(self, ticket: Ticket, part: int, shard: int) -> None:
        self._computed.applied(ticket, part, shard)
        self._pool.applied(ticket, shard)

    def _may_speak(self, part: int) -> bool:
        """Whether the worker that plays a part may have a word on its way."""
        return isinstance(self._pool, ReplayPool) or worker(part) in self._ready

    def _say_rested(self, member: Member, said: dict[str, Any]) -> None:
        self._rested[said["shard"]] = said["step"]
        if said["trace"]:
            self._parts[said["shard"], said["step"]] = bytes.fromhex(said["trace"])
        self._go_on()

    # ------------------------------------------------------------------------------------------------- inside

    def _tickets(self, step: int) -> list[Ticket]:
        there = [Ticket(step, share) for share in range(self._shares)]
        return [ticket for ticket in there if ticket not in self._dropped]

    def _head(self, shard: int) -> bytes:
        """The header of a shard's trace, where its file has none yet."""
        path = Path(self._options["run_directory"]) / "journals" / trace_name(shard)
        if path.exists() and path.stat().st_size:
            return b""
        return TraceWriter(shard, self._setup.shards, self._options["train_id"]).take()
