"""Mailbox, placement and executor of a stage ring, word by word."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from distributed.errors import FrameError
from distributed.ring.messages import Ring
from distributed.ring_tmp.executor import Executor, Work, version
from distributed.ring_tmp.mailbox import Key, Mailbox
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.placement import Placement
from distributed.strategy import BatchPlan


def placed(*owners: int) -> Placement:
    return Placement(Ring(1, tuple(dict.fromkeys(owners))), owners)


# --------------------------------------------------------------------------------------------------------- placement


def test_neighbouring_stages_of_a_node_are_one_range_with_the_bound_of_1f1b() -> None:
    ranges = placed(0, 0, 1, 0, 1, 1).ranges
    assert [(one.node, one.start, one.stop, one.limit) for one in ranges] == [
        (0, 0, 2, 4),
        (1, 2, 3, 3),
        (0, 3, 4, 2),
        (1, 4, 6, 1),
    ]
    assert [one.index for one in placed(0, 0, 1, 0, 1, 1).ranges_of(0)] == [2, 0]  # the last first
    assert (ranges[0].is_first, ranges[0].is_last, ranges[3].is_last) == (True, False, True)


def test_activations_cannot_jump_over_a_node() -> None:
    with pytest.raises(ValueError, match="stage 1 on node 2 does not follow stage 0 on node 0"):
        Placement(Ring(1, (0, 1, 2)), (0, 2, 1))
    Placement(Ring(1, (0, 1, 2)), (2, 0, 1))  # a ring has no beginning


def test_a_lost_nodes_stages_go_to_the_next_one_and_copies_follow() -> None:
    before = placed(0, 0, 1, 2, 3)
    assert [before.shadow_of(stage) for stage in range(5)] == [1, 1, 2, 3, 0]
    assert before.shadowed_by(1) == [0, 1]
    after = before.without([0, 1, 3], 7)
    assert (after.ring, after.owners) == (Ring(7, (0, 1, 3)), (0, 0, 1, 3, 3))
    last = before.without([0, 1, 2], 7)
    assert last.owners == (0, 0, 1, 2, 0)  # a looped map
    assert [(one.node, one.start) for one in last.ranges] == [(0, 0), (1, 2), (2, 3), (0, 4)]
    assert before.without([2], 7).owners == (2,) * 5
    assert before.without([2], 7).shadow_of(0) is None
    assert Placement.from_dict(before.to_dict()) == before


# --------------------------------------------------------------------------------------------------------- mailbox


KEY = Key(1, Kind.FORWARD, 2, 0)


def entered(limit: int = 4, epoch: int = 1) -> Mailbox:
    mailbox = Mailbox()
    mailbox.enter(epoch, lambda key: key.stage == 2, limit)
    return mailbox


def test_duplicates_and_strangers_are_refused() -> None:
    mailbox = entered()
    mailbox.put(1, KEY, "payload")
    with pytest.raises(FrameError, match="FORWARD for stage 2, slot 0 of step 1 has come twice"):
        mailbox.put(1, KEY, "payload")
    with pytest.raises(FrameError, match="nobody here waits for BACKWARD for stage 3, slot 0 of step 1"):
        mailbox.put(1, Key(1, Kind.BACKWARD, 3, 0), "payload")
    assert KEY in mailbox
    assert mailbox.take(KEY) == "payload"
    assert KEY not in mailbox
    assert len(mailbox) == 0


def test_it_is_bounded() -> None:
    mailbox = entered(limit=2)
    for slot in range(2):
        mailbox.put(1, KEY._replace(slot=slot), slot)
    with pytest.raises(FrameError, match="slot 2 of step 1 is more than the 2 messages that can wait here"):
        mailbox.put(1, KEY._replace(slot=2), 2)
    mailbox.put(2, KEY, "ahead")
    mailbox.put(2, KEY._replace(slot=1), "ahead")
    with pytest.raises(FrameError, match="more than the 2"):
        mailbox.put(2, KEY._replace(slot=2), "ahead")


def test_messages_of_other_epochs_wait_or_go() -> None:
    mailbox = entered(epoch=5)
    mailbox.put(4, KEY, "old")
    mailbox.put(7, KEY, "ahead")
    mailbox.put(5, KEY, "now")
    assert mailbox.take(KEY) == "now"
    mailbox.close()
    mailbox.put(5, KEY, "too late")
    assert KEY not in mailbox
    mailbox.enter(7, lambda key: True, 4)
    assert mailbox.take(KEY) == "ahead"
    mailbox.put(9, Key(1, Kind.BACKWARD, 3, 0), "a stranger")
    with pytest.raises(FrameError, match="nobody here waits"):
        mailbox.enter(9, lambda key: key.stage == 2, 4)


def test_whoever_waits_is_woken_by_what_comes_and_by_what_came_while_it_looked() -> None:
    mailbox = entered()
    assert not mailbox.wait(0.0)
    mailbox.post("end")
    assert mailbox.events() == ["end"]
    assert not mailbox.wait(0.0)
    mailbox.put(1, KEY, "payload")  # behind `events`, before `wait`
    assert mailbox.wait(0.0)
    assert mailbox.events() == []
    woken = threading.Thread(target=lambda: mailbox.wait(30.0))
    woken.start()
    mailbox.put(1, KEY._replace(slot=1), "payload")
    woken.join(30.0)
    assert not woken.is_alive()


# --------------------------------------------------------------------------------------------------------- executor


def executor(number: int, placement: Placement, slots: int = 3, lag: int = 0, through: int = 2) -> Executor:
    one = Executor(number, placement, BatchPlan(slots), lambda step: [1] * slots, lag, 0)
    one.through = through
    return one


def work(one: Executor, arrived: set[Key], most: int = 20) -> list[tuple[str, int, int]]:
    """What it does until it has to wait: what, range, slot."""
    done = []
    for _ in range(most):
        task = one.next_task(arrived)
        if task is None:
            break
        assert task.range is not None
        done.append((task.work.value[0], task.range.index, task.slot))
        one.done(task)
    return done


def test_the_first_of_three_runs_ahead_by_three_and_goes_back_first() -> None:
    one = executor(0, placed(0, 1, 2), slots=5)
    arrived: set[Key] = set()
    assert work(one, arrived) == [("f", 0, 0), ("f", 0, 1), ("f", 0, 2)]
    arrived.add(Key(1, Kind.BACKWARD, 1, 0))
    assert work(one, arrived) == [("b", 0, 0), ("f", 0, 3)]
    arrived |= {Key(1, Kind.BACKWARD, 1, slot) for slot in (1, 2)}
    assert work(one, arrived) == [("b", 0, 1), ("b", 0, 2), ("f", 0, 4)]
    assert one.completed() == 0
    arrived |= {Key(1, Kind.BACKWARD, 1, slot) for slot in (3, 4)}
    assert work(one, arrived) == [("b", 0, 3), ("b", 0, 4)]  # the next step waits until this one is applied
    assert (one.completed(), one.begun()) == (1, 1)
    one.applied = 1
    assert work(one, arrived) == [("f", 0, 0), ("f", 0, 1), ("f", 0, 2)]
    assert one.begun() == 2


def test_a_later_backward_pass_waits_for_an_earlier_one() -> None:
    """Whatever has come: gradients are added in ascending order."""
    one = executor(0, placed(0, 1))
    assert work(one, set()) == [("f", 0, 0), ("f", 0, 1)]
    assert work(one, {Key(1, Kind.BACKWARD, 1, 1)}) == []
    assert work(one, {Key(1, Kind.BACKWARD, 1, slot) for slot in (1, 0)}) == [("b", 0, 0), ("b", 0, 1), ("f", 0, 2)]


def test_with_two_versions_the_next_step_begins_before_the_last_is_applied() -> None:
    one = executor(0, placed(0), slots=2, lag=1, through=4)
    assert len(work(one, set())) == 8  # two steps of two slots, forward and back
    assert (one.completed(), one.begun()) == (2, 2)
    one.applied = 1
    assert len(work(one, set())) == 4
    assert [version(step, 0) for step in (1, 2, 3, 4)] == [0, 1, 2, 3]
    assert [version(step, 1) for step in (1, 2, 3, 4)] == [0, 0, 1, 2]


def test_a_looped_map_prefers_the_later_range_and_backward_passes() -> None:
    one = executor(0, placed(0, 1, 0, 1), slots=4)
    arrived = {Key(1, Kind.FORWARD, 2, 0)}
    assert work(one, arrived) == [("f", 2, 0), ("f", 0, 0), ("f", 0, 1), ("f", 0, 2), ("f", 0, 3)]
    arrived |= {Key(1, Kind.BACKWARD, 3, 0), Key(1, Kind.FORWARD, 2, 1), Key(1, Kind.BACKWARD, 1, 0)}
    assert work(one, arrived) == [("b", 2, 0), ("b", 0, 0), ("f", 2, 1)]


def test_empty_slots_are_no_micro_batches() -> None:
    one = Executor(0, placed(0), BatchPlan(4, 2), lambda step: [5, 0, 0, 1], 0, 0)
    one.through = 1
    assert work(one, set()) == [("f", 0, 0), ("b", 0, 0), ("f", 0, 3), ("b", 0, 3)]


def test_it_expects_what_neighbours_may_send_and_nothing_else() -> None:
    one = executor(1, placed(0, 1, 2))
    forward, backward = Key(1, Kind.FORWARD, 1, 0), Key(1, Kind.BACKWARD, 2, 0)
    assert one.expects(forward)
    assert not one.expects(backward)  # it has put nothing out
    assert one.expects(forward._replace(step=2))
    for stranger in (
        forward._replace(step=0),
        forward._replace(step=3),
        forward._replace(slot=3),
        forward._replace(stage=2),
        backward._replace(stage=1),
    ):
        assert not one.expects(stranger)
    assert work(one, {forward}) == [("f", 1, 0)]
    assert not one.expects(forward)  # it was used
    assert one.expects(backward)
    assert not one.expects(backward._replace(slot=1))
    assert work(one, {backward}) == [("b", 1, 0)]
    assert not one.expects(backward)
    assert one.limit == 3 + 2


@pytest.mark.parametrize("owners", [(0, 1, 2, 3), (0, 1, 0, 1), (0, 1, 2, 0), (0, 0, 1, 1)], ids=str)
@pytest.mark.parametrize("lag", [0, 1])
def test_no_order_of_messages_breaks_a_bound_or_an_order_or_stops_it(owners: tuple[int, ...], lag: int) -> None:
    """With nothing but executors, and mailboxes that refuse what is one too many."""
    placement = placed(*owners)
    nodes = sorted(set(owners))
    for seed in range(6):
        pick = random.Random(seed)
        executors = {node: executor(node, placement, 5, lag, 3) for node in nodes}
        boxes = {node: Mailbox() for node in nodes}
        for node, box in boxes.items():
            box.enter(1, executors[node].expects, executors[node].limit)
        under_way: list[tuple[int, Key]] = []
        backward: dict[int, list[tuple[int, int]]] = {one.index: [] for one in placement.ranges}
        while True:
            complete = min(one.completed() for one in executors.values())
            behind = [one for one in executors.values() if one.applied < complete]
            ready = [node for node in nodes if executors[node].next_task(boxes[node]) is not None]
            moves: list[Any] = [*behind, *ready, *([under_way] if under_way else [])]
            if not moves:
                break
            move = pick.choice(moves)
            if isinstance(move, Executor):
                move.applied += 1
            elif isinstance(move, list):
                to, key = move.pop(pick.randrange(len(move)))
                boxes[to].put(1, key, None)
            else:
                task = executors[move].next_task(boxes[move])
                assert task is not None
                assert task.range is not None
                if task.key is not None:
                    boxes[move].take(task.key)
                executors[move].done(task)
                assert 0 <= executors[move].in_flight(task.range.index) <= task.range.limit
                if task.work is Work.BACKWARD:
                    backward[task.range.index].append((task.step, task.slot))
                    if not task.range.is_first:
                        key = Key(task.step, Kind.BACKWARD, task.range.start, task.slot)
                        under_way.append((owners[task.range.start - 1], key))
                elif not task.range.is_last:
                    key = Key(task.step, Kind.FORWARD, task.range.stop, task.slot)
                    under_way.append((owners[task.range.stop], key))
        assert all(one.applied == 3 for one in executors.values())
        everything = [(step, slot) for step in (1, 2, 3) for slot in range(5)]
        assert all(order == everything for order in backward.values())
