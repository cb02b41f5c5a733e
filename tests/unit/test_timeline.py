"""Timelines: kinds of time that never overlap, a bound on what is kept, clocks laid side by side; energy counters."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed import timeline as timeline_module
from distributed.energy import EnergyMeter, EnergyOfHosts, reading, used
from distributed.errors import DistributedError
from distributed.timeline import KINDS, ClockOffset, Ping, Timeline, Totals, clock_offset
from distributed.timeline_files import (
    RecordedSpan,
    Recording,
    file_name,
    last_steps,
    newest_recordings,
    read_recordings,
    side_by_side,
    step_numbers,
    to_chrome_trace,
)
from distributed.timeline_picture import draw, summary


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands until it is told."""
    hand = SimpleNamespace(now=1_000_000_000)
    monkeypatch.setattr(timeline_module, "_now", lambda: hand.now)
    return hand


def test_an_inner_span_takes_its_time_from_the_outer_one(clock: SimpleNamespace) -> None:
    line = Timeline("worker 0")
    main = line.main
    with main.busy:
        clock.now += 3_000_000_000
        with main.wait_recv:
            clock.now += 2_000_000_000
            with main.copy:
                clock.now += 500_000_000
        with main.wait_recv:
            clock.now += 1_000_000_000
        clock.now += 1_000_000_000
    clock.now += 2_500_000_000
    totals = line.totals()
    assert totals.seconds == {"busy": 4.0, "wait_recv": 3.0, "wait_barrier": 0.0, "wait_send": 0.0, "copy": 0.5}
    assert (totals.wall, totals.other, totals.idle) == (10.0, 2.5, 0.3)


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_kinds_never_overlap(seed: int) -> None:
    """Any nesting, to the nanosecond, against a clock that knows the innermost open span at each tick."""
    draw_ = random.Random(seed)
    hand = SimpleNamespace(now=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline_module, "_now", lambda: hand.now)
        line = Timeline("worker 0")
        wanted, stack = dict.fromkeys([*KINDS, "other"], 0), []
        for _ in range(60):
            ticks = draw_.choice([0, 1, 7])
            wanted[stack[-1] if stack else "other"] += ticks
            hand.now += ticks
            if stack and draw_.random() < 0.5:
                getattr(line.main, stack.pop()).__exit__()
            else:
                stack.append(draw_.choice(KINDS))
                getattr(line.main, stack[-1]).__enter__()
        while stack:
            getattr(line.main, stack.pop()).__exit__()
        assert dict(zip(KINDS, line.main.own, strict=True)) == {kind: wanted[kind] for kind in KINDS}
        recording = read_recordings(line.take().decode())[0]
        shares = {**vars(recording), "totals": {}}
        assert recording.totals["other"] == pytest.approx(wanted["other"] / 1e9, abs=1e-12)
        if any(wanted[kind] for kind in KINDS):  # the same from the spans alone
            (found,) = [one for _, one in summary([Recording(**shares)])]
            covered = max(s.end for s in recording.spans()) - min(s.begin for s in recording.spans())
            assert all(found[kind] == pytest.approx(wanted[kind] / (covered or 1)) for kind in KINDS)


def test_a_span_costs_about_half_a_microsecond() -> None:
    main, quickest = Timeline("worker 0").main, 1e9
    for _ in range(40):
        begin = time.thread_time()
        for _ in range(500):
            with main.busy:
                pass
        quickest = min(quickest, (time.thread_time() - begin) / 500)
    assert quickest < 1.5e-6


def test_other_threads_have_lanes_of_their_own_and_are_not_idle(clock: SimpleNamespace) -> None:
    line = Timeline("server 1")

    def receive() -> None:
        with line.lane("from worker 0").wait_recv:
            clock.now += 4_000_000_000

    thread = threading.Thread(target=receive)
    thread.start()
    thread.join()
    assert line.totals().idle == 0.0
    recording = read_recordings(line.take().decode())[0]
    assert recording.lanes == {"from worker 0": [RecordedSpan("wait_recv", 1_000_000_000, 4_000_000_000, 0)]}


def test_a_busy_thread_that_gets_no_core_is_found_out() -> None:
    def totals(busy: float, cpu: float) -> Totals:
        return Totals(10.0, cpu, dict.fromkeys(KINDS, 0.0) | {"busy": busy})

    assert totals(busy=4.0, cpu=3.0).oversubscribed and not totals(busy=4.0, cpu=3.3).oversubscribed
    later = totals(busy=5.0, cpu=3.9) - totals(busy=4.0, cpu=3.0)
    assert not later.oversubscribed and later.wall == 0.0
    began = time.thread_time()
    line = Timeline("worker 0")
    with line.main.busy:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
    found = line.totals()
    assert 0.02 <= found.cpu <= time.thread_time() - began and found.seconds["busy"] >= 0.02


