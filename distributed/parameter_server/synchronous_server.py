"""A server under BSP: it sums what a step's workers push, and applies each step once, when all servers can.

Why a step is never half applied
--------------------------------
A server applies a step only when every shard's gradient is whole on its primary (SUMS) and held by its shadow (HELD).
So if any server applied a step, all that live can apply it too, with that server's decision (`roll`); if none did, the
step is open everywhere and what was pushed still counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from distributed.arithmetic import clip_
from distributed.links.frames import Frame
from distributed.parameter_server.member_protocol import ServerProtocol
from distributed.parameter_server.messages import COORDINATOR, Kind, Member, Outbox, Table, server, worker
from distributed.parameter_server.open_step import Agreement, OpenStep
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.shard import Shard
from distributed.shards import Piece


class SynchronousServer(ServerProtocol):
    """Server `number` of a BSP run.

    Parameters
    ----------
    number, setup, outbox, allocate, reach: as for `ServerProtocol`. Phases: `push`, `whole`, `prepared`, `apply`,
        `applied`.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        outbox: Outbox,
        allocate: Callable[[int], torch.Tensor] = torch.zeros,
        reach: Callable[[str, int], None] = lambda phase, step: None,
    ):
        super().__init__(number, setup, outbox, allocate, reach)
        self.shards: dict[int, Shard] = {}
        """Every shard that it has, as primary or shadow."""
        self.step = 1
        """The open step: the one after the last that was applied."""
        self.decision: dict[str, Any] = {}
        """What was decided on the last step that it applied."""
        self._probed: dict[str, Any] = {}  # of that step, by shard
        self._pulls: list[tuple[Member, Frame]] = []  # of a step that is not applied here yet
        self._filled = {piece.shard for piece in setup.shard_map.pieces}  # a small model leaves some shards empty
        self._open = OpenStep(setup, self.pool)
        self._agreed = Agreement()

    # ------------------------------------------------------------------------------------------------- membership

    def reconfigure(self, table: Table) -> dict[str, Any]:
        """Stop in the present epoch and take over what the new table says; returns where this server stands.

        A shard of which it was the shadow and is the primary now keeps what it holds of the open step.
        """
        self._running, self.table = False, table
        self._agreed = Agreement()  # in this epoch everybody says it again
        primary, wanted = set(self._primary()), self._open.wanted
        for shard in self.shards.keys() - primary - set(self._shadows()):
            del self.shards[shard]
            self._open.drop(shard)
        for shard in primary - self.shards.keys():
            self.shards[shard] = self._new_shard(shard)
        return {
            "epoch": table.epoch,
            "applied": {str(shard): self.shards[shard].applied for shard in sorted(self.shards)},
            "decision": self.decision,
            "probed": self._probed,
            "whole": sorted(shard for shard in self.shards if self._open.is_whole(shard)),
            "leaves": {str(shard): sorted(self._open.leaves_there(shard)) for shard in sorted(primary)},
            "said": sorted(self._open.facts),
            "wanted": None if wanted is None else sorted(wanted),
        }

    def roll(self, decision: Mapping[str, Any]) -> None:
        """Apply the step that others have applied already, as they decided it."""
        if decision["step"] >= self.step:
            self._apply(dict(decision))

    def protect(self, unprotected: set[int]) -> None:
        """Send the state of shards that it is the primary of to the servers that are to be their shadows."""
        for shard in sorted(unprotected):
            to = self.table.shadow[shard]
            if to is None or self.table.primary[shard] != self.number:
                continue
            one = self.shards[shard]
            for buffer, content in enumerate(one.buffers):
                self._send(server(to), Kind.STATE, one.applied, (shard, buffer, one.updates), content)

    def resume(self, open_step: int, leaves: frozenset[int] | None = None) -> None:
        """Go on with `open_step` in the present epoch; `leaves`: those that it is made of, if not all."""
        if open_step != self.step:
            raise RuntimeError(f"server {self.number} has applied {self.step - 1} steps, and is to open {open_step}")
        self._running = True
        if leaves is not None:
            self._open.change_leaves(leaves, self._primary(), self.table.epoch)
        if self._open.facts:  # a worker that is gone may have said them to some only
            self._to_servers(Kind.CONTRIBUTION, (0, 0, 0), json.dumps(self._open.said()).encode())
        for shard in self._primary():
            for index in sorted(self._open.gradients(shard)):
                self._ship(shard, index)
            self._complete(shard)
            self._say_whole(shard)
        for shard in self._shadows():
            self._say_held(shard)
        self._advance()

    def clear(self) -> None:
        """Forget every shard: the coordinator is about to send the state of another moment."""
        self._running = False
        self._open_next()
        self._pulls.clear()
        self.shards.clear()
        self.decision = {}

    # ------------------------------------------------------------------------------------------------- frames

    def receive(self, sender: Member, frame: Frame, payload: torch.Tensor | bytes) -> None:
        """Take in a frame."""
        kind = Kind(frame.kind)
        if sender.role == "server" and frame.epoch != self.table.epoch:
            self.pool.give_back(payload)
            return  # of an epoch that is over: who said it says it again
        handler = getattr(self, f"_on_{kind.name.lower()}")
        handler(sender, frame, payload)

    def _on_contribution(self, sender: Member, frame: Frame, payload: bytes) -> None:
        if frame.step != self.step:
            return
        self._open.say(json.loads(bytes(payload)))
        if not self.setup.all_leaves_count:  # else what is whole does not depend on what is said
            for shard in self._primary():
                self._complete(shard)
                self._say_whole(shard)
        self._advance()

    def _has(self, frame: Frame) -> bool:
        piece = self._pieces[frame.tags[2]]
        return frame.step < self.step or piece.index in self._open.gradients(piece.shard)

    def _on_push(self, sender: Member, frame: Frame, payload: torch.Tensor) -> None:
        self._reach("push", frame.step)
        start, stop, index = frame.tags
        piece = self._pieces[index]
        is_mine = frame.step == self.step and self.table.primary[piece.shard] == self.number
        if not (is_mine and self._open.add(piece, (start, stop), payload)):
            self.pool.give_back(payload)
            return
        self._complete(piece.shard, index)
        self._say_whole(piece.shard)
        self._advance()

    def _on_pull(self, sender: Member, frame: Frame, payload: bytes) -> None:
        shard = self.shards.get(frame.tags[0])
        if shard is None or shard.applied < frame.step:
            if sender == COORDINATOR:  # who has heard from another server that it is applied
                self._pulls.append((sender, frame))
            return  # workers are answered when it is applied
        if frame.tags[1]:
            for number, buffer in enumerate(shard.buffers[: frame.tags[1]]):
                self._send(sender, Kind.STATE, shard.applied, (shard.number, number, shard.updates), buffer)
        else:
            for piece in shard.pieces:
                self._reply(sender, shard, piece)

    def _on_shadow(self, sender: Member, frame: Frame, payload: torch.Tensor) -> None:
        piece = self._pieces[frame.tags[2]]
        if frame.step != self.step or self.table.shadow[piece.shard] != self.number:
            self.pool.give_back(payload)
            return
        self._open.hold(piece, payload, frame.epoch)
        self._say_held(piece.shard)
        self._advance()

    def _on_sums(self, sender: Member, frame: Frame, payload: torch.Tensor) -> None:
        if frame.step == self.step:
            self._agreed.sums[frame.tags[0]] = payload.view(torch.float64).tolist()
            self._advance()

    def _on_held(self, sender: Member, frame: Frame, payload: bytes) -> None:
        if frame.step == self.step:
            self._agreed.held.add(frame.tags[0])
            self._advance()

    def _on_clipped(self, sender: Member, frame: Frame, payload: bytes) -> None:
        if frame.step == self.step:
            self._agreed.clipped[frame.tags[0]] = json.loads(bytes(payload))
            self._advance()

    def _on_close(self, sender: Member, frame: Frame, payload: bytes) -> None:
        if frame.step == self.step:
            self._close(frozenset(json.loads(bytes(payload))))

    def _on_state(self, sender: Member, frame: Frame, payload: torch.Tensor) -> None:
        shard, buffer, updates = frame.tags
        if sender.role == "server" and self.table.shadow[shard] != self.number:
            return
        one = self.shards.get(shard)
        if one is None:
            one = self.shards[shard] = self._new_shard(shard)
        one.buffers[buffer].copy_(payload)
        if buffer == len(one.buffers) - 1:
            one.updates, one.applied = updates, frame.step
            self.step = frame.step + 1
            word = "protected" if sender.role == "server" else "installed"
            self.outbox.tell({"say": word, "epoch": self.table.epoch, "shard": shard, "server": self.number})

    # ------------------------------------------------------------------------------------------------- agreeing

    def _complete(self, shard: int, index: int | None = None) -> None:
        """Where all wanted leaves of a piece are there, make its gradient of them, and send it to the shadow."""
        if self._open.wanted is None:
            self._close_if_enough(shard)
        for one in self._open.complete(shard, index):
            if self._running:
                self._ship(shard, one)

    def _close_if_enough(self, shard: int) -> None:
        """With backup workers: the primary of shard 0 closes a step once enough of them have pushed all of it."""
        there = self._open.enough(len(self.table.workers)) if shard == 0 and self._running else None
        if there is not None:
            self._to_servers(Kind.CLOSE, (0, 0, 0), json.dumps(sorted(there)).encode())
            self._close(there)

    def _close(self, wanted: frozenset[int]) -> None:
        self._open.wanted = wanted
        for shard in self._primary():
            self._complete(shard)
            self._say_whole(shard)
        self._advance()

    def _ship(self, shard: int, index: int) -> None:
        to = self.table.shadow[shard]
        if to is not None:
            self._send(server(to), Kind.SHADOW, self.step, (0, 0, index), self._open.gradients(shard)[index])

    def _say_whole(self, shard: int) -> None:
        """Tell all servers that a shard's gradient is whole, once all of its pieces are."""
        if not self._running or shard in self._agreed.sums or not self._open.is_whole(shard):
            return
        self._reach("whole", self.step)
        sums = self._agreed.sums[shard] = self._open.square_sums(shard)
        self._to_servers(Kind.SUMS, (shard, 0, 0), torch.tensor(sums, dtype=torch.float64).view(torch.uint8))

    def _say_held(self, shard: int) -> None:
        """Tell all servers that the shadow of a shard has the whole gradient."""
        if not self._running or shard in self._agreed.held or shard not in self.shards:
            return
        if self._open.is_held(shard, self.table.epoch):
            self._agreed.held.add(shard)
            self._to_servers(Kind.HELD, (shard, 0, 0))

    def _advance(self) -> None:
        """Apply the open step if everybody can."""
        if not self._running or not self._open.is_said:
            return
        shadowed = {shard for shard in self._filled if self.table.shadow[shard] is not None}
        if not (self._filled <= self._agreed.sums.keys() and shadowed <= self._agreed.held):
            return
        decision = self._open.decide(self.step, self._agreed.sums)
        clipping = self.setup.optimizer
        names = list(clipping.parameter_max_norms)
        if names and decision["finite"]:
            for shard in self._primary():
                if shard not in self._agreed.clipped:
                    parts = self.shards[shard].part_sums_after_clipping(
                        self._open.gradients(shard), decision["norm"], clipping.max_norm, names, self.pool
                    )
                    self._agreed.clipped[shard] = parts
                    self._to_servers(Kind.CLIPPED, (shard, 0, 0), json.dumps(parts).encode())
            if not self._filled <= self._agreed.clipped.keys():
                return
            decision["own_norms"] = self._agreed.norms_of(names)
        self._apply(decision)

    def missing(self) -> str:
        """See `ServerProtocol.missing`: what the open step still lacks here."""
        if not self._running:
            return super().missing()
        everything = frozenset(range(self.setup.leaves))
        for shard in self._primary():
            lacking = (self._open.wanted or everything) - self._open.leaves_there(shard)
            if lacking:
                return f"gradients of groups {_numbers(lacking)} for shard {shard}"
        if not self._open.is_said:
            return f"losses of groups {_numbers((self._open.wanted or everything) - self._open.facts.keys())}"
        unsummed = self._filled - self._agreed.sums.keys()
        if unsummed:
            return f"word that shards {_numbers(unsummed)} are whole"
        return "word of the shadows"

    # ------------------------------------------------------------------------------------------------- applying

    def _apply(self, decision: dict[str, Any]) -> None:
        """Apply the step to every shard and answer the workers, shard by shard in the order of a forward pass."""
        self._reach("prepared", decision["step"])
        primary = set(self._primary())
        probed: dict[str, Any] = {}
        for number, shard in sorted(self.shards.items()):
            if shard.applied >= decision["step"]:
                continue
            probe = decision["probe"] and number in self._filled
            before = shard.values.clone() if probe else None
            gradients = shard.part_sums_of_all(self._open.gradients(number)) if probe else {}
            self._reach("apply", decision["step"])
            shard.updates += decision["finite"]
            shard.applied = decision["step"]
            for piece in shard.pieces:
                if decision["finite"]:
                    self._update(shard, piece, decision)
                if number in primary and decision["finite"]:  # behind a step that was not applied none is begun
                    for one in self.table.workers:
                        self._reply(worker(one), shard, piece)
            if before is not None:
                before.sub_(shard.values)
                change = {piece.index: piece.local(before) for piece in shard.pieces}
                probed[str(number)] = {"gradients": gradients, "updates": shard.part_sums_of_all(change)}
        self._reach("applied", decision["step"])
        self.decision, self._probed = decision, probed
        self.step = decision["step"] + 1
        self._open_next()
        pulls, self._pulls = self._pulls, []
        for sender, frame in pulls:
            self._on_pull(sender, frame, b"")
        if probed or 0 in primary:
            self.outbox.tell({"say": "applied", "decision": decision, "probed": probed})

    def _update(self, shard: Shard, piece: Piece, decision: Mapping[str, Any]) -> None:
        clipping = self.setup.optimizer
        gradient = self._open.gradients(shard.number)[piece.index]
        clip_(gradient, decision["norm"], clipping.max_norm)
        shard.scale_parts(piece, gradient, decision["own_norms"], clipping.parameter_max_norms)
        shard.update(piece, gradient, shard.updates, decision["rate"])

    def _reply(self, to: Member, shard: Shard, piece: Piece) -> None:
        # The next step is applied only when all workers have pushed it, which takes these values: until then they stay.
        values = piece.local(shard.values)
        if not self.setup.all_leaves_count:  # a step that does not wait for all of them does not wait for this either
            values = values.clone()
        self._send(to, Kind.REPLY, shard.applied, (piece.index, 0, 0), values)

    def _open_next(self) -> None:
        self._open.clear()
        self._agreed = Agreement()

    def _to_servers(self, kind: Kind, tags: tuple[int, int, int], payload: torch.Tensor | bytes = b"") -> None:
        for one in self.table.servers:
            if one != self.number:
                self._send(server(one), kind, self.step, tags, payload)


def _numbers(found: Collection[int]) -> str:
    return ", ".join(map(str, sorted(found)))
