"""Who hangs: notes of threads, and the judgement on what they say when they are asked."""

from __future__ import annotations

import contextlib
import pdb
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from distributed.progress import Progress
from distributed.watchdog import FIRST, LONGEST, Watchdog


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def said(moves: int, works: bool = True, **more: Any) -> dict[str, Any]:
    what = "forward pass of step 3" if works else "the parameters of step 2"
    return {"name": "compute", "what": what, "works": works, "moves": moves, "finished": 1, "longest": 0.0,
            "traced": False, "where": "here"} | more  # fmt: skip


class Watched:
    """A watchdog of 60 seconds, and members that answer whenever they are asked."""

    def __init__(self, *members: str):
        self.clock, self.members = Clock(), list(members)
        self.dog: Watchdog[str] = Watchdog(60.0, lambda member: member[:-1], self.clock)

    def pass_time(self, seconds: float, **threads: dict[str, Any]) -> None:
        """So many seconds, in which everybody who is named says the same whenever it is asked."""
        end = self.clock.seconds + seconds
        while self.clock.seconds < end:
            self.clock.seconds += min(self.dog.interval, end - self.clock.seconds)
            for member in self.dog.due(self.members):
                if member in threads:
                    self.dog.heard(member, [threads[member]])


def test_a_thread_that_does_not_stir_at_its_work_hangs() -> None:
    watched = Watched("worker0", "worker1")
    watched.pass_time(62.0, worker0=said(7), worker1=said(4, works=False))
    assert watched.dog.hung() == {}
    watched.pass_time(3.0, worker0=said(7), worker1=said(4, works=False))
    assert watched.dog.hung() == {"worker0": "has been at the forward pass of step 3 for 62 s: here"}
    watched.pass_time(3.0, worker0=said(8), worker1=said(4, works=False))
    assert watched.dog.hung() == {}


def test_who_is_gone_hangs_no_more() -> None:
    watched = Watched("worker0", "worker1")
    watched.pass_time(70.0, worker0=said(7), worker1=said(7))
    assert watched.dog.hung().keys() == {"worker0", "worker1"}
    watched.dog.forget("worker0")
    assert watched.dog.hung().keys() == {"worker1"}


@pytest.mark.parametrize(
    ("more", "limit"),
    [
        ({"finished": 0}, FIRST * 60.0),  # libraries are loaded, kernels compiled
        ({"longest": 30.0}, LONGEST * 30.0),  # it is known that pieces take long
        ({"finished": 0, "longest": 30.0}, FIRST * LONGEST * 30.0),
        ({"traced": True}, 1e9),  # somebody looks at it with a debugger
    ],
)
def test_what_may_take_long_is_given_time(more: dict[str, Any], limit: float) -> None:
    watched = Watched("worker0")
    watched.pass_time(min(limit, 5000.0), worker0=said(7, **more))
    assert watched.dog.hung() == {}
    watched.pass_time(2 * watched.dog.interval + 1, worker0=said(7, **more))
    assert bool(watched.dog.hung()) == (limit < 1e9)


def test_processes_of_one_role_know_how_long_its_work_takes() -> None:
    watched = Watched("worker0", "worker1", "server0")
    watched.pass_time(100.0, worker0=said(1), worker1=said(1, works=False, longest=20.0), server0=said(1))
    assert list(watched.dog.hung()) == ["server0"]


def test_time_in_which_the_coordinator_stood_still_is_nobodys() -> None:
    watched = Watched("worker0", "worker1")
    watched.pass_time(50.0, worker0=said(7))
    watched.clock.seconds += 3600.0
    watched.pass_time(6.0, worker0=said(7))
    assert watched.dog.hung() == {}


def test_who_does_not_answer_hangs_too() -> None:
    watched = Watched("worker0", "worker1")
    watched.pass_time(70.0, worker0=said(7, works=False))
    assert watched.dog.hung() == {"worker1": "has not answered for 66 s, though its link lives"}
    watched.members.remove("worker1")
    watched.pass_time(3.0, worker0=said(7, works=False))
    assert watched.dog.hung() == {}


def test_all_who_wait_for_each_other_are_a_deadlock() -> None:
    watched = Watched("worker0", "server0")
    idle = said(7, works=False)
    watched.pass_time(70.0, worker0=idle, server0=said(9, works=False, what="messages of step 3"))
    watched.dog.waits()  # a trainer that has decoded for an hour asks for the next step
    watched.pass_time(40.0, worker0=idle, server0=said(9, works=False, what="messages of step 3"))
    assert watched.dog.deadlock() is None
    watched.pass_time(30.0, worker0=idle, server0=said(9, works=False, what="messages of step 3"))
    assert watched.dog.deadlock() == "server0 waits for messages of step 3, worker0 waits for the parameters of step 2"
    watched.pass_time(3.0, worker0=said(8), server0=said(9, works=False))
    assert watched.dog.deadlock() is None  # somebody works


def test_without_a_limit_nobody_is_asked() -> None:
    dog: Watchdog[str] = Watchdog(0.0)
    assert (dog.due(["worker0"]), dog.hung(), dog.deadlock()) == ([], {}, None)


@contextlib.contextmanager
def at_work(progress: Progress) -> Iterator[None]:
    """A thread that begins a piece of work and stays in it."""
    began, may_end = threading.Event(), threading.Event()

    def stay_here() -> None:
        progress.wait("the parameters", 4)
        progress.work("forward pass", 5)
        began.set()
        may_end.wait()
        progress.work("forward pass", 5)

    thread = threading.Thread(target=stay_here)
    thread.start()
    began.wait()
    yield
    may_end.set()
    thread.join()


def test_a_pulse_says_what_a_thread_is_at_and_where() -> None:
    progress = Progress("compute")
    assert (progress.pulse()["works"], progress.pulse()["where"]) == (False, "")
    with at_work(progress):
        pulse = progress.pulse()
        assert (pulse["what"], pulse["works"], pulse["moves"], pulse["finished"]) == (
            "forward pass of step 5", True, 2, 0
        )  # fmt: skip
        assert "stay_here (test_watchdog.py:" in pulse["where"]
        assert not pulse["traced"]
    assert (progress.pulse()["moves"], progress.pulse()["finished"]) == (3, 1)
    assert progress.pulse()["longest"] > 0.0


def test_a_thread_at_a_breakpoint_is_not_taken_for_one_that_hangs() -> None:
    progress, pulses = Progress("compute"), []

    class Person(pdb.Pdb):
        def interaction(self, *_: Any) -> None:
            pulses.append(progress.pulse())  # while the debugger waits for a word

    progress.work("forward pass", 5)
    person = Person(nosigint=True)
    person.runcall(lambda: None)
    assert pulses
    assert all(pulse["traced"] for pulse in pulses)
    assert not progress.pulse()["traced"]
