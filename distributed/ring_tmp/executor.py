"""What a node of the stage ring does next: a state machine that looks at what has come, and at nothing else.

Every node decides alone. A task fires when its messages are here, a range's backward passes before its forward ones,
later ranges before earlier ones. No process tells another when to begin, and one forward one backward (1F1B; Narayanan
et al. 2019) comes about by itself: a range lets at most `StageRange.limit` micro-batches forward that are not back yet.

Two schedules, which differ in one number, `lag`:

    version that step t uses        flush (lag 0)   W(t-1)     async (lag 1)   W(max(t-2, 0))
    step t may begin here once      step t-1        is applied here            step t-2 is
    the update of step t            W(t) = W(t-1) - rate * direction(gradient of step t at the version above)

W(t) are the parameters after t updates. *Every* micro-batch of step t uses that version, forward and backward, on every
node. So flush is exact, and async has a staleness of one step exactly, on every stage, from step 2 on (PipeDream-2BW;
Narayanan et al. 2021): two versions are kept, W(t-1) and W(t) once step t is applied, and writing W(t) to the place of
W(t-2) is safe, since a step is applied here only after all its backward passes here, and no later step uses W(t-2).

Why the bits are those of one process
-------------------------------------
A range has two counters, of the micro-batches that have gone forward and back. `next_task` offers a range no backward
pass but that of its counter, and `done` moves it by one: so backward passes of a range come in ascending order of
(step, slot), *whatever the order in which messages come*, and a later one that could run waits. Hence gradients are
added in ascending order inside a group, a group is complete before the next begins, and groups complete from left to
right, which is how `PairwiseSum` wants them. A stage belongs to one range, so this holds for every parameter.

Why it never hangs: look at the first micro-batch, in ascending order, that is not yet back everywhere. Nothing older is
in flight, so no limit holds it, and the messages for its next task come from tasks of its own that are done.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from distributed.ring_tmp.mailbox import Key
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.placement import Placement, StageRange
from distributed.strategy import BatchPlan

LAGS = {"flush": 0, "async": 1}
"""By `distribution.schedule`."""


def version(step: int, lag: int) -> int:
    """Which parameters the micro-batches of a step use: those after so many updates."""
    return max(step - 1 - lag, 0)


class Work(Enum):
    """What a task is."""

    FORWARD = "forward"
    BACKWARD = "backward"
    APPLY = "apply"


@dataclass(frozen=True)
class Task:
    """What to do next.

    range: which stages; None for an update, which concerns all that the node holds.
    slot: which micro-batch.
    version: of the parameters to be used, see `version`; for an update, the one that it makes.
    """

    work: Work
    step: int
    range: StageRange | None = None
    slot: int = 0
    version: int = 0

    @property
    def key(self) -> Key | None:
        """The message that has to be here; None where nothing comes from another range."""
        assert self.range is not None
        if self.work is Work.FORWARD:
            return None if self.range.is_first else Key(self.step, Kind.FORWARD, self.range.start, self.slot)
        return None if self.range.is_last else Key(self.step, Kind.BACKWARD, self.range.stop, self.slot)


@dataclass(frozen=True)
class _Position:
    """The next micro-batch of a range: the slot at `index` of those of `step` that are not empty.

    It never changes, another takes its place: threads that receive look at it while the node works (`expects`).
    """

    step: int
    index: int = 0
    passed: int = 0  # micro-batches before it, in all


class Executor:
    """The forward and backward passes of one node.

    Parameters
    ----------
    number: which node.
    placement: who runs what.
    plan: how a step is cut.
    tokens: of each slot of a step; empty slots are no micro-batches.
    lag: see the module.
    applied: the newest step that is in the node's state.
    """

    def __init__(
        self,
        number: int,
        placement: Placement,
        plan: BatchPlan,
        tokens: Callable[[int], Sequence[int]],
        lag: int,
        applied: int,
    ):
        self.number, self.placement, self.plan, self.lag = number, placement, plan, lag
        self.applied = applied
        self.through = applied
        """The last step that may begin."""
        self.ranges = placement.ranges_of(number)
        self._tokens = tokens
        self._slots: dict[int, list[int]] = {}
        self._forward = {one.index: _Position(applied + 1) for one in self.ranges}
        self._backward = {one.index: _Position(applied + 1) for one in self.ranges}

    @property
    def limit(self) -> int:
        """The most messages that can wait for this node: what its neighbours may have sent, and not had back."""
        ranges = self.placement.ranges
        before = sum(ranges[one.index - 1].limit for one in self.ranges if not one.is_first)
        return before + sum(one.limit for one in self.ranges if not one.is_last)

    def in_flight(self, index: int) -> int:
        """Micro-batches that went forward through a range and have not come back."""
        return self._forward[index].passed - self._backward[index].passed

    def completed(self) -> int:
        """The newest step whose gradients are complete on all ranges of this node."""
        return min((one.step - 1 for one in self._backward.values()), default=self.through)

    def begun(self) -> int:
        """The newest step of which a micro-batch has gone forward here, or the newest applied one."""
        return max([self.applied, *(one.step - (one.index == 0) for one in self._forward.values())])

    def hold(self) -> bool:
        """Begin no step that is not begun, until `through` is set again; returns whether none is open.

        With lag 1 a step begins before the last one is applied, so no moment is between two steps unless it is waited
        for in this way.
        """
        self.through = self.begun()
        return self.through == self.applied

    def slots(self, step: int) -> list[int]:
        """The micro-batches of a step: its slots that are not empty."""
        known = self._slots  # which is replaced and never changed, as positions are
        if step not in known:
            slots = [slot for slot, tokens in enumerate(self._tokens(step)) if tokens]
            known = self._slots = {old: some for old, some in known.items() if old >= self.applied} | {step: slots}
        return known[step]

    def next_task(self, arrived: Container[Key]) -> Task | None:
        """What can be done now, given the messages that have arrived; None: wait for more."""
        self._leave_empty_steps()
        for one in self.ranges:
            if not self.in_flight(one.index):
                continue
            task = self._task(Work.BACKWARD, one, self._backward[one.index])
            if task.key is None or task.key in arrived:
                return task
        for one in self.ranges:
            position = self._forward[one.index]
            if position.step > min(self.through, self.applied + 1 + self.lag) or self.in_flight(one.index) >= one.limit:
                continue
            task = self._task(Work.FORWARD, one, position)
            if task.key is None or task.key in arrived:
                return task
        return None

    def done(self, task: Task) -> bool:
        """Note that a pass is done; True where it was the last of its range in the step."""
        assert task.range is not None
        positions = self._forward if task.work is Work.FORWARD else self._backward
        position = positions[task.range.index]
        is_last = position.index + 1 == len(self.slots(task.step))
        step, index = (task.step + 1, 0) if is_last else (task.step, position.index + 1)
        positions[task.range.index] = _Position(step, index, position.passed + 1)
        return is_last

    def expects(self, key: Key) -> bool:
        """Whether a message can come from a neighbour that keeps to the rules, and is still needed.

        A neighbour may have applied one step more than this node, and begun what it may begin then.
        """
        if not self.applied < key.step <= self.applied + 2 + self.lag or key.slot not in self.slots(key.step):
            return False
        at = (key.step, key.slot)
        for one in self.ranges:
            if key.kind == Kind.FORWARD and key.stage == one.start and not one.is_first:
                return at >= self._at(self._forward[one.index])
            if key.kind == Kind.BACKWARD and key.stage == one.stop and not one.is_last:
                return self._at(self._backward[one.index]) <= at < self._at(self._forward[one.index])
        return False

    def _leave_empty_steps(self) -> None:
        """Go on behind steps of which there is nothing to compute: of several rings one may have none of the slots."""
        last = min(self.through, self.applied + 1 + self.lag)
        for positions in (self._forward, self._backward):
            for index, position in positions.items():
                step = position.step
                while step <= last and not self.slots(step):
                    step += 1
                if step > position.step:
                    positions[index] = replace(position, step=step)

    def _at(self, position: _Position) -> tuple[int, int]:
        slots = self.slots(position.step)
        return position.step, slots[position.index] if slots else 0

    def _task(self, work: Work, one: StageRange, position: _Position) -> Task:
        slot = self.slots(position.step)[position.index]
        return Task(work, position.step, one, slot, version(position.step, self.lag))