def test_what_is_written_reads_back_and_has_a_bound(clock: SimpleNamespace) -> None:
    line = Timeline("worker 3", capacity=10, budget=100)
    line.clock(ClockOffset(-5, 2))
    text = b""
    for step in range(1, 31):
        line.main.step = step
        for _ in range(step % 13):
            clock.now += 1000
            with line.main.wait_barrier:
                clock.now += 70
        text += line.take()
    (recording,) = read_recordings(text.decode())
    assert (recording.process, recording.offset, recording.error) == ("worker 3", -5, 2)
    spans = recording.lanes["main"]
    made = sum(step % 13 for step in range(1, 31))
    assert len(spans) + recording.left_out == made == line.main.count
    assert len(spans) <= 100 and all(span.kind == "wait_barrier" and span.length == 70 for span in spans)
    assert [span.begin for span in spans] == sorted(span.begin for span in spans)
    assert {span.step for span in spans} >= {1, 30}
    assert recording.totals["wait_barrier"] == pytest.approx(made * 70e-9)  # totals leave nothing out


def test_the_newest_spans_are_kept(clock: SimpleNamespace) -> None:
    line = Timeline("worker 0", capacity=40, budget=160)
    for line.main.step in range(100):
        with line.main.busy:
            clock.now += 1
    (recording,) = read_recordings(line.take().decode())
    assert [span.step for span in recording.lanes["main"]] == list(range(90, 100))
    assert recording.left_out == 90


def test_a_killed_process_leaves_a_readable_journal() -> None:
    line = Timeline("worker 0")
    with line.main.busy:
        pass
    text = line.take().decode()
    for cut in range(len(text)):
        read_recordings(text[:cut])
    second = Timeline("worker 0").take().decode()
    assert [bool(one.lanes) for one in read_recordings(text + second)] == [True, False]
    with pytest.raises(DistributedError, match=r"^timeline-worker-0.jsonl:2: is damaged$"):
        read_recordings(text.replace('"spans":[[', '"spans":[[['), "timeline-worker-0.jsonl")
    with pytest.raises(DistributedError, match="format 9; this program reads format 1"):
        read_recordings(text.replace('"format_version":1', '"format_version":9'))


@given(st.integers(-(10**15), 10**15), st.lists(st.tuples(*[st.integers(0, 10**7)] * 3), min_size=1, max_size=9))
def test_the_clock_of_the_quickest_answer_is_right_within_its_error(
    offset: int, journeys: list[tuple[int, int, int]]
) -> None:
    pings, at = [], 0
    for there, pause, back in journeys:
        pings.append(Ping(at, at + there + offset, at + there + back))
        at += pause
    found = clock_offset(pings)
    assert abs(found.offset - offset) <= found.error
    assert 2 * found.error <= min(there + back for there, _, back in journeys) + 1
    assert clock_offset([Ping(100, 5150, 200)]) == ClockOffset(5000, 50)
    with pytest.raises(ValueError, match="needs a ping"):
        clock_offset([])


def recordings() -> list[Recording]:
    """Two processes whose clocks are a second apart: the worker computes, then the server."""
    ms = 1_000_000
    worker = [RecordedSpan("busy", step * 10 * ms, 6 * ms, step) for step in range(1, 5)]
    worker += [RecordedSpan("wait_recv", step * 10 * ms + 6 * ms, 4 * ms, step) for step in range(1, 5)]
    server = [RecordedSpan("busy", (1000 + step * 10 + 6) * ms, 3 * ms, step) for step in range(1, 5)]
    sending = [RecordedSpan("copy", step * 10 * ms + 3 * ms, 2 * ms, 0) for step in range(1, 5)]
    lanes = {"main": sorted(worker, key=lambda span: span.end), "to server 0": sending}
    totals = dict.fromkeys(KINDS, 0.0) | {"busy": 6.0, "wait_recv": 3.9, "other": 0.1, "wall": 10.0, "idle": 0.39}
    return [
        Recording("worker 0", "here", 11, lanes=lanes, totals=totals),
        Recording("server 0", "there", 12, offset=-1000 * ms, lanes={"main": server}),
    ]


