"""Who belongs to a run, and how it goes on when that changes: the coordinator's part of the protocol.

Every change makes a new epoch, in four rounds that only the servers' answers move on:

1. *reconfigure*: servers stop, and say which step each shard stands at and what is there of the open one;
2. *roll*: if some have applied a step, those that have not do so, with the decision of one that has;
3. *protect*: shards whose shadow is on another server now are copied to it;
4. *resume*: servers and workers go on with the open step; leaves of workers that are gone are dealt out anew.

A further loss at any point begins the next epoch with round 1. No thread and no socket is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distributed.parameter_server.messages import Member, Table, server, worker
from distributed.parameter_server.setup import Setup

Message = dict[str, Any]


class Membership:
    """Members of a BSP run, as the coordinator sees them.

    Parameters
    ----------
    setup: the run.
    send: gives a control message to a member.
    shadows: whether each shard is kept a second time.
    lost: called with a sentence where the state of a shard is gone with its servers.
    """

    def __init__(
        self,
        setup: Setup,
        send: Callable[[Member, Message], None],
        *,
        shadows: bool,
        lost: Callable[[str], None],
    ):
        self.setup, self._send, self._shadows, self._lost = setup, send, shadows, lost
        self.table = Table(0, (), (), ())
        self.open_step = 1
        self.dropped: list[dict[str, Any]] = []
        """Leaves that were left out of a step because their worker was lost (`lost_leaves="drop"`)."""
        self._round = ""
        self._statuses: dict[int, Message] = {}
        self._rolling: set[int] = set()
        self._unprotected: set[int] = set()
        self._owned: dict[int, tuple[int, ...]] = {}  # leaves of step `_owned_step`, by worker
        self._owned_step = 0
        self._working: tuple[int, ...] = ()  # the workers of the newest epoch that was resumed
        self._wanted: list[int] | None = None

    @property
    def epoch(self) -> int:
        """The newest; 0 before the run begins."""
        return self.table.epoch

    @property
    def at_work(self) -> bool:
        """Whether no change is under way."""
        return self._round == "resumed"

    def pending(self) -> str:
        """What a change that is under way waits for, as a clause; empty where none is."""
        match self._round:
            case "reconfigure":
                owing = set(self.table.servers) - set(self._statuses)
                return f"{_servers(owing)} to answer in epoch {self.table.epoch}"
            case "roll":
                return f"{_servers(self._rolling)} to apply step {self.open_step - 1}"
            case "protect":
                owing = {one for shard in self._unprotected if (one := self.table.shadow[shard]) is not None}
                return f"{_servers(owing)} to take over the shadows of shards {sorted(self._unprotected)}"
        return ""

    def begin(self, workers: Sequence[int], servers: Sequence[int], open_step: int) -> None:
        """Start with these members; the servers have the state before `open_step`."""
        primary = tuple(servers[shard % len(servers)] for shard in range(self.setup.shards))
        self.open_step, self._working = open_step, tuple(sorted(workers))
        self._unprotected = set(range(self.setup.shards))
        self._change(self._working, primary, tuple(sorted(servers)))

    def leave(self, *members: Member) -> None:
        """Go on without members that are lost."""
        gone_workers = {number for role, number in members if role == "worker"}
        gone_servers = {number for role, number in members if role == "server"}
        servers = tuple(one for one in self.table.servers if one not in gone_servers)
        primary = []
        for shard, one in enumerate(self.table.primary):
            heir = self.table.shadow[shard]
            if one in gone_servers and (heir is None or heir in gone_servers or shard in self._unprotected):
                self._round = "lost"
                self._lost(
                    f"shard {shard} was on servers {one} and {heir}, and both are gone"
                    if heir in gone_servers
                    else f"shard {shard} was on server {one} alone"  # also where its shadow had not been filled yet
                )
                return
            primary.append(heir if one in gone_servers and heir is not None else one)
        workers = tuple(one for one in self.table.workers if one not in gone_workers)
        self._change(workers, tuple(primary), servers)

    def again(self) -> None:
        """Begin a new epoch with the same members: links between some of them have to be made anew."""
        self._change(self.table.workers, self.table.primary, self.table.servers)

    def join(self, *numbers: int) -> None:
        """Take workers in, from the step after the open one."""
        self._change(tuple(sorted({*self.table.workers, *numbers})), self.table.primary, self.table.servers)

    def on_status(self, number: int, status: Message) -> None:
        """Round 1: what a server says of itself."""
        if self._round != "reconfigure" or status["epoch"] != self.table.epoch:
            return
        self._statuses[number] = status
        if set(self._statuses) < set(self.table.servers):
            return
        at = {shard: self._statuses[one]["applied"][str(shard)] for shard, one in enumerate(self.table.primary)}
        newest = max(at.values())
        for shard, step in at.items():
            whole = shard in self._statuses[self.table.primary[shard]]["whole"]
            if step < newest - 1 or (step == newest - 1 and not whole):
                self._round = "lost"
                self._lost(f"shard {shard} on server {self.table.primary[shard]} stands at step {step} of {newest}")
                return
        self._round = "roll"
        self.open_step = newest + 1
        self._rolling = {
            one for one, said in self._statuses.items() if any(step < newest for step in said["applied"].values())
        }
        decision = next(
            (said["decision"] for said in self._statuses.values() if said["decision"].get("step") == newest), None
        )
        for one in sorted(self._rolling):
            self._send(server(one), {"do": "roll", "epoch": self.table.epoch, "decision": decision})
        self._protect_if_rolled()

    def on_rolled(self, number: int, epoch: int) -> None:
        """Round 2: a server has applied what the others had."""
        if self._round == "roll" and epoch == self.table.epoch:
            self._rolling.discard(number)
            self._protect_if_rolled()

    def on_protected(self, shard: int, epoch: int) -> None:
        """Round 3: a shard's shadow has its state."""
        if self._round == "protect" and epoch == self.table.epoch:
            self._unprotected.discard(shard)
            self._resume_if_protected()

    def applied(self, step: int) -> None:
        """Note that a step was applied."""
        self.open_step = max(self.open_step, step + 1)

    # ------------------------------------------------------------------------------------------------- rounds

    def _change(self, workers: tuple[int, ...], primary: tuple[int, ...], servers: tuple[int, ...]) -> None:
        before = self.table
        shadow = tuple(self._next(one, servers) if self._shadows else None for one in primary)
        self.table = Table(before.epoch + 1, workers, primary, shadow)
        for shard, one in enumerate(shadow):
            if one is not None and (one, primary[shard]) not in _pairs(before, shard):
                self._unprotected.add(shard)
        self._unprotected = {shard for shard in self._unprotected if shadow[shard] is not None}
        self._round, self._statuses = "reconfigure", {}
        for one in servers:
            self._send(server(one), {"do": "reconfigure", "table": self.table.to_dict()})

    def _protect_if_rolled(self) -> None:
        if self._rolling:
            return
        self._round = "protect"
        for one in sorted({self.table.primary[shard] for shard in self._unprotected}):
            shards = sorted(shard for shard in self._unprotected if self.table.primary[shard] == one)
            self._send(server(one), {"do": "protect", "epoch": self.table.epoch, "shards": shards})
        self._resume_if_protected()

    def _resume_if_protected(self) -> None:
        if self._unprotected:
            return
        self._round = "resumed"
        self._deal_out()
        word: Message = {"do": "resume", "table": self.table.to_dict(), "open": self.open_step}
        for one in self.table.servers:
            self._send(server(one), word | {"leaves": self._wanted})
        for one in self.table.workers:
            self._send(worker(one), word | {"mine": list(self._owned.get(one, ()))})

    def _deal_out(self) -> None:
        """Who computes what of the open step: what is theirs already, and a share of what lost ones leave behind."""
        live = self.table.workers
        if self._owned_step != self.open_step:
            self._owned, self._owned_step, self._wanted = self._default(self._working), self.open_step, None
        self._owned = {one: leaves for one, leaves in self._owned.items() if one in live}
        safe = self._leaves_everywhere() | {leaf for leaves in self._owned.values() for leaf in leaves}
        lost = [leaf for leaf in range(self.setup.leaves) if leaf not in safe]
        self._working = live
        if self.setup.all_leaves_count:
            units = [unit for unit in self.setup.units if unit[0] in lost]
            for number, unit in enumerate(units if live else ()):  # without a worker they wait for one to join
                one = live[number % len(live)]
                self._owned[one] = tuple(sorted((*self._owned.get(one, ()), *range(*unit))))
            return
        decided = [set(said["wanted"]) for said in self._statuses.values() if said["wanted"] is not None]
        if decided or lost:
            there = set.intersection(set(range(self.setup.leaves)), *decided) - set(lost)
            self._wanted = sorted(there)
        if lost:
            self.dropped.append({"step": self.open_step, "leaves": lost})

    def _leaves_everywhere(self) -> set[int]:
        """Leaves of the open step that every shard has whole, and of which a server knows the rest and tells all."""
        there = [{leaf for said in self._statuses.values() for leaf in said["said"]}]
        for shard, one in enumerate(self.table.primary):
            said = self._statuses[one]
            if said["applied"][str(shard)] != self.open_step - 1:
                return set()  # it has just been rolled to it, and has nothing of this one
            there.append(set(said["leaves"][str(shard)]))
        return set.intersection(*there)

    def _default(self, workers: Sequence[int]) -> dict[int, tuple[int, ...]]:
        if not workers:
            return {}
        return dict(zip(workers, map(tuple, self.setup.owners(len(workers))), strict=True))

    def _next(self, one: int, servers: Sequence[int]) -> int | None:
        """The live server after one, in the ring of servers; None where there is no other."""
        others = [other for other in servers if other != one]
        return min((other for other in others if other > one), default=min(others, default=None))


def _servers(numbers: Iterable[int]) -> str:
    return ", ".join(str(server(number)) for number in sorted(numbers))


def _pairs(table: Table, shard: int) -> list[tuple[int | None, int | None]]:
    """The pairs (shadow, primary) of a shard that need no copying from one to the other, after `table`."""
    if not table.primary:
        return []
    return [(table.shadow[shard], table.primary[shard])]
