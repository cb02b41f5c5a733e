"""What the reports of a run's processes come to: idle shares, traffic of a step, memory of all together."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from distributed.links.counters import Counters, total
from distributed.process_memory import peak_bytes
from distributed.run_figures import RunFigures
from nmt.training.strategy_report import report_metrics

MIB = 1 << 20


def said(
    busy: float, copy: float = 0.0, memory: int = 100, host: str = "a", **peers: tuple[int, int]
) -> dict[str, Any]:
    """A report: bytes that were sent to each peer and received from it, a message for each ten."""

    def way(count: int) -> dict[str, Any]:
        return {"messages": count // 10, "framing_bytes": 1, "payload_bytes": count - 3, "shared_bytes": 2}

    links = {peer.replace("_", " "): {"sent": way(one), "received": way(two)} for peer, (one, two) in peers.items()}
    times = {"busy": busy, "copy": copy, "idle": 0.9}
    use = {"host": host, "memory_bytes": memory, "energy": {"joules": {}, "reasons": ["none"]}}
    return {"times": times, "links": links, "use": use}


def run_of(figures: RunFigures, *steps: tuple[float, float, bool]) -> None:
    for asked, returned, ahead in steps:
        figures.step_asked(asked)
        figures.step_returned(ahead, returned)


def test_idleness_is_of_the_time_in_which_steps_were_under_way() -> None:
    figures = RunFigures()
    # Ten seconds of steps, of which some are begun ahead; then an evaluation of 90 s, and ten more.
    run_of(figures, (0.0, 3.0, True), (3.5, 10.0, False))
    first = figures.of({"worker 0": said(5.0, 1.0), "worker 1": said(9.0), "server 0": said(2.0)})
    assert first["idle"] == pytest.approx({"workers": 0.25, "workers_max": 0.4, "servers": 0.8, "servers_max": 0.8})
    run_of(figures, (100.0, 110.0, False))
    then = figures.of({"worker 0": said(10.0), "worker 1": said(14.0), "server 0": said(25.0)})
    assert then["idle"] == pytest.approx({"workers": 0.4, "workers_max": 0.5, "servers": 0.0, "servers_max": 0.0})
    assert then["steps"] == 3


def test_who_came_later_is_idle_as_a_share_of_its_own_time() -> None:
    figures = RunFigures()
    run_of(figures, (0.0, 10.0, False))
    figures.of({"worker 0": said(10.0)})
    figures.of({"worker 0": said(10.0), "worker 7": said(0.0)})
    run_of(figures, (50.0, 60.0, False))
    assert figures.of({"worker 7": said(5.0)})["idle"]["workers"] == pytest.approx(0.5)


def test_traffic_of_a_step_is_that_between_members_and_counts_the_lost_ones() -> None:
    figures = RunFigures()
    run_of(figures, (0.0, 1.0, False), (1.0, 2.0, False))
    worker, server = said(1.0, server_0=(100, 60), coordinator=(1000, 1000)), said(1.0, worker_0=(60, 100))
    found = figures.of({"worker 0": worker, "server 0": server})["traffic"]
    assert found == {
        "bytes_per_step": 80.0,
        "messages_per_step": 8.0,
        "worker_sent_bytes_per_step": 50.0,
        "worker_sent_messages_per_step": 5.0,
        "worker_received_bytes_per_step": 30.0,
        "worker_received_messages_per_step": 3.0,
        "server_sent_bytes_per_step": 30.0,
        "server_sent_messages_per_step": 3.0,
        "server_received_bytes_per_step": 50.0,
        "server_received_messages_per_step": 5.0,
    }
    # Worker 0 is lost, worker 1 takes its place: a step of one worker costs what both have sent.
    later = figures.of({"worker 1": said(1.0, server_0=(20, 40)), "server 0": server})["traffic"]
    assert (later["worker_sent_bytes_per_step"], later["bytes_per_step"]) == (60.0, 90.0)


def test_memory_is_the_largest_of_a_role_and_all_together_at_their_most() -> None:
    figures = RunFigures()
    both = figures.of(
        {"worker 0": said(0.0, memory=40), "worker 1": said(0.0, memory=50), "server 0": said(0, memory=7)}
    )
    coordinator = both["memory"]["coordinator_bytes"]
    assert coordinator > MIB
    assert both["memory"] == {
        "coordinator_bytes": coordinator,
        "worker_bytes": 50,
        "server_bytes": 7,
        "total_bytes": coordinator + 97,
    }
    alone = figures.of({"worker 0": said(0.0, memory=41)})["memory"]
    assert (alone["worker_bytes"], alone["total_bytes"] >= coordinator + 97) == (50, True)


def test_main_figures_are_drawn_and_energy_is_not_among_them() -> None:
    figures = RunFigures()
    run_of(figures, (0.0, 1.0, False))
    drawn = report_metrics(figures.of({"worker 0": said(0.5, server_0=(10, 10))}))
    assert drawn["distribution/idle/workers"] == 0.5
    assert drawn["distribution/traffic/worker_sent_bytes_per_step"] == 10.0
    assert drawn["distribution/memory/worker_bytes"] == 100
    assert not any("energy" in name or "processes" in name for name in drawn)


GROWTH = """
from distributed.process_memory import peak_bytes
before = peak_bytes()
held = b"1" * (64 << 20)
grown = peak_bytes() - before
del held
print(grown, peak_bytes() - before)
"""


def test_a_process_counts_its_own_pages_and_what_it_shares_once() -> None:
    # In a process of its own: one that has held more before may grow within its own peak.
    printed = subprocess.run([sys.executable, "-c", GROWTH], check=True, capture_output=True, text=True).stdout
    grown, afterwards = map(int, printed.split())
    assert 63 * MIB < grown < 70 * MIB
    assert afterwards > 63 * MIB  # the peak stays
    assert abs(peak_bytes(shared=7 * MIB) - peak_bytes() - 7 * MIB) < MIB
    assert peak_bytes(process=str(os.getpid())) > MIB


def test_links_that_have_ended_count() -> None:
    one, two = Counters(), Counters()
    one.sent.add(3, 64, payload=100)
    two.sent.add(3, 64, shared=7)
    two.received.add(4, 72)
    found = total([one, two])
    assert found["sent"] | {"by_kind": {}} == {
        "messages": 2, "framing_bytes": 128, "payload_bytes": 100, "shared_bytes": 7, "by_kind": {},
    }  # fmt: skip
    assert found["received"]["by_kind"]["4"]["framing_bytes"] == 72
    assert one.sent.total.messages == 1