def test_processes_are_laid_side_by_side_by_one_clock() -> None:
    worker, server = side_by_side(recordings())
    assert worker.lanes["main"][0] == RecordedSpan("busy", 0, 6_000_000, 1)
    assert server.lanes["main"][0] == RecordedSpan("busy", 6_000_000, 3_000_000, 1)
    shown = last_steps(side_by_side(recordings()), 2)
    assert [span.step for span in shown[0].lanes["main"]] == [3, 3, 4, 4]
    assert [len(one.lanes["main"]) for one in last_steps(recordings(), 0)] == [8, 4]
    assert len(shown[0].lanes["to server 0"]) == 2 and len(shown[1].lanes["main"]) == 2


def test_a_chrome_trace_has_processes_threads_and_spans() -> None:
    trace = json.loads(json.dumps(to_chrome_trace(side_by_side(recordings()))))
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"].endswith("_name")]
    assert names == ["worker 0 (here, process 11)", "main", "to server 0", "server 0 (there, process 12)", "main"]
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == 16
    assert spans[1] == {
        "ph": "X",
        "name": "wait_recv",
        "cat": "wait",
        "pid": 1,
        "tid": 1,
        "ts": 6000.0,
        "dur": 4000.0,
        "args": {"step": 1},
    }


def test_a_picture_is_the_same_each_time_and_says_the_idle_share() -> None:
    shown = side_by_side(recordings())
    first, second = draw(shown, "a run"), draw(shown, "a run")
    assert first == second and first.startswith(b"\x89PNG")
    (worker, shares), (server, others) = summary(shown)
    assert (worker, server) == ("worker 0", "server 0")
    assert (shares["idle"], shares["busy"]) == (0.39, 0.6)  # of the whole attempt
    assert "idle 40.0 %" in words_of(shown)
    assert others["busy"] == pytest.approx(12 / 33) and others["other"] == pytest.approx(21 / 33)
    assert draw([Recording("worker 0")], "nothing yet").startswith(b"\x89PNG")


def test_a_process_that_was_killed_before_it_wrote_a_span_has_no_shares() -> None:
    killed = Recording("worker 1", totals=dict.fromkeys(KINDS, 0.0) | {"other": 0.9, "wall": 0.9, "idle": 0.0})
    assert summary([killed]) == [("worker 1", {})]
    assert "nothing recorded" in words_of([*side_by_side(recordings()), killed])


def words_of(shown: list[Recording]) -> list[str]:
    """What stands in the picture."""
    from matplotlib.axes import Axes

    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        plain = Axes.text
        patch.setattr(Axes, "text", lambda self, x, y, s, **rest: found.append(s) or plain(self, x, y, s, **rest))
        draw(shown, "a run")
    return found


