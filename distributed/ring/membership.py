"""Who belongs to a ring, and how it goes on when that changes: the coordinator's part of the protocol.

Every change makes a new epoch, in four rounds that only the nodes' answers move on:

1. *reconfigure*: nodes stop, end their links, and say which step they have summed;
2. *roll*: if some have the sum of a step that others lack, it goes from neighbour to neighbour; else nobody has it, and
   the step is computed anew, shared out over the nodes that there are now;
3. *transfer*: a node that joins is given the state by its predecessor;
4. *resume*: all go on with the open step.

A further loss at any point begins the next epoch with round 1. So when work goes on, a step is in the state of every
node or of none. The trainer is told of it once every live node has applied it: from then on no loss can undo it. What
one node had applied alone, and took with it, is computed anew, with the same bits.

The coordinator decides, as for the parameter server, since someone has to know what a broken link does not say: which
of its two ends is gone. No gradient and no state passes through it. No thread and no socket is here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from distributed.ring.messages import Ring

Message = dict[str, Any]


class RingMembership:
    """Members of a ring, as the coordinator sees them.

    Parameters
    ----------
    send: gives a control message to a node: `reconfigure` (with the ring), `roll`, `transfer` (with the number of nodes
        that lack it) or `resume` (with the open step), all with the epoch.
    applied: told of each step once every live node has applied it, with what a node said of it: all say the same.
    lost: called with a sentence where nobody has the state any more.
    seats: of the ring; members beyond them wait until one is lost.
    """

    def __init__(
        self,
        send: Callable[[int, Message], None],
        applied: Callable[[int, Any], None],
        lost: Callable[[str], None],
        seats: int,
    ):
        self._send, self._report, self._lost, self._room = send, applied, lost, seats
        self.ring = Ring(0, ())
        self.open_step = 1
        """The first step that the trainer has not been told of."""
        self._round = ""
        self._newest = 0  # the newest step that any member had summed when the epoch began
        self._statuses: dict[int, Message] = {}
        self._owing: set[int] = set()  # nodes whose answer ends the present round
        self._joining: set[int] = set()  # nodes that wait for the end of a step, or for a seat
        self._stateless: set[int] = set()  # members that have not been given the state yet
        self._applied: dict[int, int] = {}  # by member, the newest step that is in its state
        self._facts: dict[int, dict[int, Any]] = {}  # by member and step that was not reported yet

    @property
    def epoch(self) -> int:
        """The newest; 0 before the run begins."""
        return self.ring.epoch

    @property
    def at_work(self) -> bool:
        """Whether no change is under way."""
        return self._round == "resumed"

    def pending(self) -> str:
        """What a change that is under way waits for, as a clause; empty where none is."""
        nodes = ", ".join(f"worker {number}" for number in sorted(self._owing))
        match self._round:
            case "reconfigure":
                return f"{nodes} to answer in epoch {self.ring.epoch}"
            case "roll":
                return f"{nodes} to be given the sum of a step by a neighbour"
            case "transfer":
                return f"{nodes} to be given the state by a neighbour"
        return ""

    # ------------------------------------------------------------------------------------------------- changes

    def begin(self, numbers: Iterable[int], open_step: int) -> None:
        """Start with nodes that all have the state before `open_step`."""
        members = set(numbers)
        self.open_step = open_step
        self._stateless, self._facts = set(), {}
        self._applied = dict.fromkeys(members, open_step - 1)
        self._change(members)

    def leave(self, *numbers: int) -> None:
        """Go on without nodes that are lost."""
        gone = set(numbers)
        self._joining -= gone
        if gone.isdisjoint(self.ring.order):
            return  # they were none yet
        self._change(set(self.ring.order) - gone)

    def again(self) -> None:
        """Begin a new epoch with the same members: links between some of them have to be made anew."""
        self._change(set(self.ring.order))

    def join(self, *numbers: int) -> None:
        """Take nodes in that have no state yet, at the end of the step that is under way, or with the next change.

        Those for whom there is no seat wait until a member is lost.
        """
        self._joining |= set(numbers)

    # ------------------------------------------------------------------------------------------------- answers

    def on_status(self, number: int, status: Mapping[str, Any]) -> None:
        """Round 1: where a node stands."""
        if self._round != "reconfigure" or status["epoch"] != self.ring.epoch or number not in self._owing:
            return
        self._statuses[number] = dict(status)
        self._owing.discard(number)
        if self._owing:
            return
        order = self.ring.order
        summed = {one: self._statuses[one]["summed"] for one in order if self._statuses[one]["whole"]}
        self._stateless = set(order) - set(summed)
        if not summed:
            self._round = "lost"
            self._lost(f"nobody is left who has the state: nodes {sorted(order)} were still to be given it")
            return
        newest = max(summed.values())
        lacking = {one for one, step in summed.items() if step < newest}
        if any(summed[one] != newest - 1 for one in lacking):
            self._round = "lost"
            self._lost(f"nodes stand at steps {summed}: more than one apart")
            return
        self._newest = newest
        # Those that join stand between others perhaps, and pass the sum on.
        self._hand_on("roll", lacking | self._stateless if lacking else set())
        self._transfer_if_rolled()

    def on_rolled(self, number: int, epoch: int) -> None:
        """Round 2: a node has the newest sum."""
        if self._round == "roll" and epoch == self.ring.epoch:
            self._owing.discard(number)
            self._transfer_if_rolled()

    def on_joined(self, number: int, epoch: int) -> None:
        """Round 3: a node has the state."""
        if self._round == "transfer" and epoch == self.ring.epoch:
            self._owing.discard(number)
            self._stateless.discard(number)
            self._resume_if_transferred()

    def on_applied(self, number: int, step: int, facts: Any) -> None:
        """A node has applied a step, of which it says `facts`."""
        if number not in self.ring.order:
            return
        self._applied[number] = step
        self._facts.setdefault(number, {})[step] = facts
        self._report_applied()

    # ------------------------------------------------------------------------------------------------- rounds

    def _change(self, members: set[int]) -> None:
        spare = sorted(members) + sorted(self._joining - members)
        members, self._joining = set(spare[: self._room]), set(spare[self._room :])
        self._applied = {one: step for one, step in self._applied.items() if one in members}
        self._facts = {one: facts for one, facts in self._facts.items() if one in members}
        if not members:
            self._round = "lost"
            self._lost("all nodes are gone, and the state with them")
            return
        self.ring = Ring(self.ring.epoch + 1, tuple(sorted(members)))
        self._round, self._statuses, self._owing = "reconfigure", {}, set(members)
        for one in self.ring.order:
            self._send(one, {"do": "reconfigure", "ring": self.ring.to_dict()})

    def _hand_on(self, what: str, lacking: set[int]) -> None:
        """Have each node that is followed by nodes that lack something hand it on to them."""
        self._round, self._owing = what, lacking
        for number, nodes in followers(self.ring.order, lacking).items():
            self._send(number, {"do": what, "epoch": self.ring.epoch, "nodes": nodes})

    def _transfer_if_rolled(self) -> None:
        if not self._owing:
            self._hand_on("transfer", set(self._stateless))
            self._resume_if_transferred()

    def _resume_if_transferred(self) -> None:
        if self._owing:
            return
        self._round = "resumed"
        for one in self.ring.order:
            self._send(one, {"do": "resume", "epoch": self.ring.epoch, "open": self._newest + 1})
        self._report_applied()

    def _report_applied(self) -> None:
        """Tell of steps that every live node has applied; at their end, those that wait come in."""
        having = [one for one in self.ring.order if one not in self._stateless and one in self._applied]
        before = self.open_step
        while having and all(self._applied[one] >= self.open_step for one in having):
            told = [self._facts[one][self.open_step] for one in having if self.open_step in self._facts.get(one, {})]
            self.open_step += 1
            self._report(self.open_step - 1, self._together(told))
        for facts in self._facts.values():
            for step in [step for step in facts if step < self.open_step]:
                del facts[step]
        if self.open_step > before and self._joining and self._has_room and self.at_work:
            self._change(set(self.ring.order))

    @property
    def _has_room(self) -> bool:
        """Whether a node that waits can be given something to do."""
        return len(self.ring.order) < self._room

    def _together(self, told: Sequence[Any]) -> Any:
        """What live nodes have said of a step, as one."""
        return told[0]


def followers(order: Sequence[int], lacking: Collection[int]) -> dict[int, int]:
    """By member that does not lack something, how many of its next neighbours do, up to the first that does not."""
    found: dict[int, int] = {}
    for position, number in enumerate(order):
        if number in lacking:
            continue
        nodes = 0
        while nodes < len(order) - 1 and order[(position + 1 + nodes) % len(order)] in lacking:
            nodes += 1
        if nodes:
            found[number] = nodes
    return found
