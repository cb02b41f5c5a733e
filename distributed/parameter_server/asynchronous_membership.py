"""Members of an SSP or ASP run: as `membership`, without a step that is open everywhere and could be half applied."""

from __future__ import annotations

from distributed.parameter_server.membership import Membership, Message
from distributed.parameter_server.messages import server, worker


class AsynchronousMembership(Membership):
    """Epochs in three rounds: reconfigure, protect, resume. Nothing has to be rolled, since servers never agree on more
    than the tickets that each of them has applied."""

    def on_status(self, number: int, status: Message) -> None:
        """Round 1: which shards a server has."""
        if self._round != "reconfigure" or status["epoch"] != self.table.epoch:
            return
        self._statuses[number] = status
        if set(self._statuses) < set(self.table.servers):
            return
        for shard, one in enumerate(self.table.primary):
            if shard not in self._statuses[one]["shards"]:
                self._round = "lost"
                self._lost(f"shard {shard} is not on server {one}, which was to take it over")
                return
        self._rolling.clear()
        self._protect_if_rolled()

    def _resume_if_protected(self) -> None:
        if self._unprotected:
            return
        self._round = "resumed"
        word: Message = {"do": "resume", "table": self.table.to_dict()}
        for one in self.table.servers:
            self._send(server(one), word)
        for one in self.table.workers:
            self._send(worker(one), word)
