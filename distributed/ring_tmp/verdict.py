"""How a ring goes on after a change: a pure function of what the nodes that live say of themselves.

Every node computes it from the same words, so no two of them differ. What is decided:

- *who owns what*: a stage goes to the first live node at or behind its owner in the old ring. Where the next node has
  the copy, it has the stage at once; neighbours stay neighbours, so activations have nowhere else to go.
- *roll forward or redo*: a step that somebody has applied is applied by all. They can: it was applied after the prepare
  barrier (`distributed.ring_tmp.scalars`), which nobody passes before every node has all gradients of the step, its own
  and those of the node before it. A step that nobody left has applied is computed anew, with the same bits.
- *which state has to be sent*, so that each stage has its owner and its copy again. All of it goes to a neighbour.
- *whether it is over*: a stage that nobody has any more was on two neighbours, and both are gone. Then only the
  checkpoint of that stage can go on, and with it those of all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Decision


@dataclass(frozen=True)
class Status:
    """Where a node stands when it stops for a change.

    placement: the newest that it has entered.
    applied: the newest step that is in all that it holds; -1 where it was told that a state is lost, and has not loaded
        its checkpoints yet.
    decision: of that step; None where it was loaded.
    holds: stages whose state it has, as their owner or as a copy.
    is_new: it belongs to no ring yet, and has nothing.
    admits: a new node that it has made its successor, and the stages that this one is to take.
    """

    number: int
    placement: Placement
    applied: int
    decision: Decision | None
    holds: tuple[int, ...]
    is_new: bool = False
    admits: tuple[int, tuple[int, ...]] | None = None

    def held_at(self, step: int) -> set[int]:
        """What it has once it has followed to a step: no state for which it has no gradients.

        Such a state is kept only until others are sure to have it, as they are when anybody has applied a step.
        """
        stepped = {*self.placement.stages_of(self.number), *self.placement.shadowed_by(self.number)}
        return set(self.holds) if self.applied == step else set(self.holds) & stepped

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {
            "placement": self.placement.to_dict(),
            "decision": self.decision and self.decision.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Status:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(
            data["number"],
            Placement.from_dict(data["placement"]),
            data["applied"],
            data["decision"] and Decision.from_dict(data["decision"]),
            tuple(data["holds"]),
            data["is_new"],
            data["admits"] and (data["admits"][0], tuple(data["admits"][1])),
        )


class Stream(NamedTuple):
    """A state that has to be sent: of which stage, from which node to which neighbour."""

    stage: int
    source: int
    target: int


@dataclass(frozen=True)
class Verdict:
    """How the ring goes on.

    step: the newest step that anybody left has applied; who has not applies it, by `decision`.
    streams: states to be sent, those that stages' owners need first.
    lost: stages that nobody has; where there are any, the rest means nothing.
    """

    placement: Placement
    step: int
    decision: Decision | None
    streams: tuple[Stream, ...]
    lost: tuple[int, ...]

    def sentence(self, stages: Sequence[str], old: Placement, *, shadows: bool = True) -> str:
        """What is lost, for a person; `stages` are their names, `old` is the placement before."""
        owners = sorted({old.owners[stage] for stage in self.lost})
        if len(self.lost) == len(stages):
            return "a node was lost while others loaded their checkpoints: all load them again"
        names = ", ".join(stages[stage] for stage in self.lost)
        places = f"it was on node {', '.join(map(str, owners))}"
        gone = (
            "and on the next, and both are gone"
            if shadows
            else "alone, which is gone, and without shadows there is no copy"
        )
        return f"nobody has the state of {names} any more: {places} {gone}; back to the checkpoints"


def verdict_of(epoch: int, statuses: Sequence[Status], *, shadows: bool = True) -> Verdict:
    """The way on of those who speak, which are all that live.

    Raises RuntimeError where they are more than a step apart, which no death can bring about.
    """
    old = newest(statuses)
    live = {one.number: one for one in statuses}
    standing = [one.applied for one in statuses if one.number in old.ring.order and not one.is_new]
    step = max(standing)
    placement = _members(epoch, old, statuses)
    if min(standing) < 0:  # some may have loaded theirs: so all do it again
        return Verdict(placement, step, None, (), tuple(range(len(old.owners))))
    if min(standing) < step - 1:
        raise RuntimeError(f"nodes stand at steps {standing}: more than one apart")
    decision = next((one.decision for one in statuses if one.applied == step and one.decision), None)
    held = {number: one.held_at(step) for number, one in live.items()}
    streams, lost = [], []
    for stage, owner in enumerate(placement.owners):
        if stage in held[owner]:
            continue
        neighbours = (placement.ring.predecessor(owner), placement.ring.successor(owner))
        source = next((one for one in neighbours if stage in held[one]), None)
        if source is None:
            lost.append(stage)
        else:
            streams.append(Stream(stage, source, owner))
    if shadows:
        for stage, owner in enumerate(placement.owners):
            shadow = placement.shadow_of(stage)
            if shadow is not None and stage not in held[shadow]:
                streams.append(Stream(stage, owner, shadow))
    return Verdict(placement, step, decision, tuple(streams), tuple(lost))


def newest(statuses: Sequence[Status]) -> Placement:
    """The placement of the newest epoch that any of them has entered."""
    return max((one.placement for one in statuses), key=lambda placement: placement.ring.epoch)


def _members(epoch: int, old: Placement, statuses: Sequence[Status]) -> Placement:
    """Who goes on with what: those that live, and new ones behind those that admit them."""
    order = old.ring.order
    placement = old.without([one.number for one in statuses if one.number in order], epoch)
    there = {one.number for one in statuses}
    for one in statuses:
        if one.admits is not None and one.number in order and one.admits[0] in there - set(order):
            placement = placement.admitting(one.admits[0], one.number, one.admits[1])
    return placement
