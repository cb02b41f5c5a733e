"""Walks and verdicts of a stage ring, word by word; `test_stage_ring_deaths` has them in every order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distributed.ring.messages import Ring
from distributed.ring_tmp.membership import Answer, Hello, RingMembership
from distributed.ring_tmp.messages import Kind, Message
from distributed.ring_tmp.placement import Placement, newcomer
from distributed.ring_tmp.scalars import Decision
from distributed.ring_tmp.verdict import Status, Stream, Verdict, verdict_of
from distributed.ring_tmp.walk import NODES_LIMIT

RING = Placement(Ring(1, (0, 1, 2, 3)), (0, 0, 1, 2, 3))
HELD = {0: (0, 1, 4), 1: (0, 1, 2), 2: (2, 3), 3: (3, 4)}  # own stages, and those of the node before


def said(number: int, applied: int = 5, **changes: Any) -> Status:
    facts: dict[str, Any] = {"placement": RING, "decision": decision(applied), "holds": HELD.get(number, ())} | changes
    return Status(number=number, applied=applied, **facts)


def decision(step: int) -> Decision:
    return Decision(step, norm=0.1 * step, loss=1 / 3, target_tokens=7, source_tokens=6)


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_a_copy_takes_the_place_of_its_stage_and_copies_are_made_anew() -> None:
    found = verdict_of(9, [said(0), said(2), said(3)])
    assert found.placement == Placement(Ring(9, (0, 2, 3)), (0, 0, 2, 2, 3))
    assert (found.step, found.lost) == (5, ())
    assert set(found.streams) == {Stream(0, 0, 2), Stream(1, 0, 2), Stream(2, 2, 3)}
    assert verdict_of(9, [said(0), said(2), said(3)], shadows=False).streams == ()


def test_two_neighbours_take_a_stage_with_them_and_two_others_do_not() -> None:
    assert verdict_of(9, [said(0), said(2)]).lost == ()
    found = verdict_of(9, [said(0), said(3)])
    assert found.lost == (2,)
    assert found.sentence("abcde", RING) == (
        "nobody has the state of c any more: it was on node 1 and on the next, and both are gone; back to the "
        "checkpoints"
    )


def test_whoever_is_behind_follows_by_the_decision_of_one_that_is_not() -> None:
    found = verdict_of(9, [said(0, 4), said(1), said(2, 4), said(3)])
    assert (found.step, found.decision) == (5, decision(5))
    assert verdict_of(9, [said(0, 5, decision=None), said(1), said(2), said(3)]).decision == decision(5)
    assert verdict_of(9, [said(one, 5, decision=None) for one in range(4)]).decision is None
    with pytest.raises(RuntimeError, match=r"nodes stand at steps \[5, 3, 5\]: more than one apart"):
        verdict_of(9, [said(0), said(1, 3), said(2)])


def test_what_a_node_cannot_step_does_not_count_once_it_follows() -> None:
    """Node 2 still has a state that others were given to keep; without its gradient it goes when node 2 follows."""
    words = [said(0, holds=(0, 1)), said(1)]
    assert verdict_of(9, [*words, said(2, holds=(2, 3, 4))]).streams[0] == Stream(4, 2, 0)  # of node 3, which is gone
    assert verdict_of(9, [*words, said(2, 4, holds=(2, 3, 4))]).lost == (4,)


def test_the_newest_ring_counts_that_anybody_has_entered() -> None:
    newer = Placement(Ring(7, (0, 9, 1, 2, 3)), (0, 9, 1, 2, 3))
    found = verdict_of(9, [said(0), said(1, placement=newer), said(2), said(3)])
    assert found.placement.owners == (0, 1, 1, 2, 3)  # node 9, which is gone, is followed by node 1
    joined = said(9, 0, holds=(), is_new=True, placement=newcomer(9, 5))
    again = verdict_of(9, [said(0), joined, said(1, placement=newer), said(2), said(3)])
    assert again.placement.owners == (0, 9, 1, 2, 3)
    assert again.step == 5  # what a new node has applied does not count
    assert again.streams[0] == Stream(1, 0, 9)


def test_a_node_is_admitted_with_its_stages_behind_the_one_that_admits_it() -> None:
    joined = said(9, 0, holds=(), is_new=True, placement=newcomer(9, 5))
    words = [said(0, admits=(9, (1,))), joined, said(1), said(2), said(3)]
    found = verdict_of(9, words)
    assert found.placement == Placement(Ring(9, (0, 9, 1, 2, 3)), (0, 9, 1, 2, 3))
    assert found.streams == (Stream(1, 0, 9), Stream(0, 0, 9))  # node 1 has the copy of stage 1 already
    assert verdict_of(9, [words[0], *words[2:]]).placement.ring.order == (0, 1, 2, 3)  # it was lost before
    assert verdict_of(9, words[1:]).placement.ring.order == (1, 2, 3)  # who admits it was


def test_where_one_waits_for_checkpoints_all_load_them_again() -> None:
    found = verdict_of(9, [said(0, 2), said(1, -1, holds=()), said(3, -1, holds=())])
    assert found.lost == (0, 1, 2, 3, 4)
    assert found.sentence("abcde", RING).startswith("a node was lost while others loaded their checkpoints")


def test_a_status_arrives_as_it_was_said() -> None:
    for one in (said(2, admits=(9, (1, 2))), said(0, 0, decision=None, is_new=True)):
        assert Status.from_dict(json.loads(json.dumps(one.to_dict()))) == one


# ------------------------------------------------------------------------------------------------------------- walks


class Desk:
    """Node and network of a membership, on paper."""

    def __init__(self, number: int, placement: Placement = RING):
        self.number, self.status = number, said(number)
        if not placement.ring.epoch:
            self.status = said(number, 0, holds=(), is_new=True, placement=placement)
        self.dials: list[tuple[int, Hello]] = []
        self.sent: list[Message] = []
        self.entered: list[Verdict] = []
        self.is_fenced = False
        self.dropped = 0
        self.member = RingMembership(number, placement, self, self)

    def freeze(self) -> Status:
        return self.status

    def enter(self, verdict: Verdict) -> None:
        self.entered.append(verdict)

    def lost(self, verdict: Verdict, old: Placement) -> None:
        raise AssertionError("nothing was lost")

    def fenced(self) -> None:
        self.is_fenced = True

    def dial(self, number: int, hello: Hello) -> None:
        self.dials.append((number, hello))

    def to_successor(self, message: Message) -> None:
        self.sent.append(json_journey(message))

    def drop_predecessor(self) -> None:
        self.dropped += 1

    def dialled(self) -> list[int]:
        numbers, self.dials = [number for number, _ in self.dials], []
        return numbers

    def words(self) -> list[tuple[str, int, list[int]]]:
        """What was sent: kind, epoch, who has spoken."""
        sent, self.sent = self.sent, []
        return [(one.kind.name, one.epoch, [s["number"] for s in one.payload["statuses"]]) for one in sent]


def json_journey(message: Message) -> Message:
    return message._replace(payload=json.loads(json.dumps(message.payload)))


def walk(epoch: int, *statuses: Status, gone: tuple[int, ...] = (), kind: Kind = Kind.WALK) -> Message:
    return Message(kind, epoch, payload={"gone": list(gone), "statuses": [one.to_dict() for one in statuses]})


def epoch_of(count: int, origin: int) -> int:
    return count * NODES_LIMIT + origin


def test_a_lost_successor_is_passed_over_and_a_walk_comes_back_with_all_who_live() -> None:
    one = Desk(0)
    one.member.successor_lost()
    assert one.dialled() == [1]
    assert one.words() == []  # to nobody yet
    one.member.refused(1, None)
    assert one.dials[0] == (2, Hello(0, (1,), 1))
    one.member.linked()
    mine = epoch_of(1, 0)
    assert one.words() == [("WALK", mine, [0])]
    assert not one.member.at_work
    one.member.receive(walk(mine, said(0), said(2), said(3), gone=(1,)))
    assert one.words() == [("VERDICT", mine, [0, 2, 3])]
    assert one.entered[0].placement.ring == Ring(mine, (0, 2, 3))
    assert one.member.at_work
    one.member.receive(walk(mine, said(0), said(2), said(3), gone=(1,), kind=Kind.VERDICT))
    assert len(one.entered) == 1


def test_a_node_adds_its_word_goes_on_with_the_verdict_and_the_last_one_keeps_it() -> None:
    for number, passes in ((2, True), (3, False)):
        one = Desk(number)
        theirs = epoch_of(1, 0)
        one.member.receive(walk(theirs, said(0), gone=(1,)))
        assert one.words() == [("WALK", theirs, [0, number])]
        one.member.receive(walk(theirs, said(0), said(2), said(3), gone=(1,), kind=Kind.VERDICT))
        assert [word[0] for word in one.words()] == ["VERDICT"] * passes
        assert one.entered[0].placement.ring.order == (0, 2, 3)
        assert one.member.gone == {1}


def test_the_highest_walk_counts() -> None:
    one = Desk(2)
    high, low = epoch_of(4, 1), epoch_of(3, 3)
    one.member.receive(walk(high, said(1)))
    one.member.receive(walk(low, said(3)))
    assert one.words() == [("WALK", high, [1, 2])]
    one.member.receive(walk(low, said(3), said(2), kind=Kind.VERDICT))
    assert one.entered == []
    one.member.successor_lost()
    assert one.dialled() == [3]
    higher = epoch_of(6, 0)
    one.member.receive(walk(higher, said(0), said(1)))
    one.member.linked()
    assert one.words() == [("WALK", higher, [0, 1, 2])]  # its own is forgotten


def test_a_walk_whose_beginner_is_gone_is_begun_anew() -> None:
    one = Desk(2)
    one.member.receive(walk(epoch_of(4, 1), said(1)))
    one.words()
    one.member.receive(walk(epoch_of(3, 3), said(3), gone=(1,)))  # lower, and tells that 1 is gone
    assert one.words() == [("WALK", epoch_of(5, 2), [2])]

    one = Desk(2)
    one.member.receive(walk(epoch_of(4, 1), said(1), gone=(1,)))
    assert one.words() == [("WALK", epoch_of(5, 2), [2])]

    one = Desk(2)
    for statuses in ([said(1)], [said(1), said(2), said(3), said(0)]):  # it has gone round
        one.member.receive(walk(epoch_of(4, 1), *statuses))
    assert one.words() == [("WALK", epoch_of(4, 1), [1, 2]), ("WALK", epoch_of(5, 2), [2])]


def test_who_is_gone_is_sent_away_and_ends() -> None:
    one = Desk(2)
    one.member.receive(walk(epoch_of(4, 0), said(0), gone=(1,)))
    assert one.member.dialled(Hello(1, (), 1)) == Answer(False, is_gone=True)
    sleeper = Desk(1)
    sleeper.member.successor_lost()
    sleeper.member.refused(2, Answer(False, is_gone=True))
    assert sleeper.is_fenced
    for told in (
        lambda two: two.member.dialled(Hello(0, (1,), 1)),
        lambda two: two.member.receive(walk(9000, said(0), gone=(1,))),
    ):
        two = Desk(1)
        told(two)
        assert two.is_fenced
        two.member.successor_lost()
        assert two.dialled() == []


def test_the_last_one_goes_on_alone() -> None:
    one = Desk(3, Placement(Ring(1, (2, 3)), (2, 2, 2, 3, 3)))
    one.status = said(3, placement=one.member.placement, holds=(0, 1, 2, 3, 4))
    one.member.successor_lost()
    one.member.refused(2, None)
    assert one.entered[0].placement == Placement(Ring(epoch_of(1, 3), (3,)), (3,) * 5)
    assert one.member.dialled(Hello(7, (), 1)) == Answer(False, is_gone=True)  # of a ring that is older, and unknown
    one.member.receive(walk(epoch_of(9, 7), said(7)))  # let in before
    assert one.dropped == 1
    assert one.member.at_work


def test_who_was_alone_looks_for_members_of_a_newer_ring_that_it_did_not_know() -> None:
    one = Desk(0)
    one.member.successor_lost()
    for number in (1, 2):
        one.member.refused(number, None)
    assert one.dialled() == [1, 2, 3]
    newer = Placement(Ring(epoch_of(1, 2), (0, 9, 1, 2, 3)), (0, 9, 1, 2, 3))
    one.member.receive(walk(epoch_of(6, 9), said(9, placement=newer)))
    one.member.refused(3, None)
    assert one.dialled() == [9]


def test_a_new_node_is_dialled_and_passes_the_walk_on() -> None:
    host, new = Desk(0), Desk(9, newcomer(9, 5))
    assert host.member.admit(9, [1])
    assert not host.member.admit(8, [1])  # a change is under way
    assert host.dialled() == [9]
    assert new.member.dialled(Hello(0, (), 1)).is_accepted
    host.member.linked()
    new.member.receive(host.sent[0])
    assert new.dials == [(1, Hello(9, (), 0, after=0))]
    new.member.linked()
    assert new.words() == [("WALK", epoch_of(1, 0), [0, 9])]
    host.member.receive(walk(epoch_of(1, 0), said(0, admits=(9, (1,))), new.status, said(1), said(2), said(3)))
    assert host.entered[0].placement.owners == (0, 9, 1, 2, 3)
    assert host.member.admit(8, [0]) is True


def test_a_new_node_goes_when_who_admitted_it_is_lost() -> None:
    behind = Desk(1)
    assert behind.member.dialled(Hello(9, (), 0, after=0)).is_accepted
    assert behind.member.dialled(Hello(3, (0,), 1)).is_accepted  # node 0 is gone, and node 3 knows of no new one
    assert behind.member.dialled(Hello(9, (), 0, after=0)) == Answer(False, is_gone=True)

    late = Desk(1)
    assert late.member.dialled(Hello(3, (0,), 1)).is_accepted
    assert late.member.dialled(Hello(9, (), 0, after=0)) == Answer(False, is_gone=True)

    waits = Desk(1)
    waits.member.dialled(Hello(9, (), 0, after=0))
    waits.member.receive(walk(epoch_of(2, 3), said(3), gone=(0,)))
    waits.member.receive(walk(epoch_of(2, 3), said(3), said(1), said(2), gone=(0,), kind=Kind.VERDICT))
    assert waits.dropped == 1
    assert waits.member.gone == {0, 9}

    alone = Desk(9, newcomer(9, 5))
    alone.member.successor_lost()
    assert alone.is_fenced


def test_a_node_that_missed_a_verdict_is_told_whom_to_dial() -> None:
    one = Desk(1)
    newer = Placement(Ring(epoch_of(1, 0), (0, 9, 1, 2, 3)), (0, 9, 1, 2, 3))
    joined = said(9, 0, holds=(), is_new=True, placement=newcomer(9, 5))
    words = [said(0, admits=(9, (1,))), joined, said(1), said(2), said(3)]
    one.member.receive(walk(epoch_of(1, 0), *words[:2]))
    one.member.receive(walk(epoch_of(1, 0), *words, kind=Kind.VERDICT))
    assert one.member.placement == newer
    assert one.member.dialled(Hello(3, (0,), 1)) == Answer(False, instead=9)
    assert one.member.dialled(Hello(3, (0, 9), 1)).is_accepted
    caller = Desk(3)
    caller.member.successor_lost()
    caller.member.refused(0, None)
    caller.member.refused(1, Answer(False, instead=9))
    assert caller.dialled() == [0, 1, 9]
