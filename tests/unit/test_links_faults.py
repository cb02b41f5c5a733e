"""Injected failures: their specification, and what links make of them. Signals are tested with processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from link_examples import SECONDS, link_pair

from distributed.errors import DistributedError, FrameError, LinkClosed
from distributed.links import faults
from distributed.links.faults import Fault, Faults
from distributed.links.frames import Frame
from distributed.links.link import LinkOptions
from distributed.links.shared_memory import SharedArena


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill@server1.apply:5", Fault("kill", "server", 1, "apply", 5)),
        ("stop@worker0.push:3", Fault("stop", "worker", 0, "push", 3)),
        ("drop@worker12.push:4", Fault("drop", "worker", 12, "push", 4)),
        ("delay@server0.reply:7:0.5", Fault("delay", "server", 0, "reply", 7, 0.5)),
        ("pause@worker1.forward:7:1", Fault("pause", "worker", 1, "forward", 7, 1.0)),
        ("corrupt@coordinator0.mid_plan:0", Fault("corrupt", "coordinator", 0, "mid_plan", 0)),
    ],
)
def test_specifications(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kill",
        "maim@server1.apply:5",
        "kill@server.apply:5",
        "kill@server1:5",
        "kill@server1.apply",
        "kill@1.apply:5",
        "kill@server1.apply:-5",
        "delay@server0.reply:7:1.2.3",
        "kill@server1.apply:5 ",
    ],
)
def test_what_is_no_fault(text: str) -> None:
    with pytest.raises(DistributedError, match=r"is not a fault; allowed: kill@<role><id>\.<phase>:<step>") as caught:
        Fault.parse(text)
    assert caught.value.where == "distribution.faults"


@pytest.mark.parametrize("text", ["kill@server1.apply:5:1", "delay@server1.apply:5", "pause@server1.apply:5"])
def test_seconds_belong_to_delays(text: str) -> None:
    with pytest.raises(DistributedError, match="say for how many seconds; allowed: delay@"):
        Fault.parse(text)


PARSED = [Fault.parse(text) for text in ("drop@worker1.push:4", "corrupt@worker1.push:6", "drop@worker2.push:4")]


def test_a_fault_happens_once_to_the_process_that_it_names() -> None:
    own = Faults(PARSED, "worker", 1)
    assert [own.of_frame("push", step) for step in (3, 4, 4, 5, 6, 6)] == [None, "drop", None, None, "corrupt", None]
    assert own.of_frame("reply", 4) is None
    assert not Faults(PARSED, "worker", 1, incarnation=1)
    assert not Faults(PARSED, "server", 1)
    assert not own


def test_a_delay_sleeps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    own = Faults([Fault.parse("delay@server0.reply:7:0.5")], "server", 0)
    for step in (6, 7, 7):
        own.reach("reply", step)
    own.of_frame("reply", 7)
    assert slept == [0.5]


@pytest.mark.parametrize("action", ["kill", "stop"])
def test_a_signal_goes_to_the_thread_that_reached_the_point(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(faults.signal, "pthread_kill", lambda thread, number: sent.append((thread, number)))
    own = Faults([Fault.parse(f"{action}@server0.apply:2")], "server", 0)
    own.reach("apply", 1)
    own.reach("apply", 2)
    assert sent == [(threading.get_ident(), {"kill": 9, "stop": 19}[action])]


OPTIONS = LinkOptions(stall_seconds=SECONDS, phases={1: "push"})


def faulty(text: str, **changes: object) -> LinkOptions:
    return replace(OPTIONS, faults=Faults([Fault.parse(text)], "worker", 3), **changes)


@pytest.mark.parametrize("kind", ["tcp", "shm"])
@pytest.mark.parametrize("size", [0, 1000, 3 << 20])
@pytest.mark.parametrize(
    ("action", "what"),
    [
        ("drop", "frame 2 arrived where frame 1 was due: a frame was lost"),
        ("corrupt", "is damaged: its checksum is wrong"),
    ],
)
def test_a_lost_or_damaged_frame_is_never_delivered(kind: str, size: int, action: str, what: str) -> None:
    payload = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    kept = payload.clone()
    with link_pair(kind, faulty(f"{action}@worker3.push:5")) as (worker, server):
        server.start(), worker.start()
        accepted: list[int] = []
        done: list[int] = []
        with suppress(LinkClosed):  # the receiver may give up before the last frame is handed over
            for step in (4, 5, 6):
                worker.link.send(Frame(1, step=step), payload, done=lambda step=step: done.append(step))
                accepted.append(step)
        reason = server.wait_closed()
        assert isinstance(reason, FrameError)
        assert what in str(reason)
        assert [frame.step for frame, _ in server.frames] == [4]
        worker.wait_closed()
        assert accepted[:2] == [4, 5]
        assert done == accepted
    assert torch.equal(payload, kept)


@pytest.mark.parametrize("checksum", ["auto", "always"])
def test_damage_to_a_frame_in_shared_memory_leaves_the_memory_alone(checksum: str) -> None:
    made = SharedArena()
    tensor = made.allocate(100).fill_(3)
    options = faulty("corrupt@worker3.push:5", arena=made, checksum=checksum)
    with link_pair("shm", options) as (worker, server):
        server.start(), worker.start()
        worker.link.send(Frame(1, step=5), tensor)
        assert "its checksum is wrong" in str(server.wait_closed())
    assert tensor.eq(3).all()
    made.close()


def test_frames_of_other_kinds_are_left_alone() -> None:
    with link_pair("tcp", faulty("drop@worker3.push:5")) as (worker, server):
        server.start(), worker.start()
        worker.link.send(Frame(2, step=5), b"reply")
        server.wait_frames(1)


def test_a_sign_of_life_uncovers_a_frame_that_was_lost_at_the_end() -> None:
    with link_pair("tcp", faulty("drop@worker3.push:5", beat_seconds=0.02)) as (worker, server):
        server.start(), worker.start()
        worker.link.send(Frame(1, step=5), b"last")
        assert "frame 1 arrived where frame 0 was due" in str(server.wait_closed())


def test_a_process_that_is_paused_stands_still_as_a_whole_and_is_woken_up() -> None:
    code = """
import threading, time
from distributed.links.faults import Fault, Faults
faults = Faults([Fault.parse("pause@worker0.push:1:0.2")], "worker", 0)
times, ticked, over = [], threading.Event(), threading.Event()
def tick():
    while not over.wait(0.001):
        times.append(time.monotonic())
        ticked.set()
beside = threading.Thread(target=tick)
beside.start()
ticked.wait()
faults.reach("push", 1)
ticked.clear()
ticked.wait()
over.set()
beside.join()
print(max(after - before for before, after in zip(times, times[1:])))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=SECONDS)
    assert float(shown.stdout) >= 0.2  # whoever wakes it counts from when it stands still
