"""Who has which seats of a ring among which parameters rotate, and how that changes: the coordinator's part.

Every change makes a new epoch, in three rounds that only the nodes' answers move on:

1. *reconfigure*: nodes stop, end their links, and say which step they have applied and which shards they have;
2. *settle*: who has not applied the newest step does so, and nodes send their successors the shards that these lack;
3. *resume*: all go on with the open step.

The seats of a node that is lost go to the next one, which has their second copies. A node that joins takes half of the
seats of who has most, right behind it in the ring; so everything that anybody lacks is at the node before it. A further
loss at any point begins the next epoch from the last seating in which all had what they were to have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed.ring.membership import Message, RingMembership
from distributed.ring.messages import Ring
from distributed.ring_rotate.seating import Seating
from distributed.slot_tree import shares


class RotateMembership(RingMembership):
    """Members of a ring, as the coordinator sees them.

    Parameters
    ----------
    send: gives a control message to a node: `reconfigure` (with ring and owners), `settle` (with the newest step, what
        was said of it, and the seats whose shards it is to send on) or `resume` (with the open step).
    applied: told of each step once every live node has applied it, with what these said of it.
    lost: called with a sentence where nobody has a shard any more.
    seats: of the ring.
    shadows: whether each shard has a second copy.
    """

    def __init__(
        self,
        send: Callable[[int, Message], None],
        applied: Callable[[int, Any], None],
        lost: Callable[[str], None],
        seats: int,
        shadows: bool,
    ):
        super().__init__(send, applied, lost, seats)
        self._shadows = shadows
        self.seating = Seating(self.ring, ())
        self._settled = self.seating  # the last one in which all had what they were to have

    @staticmethod
    def first_seating(numbers: Sequence[int], seats: int) -> Seating:
        """Seats shared out over nodes, in the order of their numbers."""
        order = tuple(sorted(numbers))[:seats]
        parts = shares(seats, len(order))
        return Seating(Ring(0, order), tuple(order[at] for at, part in enumerate(parts) for _ in part))

    def begin_with(self, seating: Seating, live: Sequence[int], open_step: int) -> None:
        """Start with nodes that have the shards of their seats, and their second copies, before `open_step`.

        live: who is ready. Those who have a seat and are not are lost; those who have none wait for one.
        """
        self._settled = seating
        self.ring = Ring(self.ring.epoch, seating.ring.order)
        self.open_step = open_step
        self._facts, self._joining = {}, set(live) - set(seating.ring.order)
        self._applied = dict.fromkeys(seating.ring.order, open_step - 1)
        self._change(set(live) & set(seating.ring.order))

    def pending(self) -> str:
        """What a change that is under way waits for, as a clause; empty where none is."""
        if self._round == "settle":
            nodes = ", ".join(f"worker {number}" for number in sorted(self._owing))
            return f"{nodes} to be given what it lacks by a neighbour"
        return super().pending()

    # ------------------------------------------------------------------------------------------------- answers

    def on_status(self, number: int, status: Mapping[str, Any]) -> None:
        """Round 1: where a node stands."""
        if self._round != "reconfigure" or status["epoch"] != self.ring.epoch or number not in self._owing:
            return
        self._statuses[number] = dict(status)
        self._owing.discard(number)
        if not self._owing and self._is_all_there():
            self._settle()

    def on_settled(self, number: int, epoch: int) -> None:
        """Round 2: a node has applied the newest step, and has all that it is to have."""
        if self._round == "settle" and epoch == self.ring.epoch:
            self._owing.discard(number)
            if not self._owing:
                self._resume()

    # ------------------------------------------------------------------------------------------------- rounds

    def _change(self, members: set[int]) -> None:
        before = self._settled.ring.order
        self._joining |= members - set(before)  # they had not been given anything yet
        order = [one for one in before if one in members]
        self._applied = {one: step for one, step in self._applied.items() if one in order}
        self._facts = {one: facts for one, facts in self._facts.items() if one in order}
        if not order:
            self._round = "lost"
            self._lost("all nodes are gone, and the parameters with them")
            return
        owners = [self._heir(owner, order) for owner in self._settled.owners]
        if len(order) == len(before) and self._joining:
            self._take_in(min(self._joining), order, owners)
        self.seating = Seating(Ring(self.ring.epoch + 1, tuple(order)), tuple(owners))
        self.ring = self.seating.ring
        self._round, self._statuses, self._owing = "reconfigure", {}, set(order)
        for one in order:
            word = {"do": "reconfigure", "ring": self.ring.to_dict(), "owners": owners, "new": one not in before}
            self._send(one, word)

    def _heir(self, owner: int, live: Sequence[int]) -> int:
        """The node itself, or the next in the order before that lives."""
        order = self._settled.ring.order
        at = order.index(owner)
        return next(one for one in (*order[at:], *order[:at]) if one in live)

    def _take_in(self, number: int, order: list[int], owners: list[int]) -> None:
        """Give a node that joins half of the seats of who has most, if anybody has two."""
        host = max(order, key=owners.count)
        own = Seating(Ring(0, tuple(order)), tuple(owners)).seats_of(host)
        for seat in own[len(own) - len(own) // 2 :]:
            owners[seat] = number
        if len(own) > 1:
            order.insert(order.index(host) + 1, number)
            self._joining.discard(number)

    def _is_all_there(self) -> bool:
        """Whether every shard is where it is looked for; if not, that is told."""
        live = [one for one in self._settled.ring.order if one in self._statuses]
        for seat, owner in enumerate(self._settled.owners):
            heir = self._heir(owner, live)
            if seat in self._statuses[heir]["held"]:
                continue
            copy = self._settled.ring.successor(owner)
            gone = f"worker {owner} is gone"
            if self._shadows and copy != owner:
                gone = f"worker {owner} and worker {copy}, which had its second copy, are gone"
            self._round = "lost"
            self._lost(f"shard {seat} of {len(self._settled.owners)} of the parameters is lost: {gone}")
            return False
        return True

    def _settle(self) -> None:
        seating = self.seating
        applied = {one: said["applied"] for one, said in self._statuses.items() if said["held"]}
        newest = max(applied.values())
        if any(step < newest - 1 for step in applied.values()):
            self._round = "lost"
            self._lost(f"nodes stand at steps {applied}: more than one apart")
            return
        self._newest = newest
        self._round, self._owing = "settle", set(seating.ring.order)
        said = next(one["said"] for one in self._statuses.values() if one["held"] and one["applied"] == newest)
        for one in seating.ring.order:
            following = seating.ring.successor(one)
            wanted = [*seating.seats_of(following), *(seating.shadowed_by(following) if self._shadows else ())]
            give = [seat for seat in wanted if seat not in self._statuses[following]["held"]]
            word = {"do": "settle", "epoch": self.ring.epoch, "newest": newest, "said": said, "give": give}
            self._send(one, word)

    def _resume(self) -> None:
        self._settled = self.seating
        self._applied = {one: max(self._applied.get(one, 0), self._newest) for one in self.ring.order}
        self._resume_if_transferred()

    @property
    def _has_room(self) -> bool:
        return any(self.seating.owners.count(one) > 1 for one in self.ring.order)

    def _together(self, told: Sequence[Any]) -> Any:
        return list(told)
