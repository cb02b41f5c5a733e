"""What the coordinator of a stage ring knows, and how far nodes may go."""

from __future__ import annotations

from distributed.ring.messages import Ring
from distributed.ring_tmp.grants import Grants
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.view import RingView

FIRST = Placement(Ring(1024, (0, 1, 2)), (0, 1, 2))


def begun() -> RingView:
    view = RingView()
    assert (view.epoch, view.open_step, view.members) == (0, 1, [])
    view.begin(FIRST, 4)
    return view


def test_a_step_is_done_once_every_member_has_applied_it() -> None:
    view = begun()
    assert (view.open_step, view.at_work, view.pending()) == (5, True, "")
    for number in (0, 1):
        view.apply(number, 5)
        assert view.applied == 4
    view.leave(2)  # who is gone is not waited for, but somebody has to take its place
    assert view.applied == 5
    assert not view.at_work


def test_a_change_is_over_when_all_have_what_they_are_to_have() -> None:
    view = begun()
    closed = Placement(Ring(2048, (0, 1)), (0, 1, 0))
    assert view.enter(0, closed, 5) == [2]
    assert view.pending() == "node 1 to go on with the others"
    assert view.enter(1, closed, 5) is None
    assert view.applied == 5
    view.protect(0, 2048)
    assert view.pending() == "node 1 to be sent what it lacks"
    view.protect(1, 2048)
    assert view.at_work
    assert 2 in view.known  # until its link ends
    view.again()
    assert view.epoch == 2048


def test_a_node_that_comes_counts_from_the_step_of_its_state_on() -> None:
    view = begun()
    wider = Placement(Ring(2048, (0, 3, 1, 2)), (3, 1, 2))
    for number in (3, 0, 1, 2):
        assert view.enter(number, wider, 4) == ([] if number == 3 else None)
        view.protect(number, 2048)
    assert view.members == [0, 3, 1, 2]
    assert (view.applied, view.at_work) == (4, True)


def test_nothing_that_was_granted_before_a_step_that_was_not_applied_is_begun() -> None:
    grants = Grants()
    assert grants.take({"after": 0, "through": 5, "rate_scale": 0.5, "probe": 2})
    assert (grants.through, grants.scale(5), grants.is_probed(2)) == (5, 0.5, True)
    grants.refuse(3)
    assert grants.through == 3
    assert not grants.take({"after": 2, "through": 7, "rate_scale": 0.5, "probe": 0})
    assert grants.through == 3
    assert grants.take({"after": 3, "through": 8, "rate_scale": 0.25, "probe": 0})
    assert (grants.through, grants.scale(4)) == (8, 0.25)
    grants.forget(6)
    assert grants.scale(6) == 0.25