def test_the_last_steps_end_before_the_evaluation_behind_them() -> None:
    """A server answers to the evaluation, with the number of the last step or of the next one."""
    laid = side_by_side(recordings())
    ms = 1_000_000
    laid[1].lanes["main"] += [RecordedSpan("wait_recv", 39 * ms, 900 * ms, 4), RecordedSpan("busy", 939 * ms, ms, 4)]
    laid[1].lanes["main"] += [RecordedSpan("wait_recv", 940 * ms, 9 * ms, 5), RecordedSpan("busy", 949 * ms, ms, 5)]
    assert step_numbers(laid) == [1, 2, 3, 4]
    worker, server = last_steps(laid, 1)
    assert [(span.kind, span.begin // ms, span.end // ms) for span in worker.lanes["main"]] == [
        ("busy", 30, 36),
        ("wait_recv", 36, 39),
    ]
    assert [(span.kind, span.begin // ms, span.end // ms) for span in server.lanes["main"]] == [("busy", 36, 39)]
    assert step_numbers(laid[1:]) == [1, 2, 3, 4, 5]  # nobody else was recorded


def test_the_newest_attempt_of_every_process_is_read_in_order(tmp_path: Path) -> None:
    for process in ("server 0", "worker 10", "worker 2", "coordinator"):
        text = Timeline(process).take().decode()
        (tmp_path / file_name(process)).write_text(text + text.replace('"pid":', '"pid":7'))
    found = newest_recordings(tmp_path)
    assert [one.process for one in found] == ["coordinator", "worker 2", "worker 10", "server 0"]
    assert all(str(one.pid).startswith("7") for one in found)
    assert (tmp_path / "timeline-worker-10.jsonl").exists()


def powercap(folder: Path, **microjoules: int) -> Path:
    """A machine of two packages: zone name to counter."""
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
    }
    for zone, name in zones.items():
        (folder / zone).mkdir(parents=True, exist_ok=True)
        (folder / zone / "name").write_text(f"{name}\n")
        (folder / zone / "max_energy_range_uj").write_text("1000000\n")
        (folder / zone / "energy_uj").write_text(f"{microjoules.get(name.replace('-', '_'), 0)}\n")
    return folder


def test_joules_are_those_of_packages_and_memory_round_a_wrap(tmp_path: Path) -> None:
    meter = EnergyMeter(powercap=powercap(tmp_path, package_0=900_000, dram=5, package_1=100, core=7, psys=1))
    powercap(tmp_path, package_0=100_000, dram=250_005, package_1=100, core=9_999, psys=9_999)
    assert meter.read() == {"package-0": pytest.approx(0.2), "dram-0": pytest.approx(0.25), "package-1": 0.0}
    powercap(tmp_path, package_0=100_000, dram=250_005, package_1=300_100)
    assert meter.joules() == pytest.approx(0.75)
    assert (used(5.0, 3.0, 10.0), used(5.0, 7.0, 10.0)) == (8.0, 2.0)


def test_a_package_counts_once_for_all_processes_of_its_host_and_hosts_add_up() -> None:
    run = EnergyOfHosts()

    def a_round(**joules: tuple[str, dict[str, float]]) -> float | None:
        run.add((name, host, {"joules": own, "reasons": []}) for name, (host, own) in joules.items())
        return run.joules()

    assert a_round(coordinator=("a", {"package-0": 10.0}), worker=("a", {"package-0": 4.0})) == 10.0
    assert a_round(coordinator=("a", {"package-0": 30.0}), worker=("a", {"package-0": 24.0, "gpu-7": 6.0})) == 36.0
    assert a_round(coordinator=("a", {"package-0": 40.0}), server=("b", {"package-0": 5.0})) == 51.0
    assert a_round(server=("b", {"package-0": 9.0}), late=("b", {"package-0": 1.0})) == 55.0
    # The server is lost: the other process of its host goes on from where it stood then.
    assert a_round(late=("b", {"package-0": 3.0}), newest=("b", {"package-0": 0.5})) == 57.0
    assert run.to_dict() == {"joules": 57.0, "hosts": 2, "counters": ["gpu-7", "package-0"], "reasons": []}


def test_a_sum_in_which_a_host_is_missing_is_none() -> None:
    run = EnergyOfHosts()
    nothing = {"joules": {}, "reasons": ["no energy counters"]}
    run.add([("coordinator", "a", {"joules": {"package-0": 10.0}, "reasons": []}), ("worker 0", "b", nothing)])
    assert run.joules() is None
    assert run.to_dict()["reasons"] == ["host of worker 0: no energy counters"]


def test_where_the_counters_lie_can_be_said_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2S_POWERCAP", str(powercap(tmp_path, package_0=5)))
    meter = EnergyMeter()
    powercap(tmp_path, package_0=1_005)
    assert reading(meter)["joules"]["package-0"] == pytest.approx(0.001)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert "package-0" not in meter.read()
    assert "package-0 cannot be read any more" in reading(meter)["reasons"][-1]


def test_what_cannot_be_read_is_not_measurable(tmp_path: Path) -> None:
    meter = EnergyMeter(powercap=tmp_path)
    assert (meter.joules(), meter.read()) == (None, {})
    assert meter.reasons == [f"no energy counters of processors under {tmp_path}"]
    folder = powercap(tmp_path)
    (folder / "intel-rapl:0" / "energy_uj").unlink()  # as a file that this user may not read
    partly = EnergyMeter(powercap=folder)
    assert sorted(partly.read()) == ["dram-0", "package-1"]
    assert partly.reasons[0].startswith("intel-rapl:0 cannot be read")


def test_gpus_are_read_where_the_library_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NVMLError(Exception):
        pass

    counters = {0: 5_000, "GPU-7": 1_000}
    monkeypatch.setitem(
        sys.modules,
        "pynvml",
        SimpleNamespace(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
            nvmlDeviceGetTotalEnergyConsumption=lambda handle: counters[handle],
        ),
    )
    meter = EnergyMeter(gpus=[0, "GPU-7"], powercap=tmp_path)
    counters.update({0: 7_500, "GPU-7": 1_250})
    assert meter.read() == {"gpu-0": 2.5, "gpu-GPU-7": 0.25}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "need the package pynvml" in EnergyMeter(gpus=[0], powercap=tmp_path).reasons[-1]
