"""The clock rule: its bounds under any durations, losses and joins, and that it never locks up."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.parameter_server.clocks import Clocks, lag_bound, staleness_bound
from distributed.parameter_server.simulation import Simulation, simulate
from distributed.parameter_server.staleness import StalenessMeter, rate_factor
from distributed.parameter_server.tickets import Ticket
from distributed.parameter_server.trace import EventKind, read_trace


def started(bound: float, workers: int) -> Clocks:
    clocks = Clocks(bound, range(workers))
    for worker in range(workers):
        clocks.pull(worker)
    assert clocks.released() == list(range(workers))
    return clocks


def test_a_worker_runs_ahead_by_the_staleness_and_waits_then() -> None:
    clocks = started(2.0, 2)
    for clock in (1, 2):
        assert clocks.pushed(0) == clock
        clocks.pull(0)
        assert clocks.released() == [0]
    clocks.pushed(0)
    clocks.pull(0)
    assert not clocks.may_pull(0)
    assert (clocks.released(), clocks.waiting, clocks.gap) == ([], (0,), 3)
    clocks.pushed(1)
    assert (clocks.released(), clocks.waiting) == ([0], ())


@pytest.mark.parametrize("leave", ["park", "lose"])
def test_nobody_waits_for_who_has_no_work_or_is_gone(leave: str) -> None:
    clocks = started(1.0, 3)
    for worker in (0, 0, 1):
        clocks.pushed(worker)
    clocks.pull(0)
    assert clocks.released() == []
    getattr(clocks, leave)(2)
    assert clocks.released() == [0]


def test_who_comes_enters_at_the_highest_clock_reached() -> None:
    clocks = started(1.0, 2)
    clocks.pushed(0)
    clocks.pushed(0)
    clocks.lose(0)  # its clock of 2 counts on: else a chain of short-lived workers would break the lag's bound
    clocks.join(7)
    clocks.pull(7)
    assert (clocks.clock(7), clocks.released()) == (2, [])
    clocks.pushed(1)
    assert clocks.released() == [7]
    clocks.park(1)
    clocks.pushed(7)
    clocks.pull(1)
    assert clocks.clock(1) == 3


def test_a_push_that_a_horizon_overtook_moves_no_clock() -> None:
    clocks = started(1.0, 2)
    clocks.restart((0, 1))
    assert (clocks.pushed(1), clocks.waiting) == (0, ())
    clocks.pull(0)
    assert (clocks.clock(0), clocks.gap, clocks.released()) == (0, 0, [0])


def test_asynchronous_workers_never_wait_and_synchronous_ones_always() -> None:
    free, tied = started(math.inf, 2), started(0.0, 2)
    for clocks in (free, tied):
        clocks.pushed(0)
        clocks.pull(0)
    assert (free.released(), tied.released()) == ([0], [])


def test_strangers_are_refused() -> None:
    clocks = started(1.0, 2)
    clocks.lose(1)
    for call in (clocks.pull, clocks.pushed, clocks.park, clocks.may_pull):
        with pytest.raises(KeyError):
            call(1)
    with pytest.raises(ValueError, match="worker 0 is alive already"):
        clocks.join(0)


def test_staleness_of_a_mode() -> None:
    assert [staleness_bound(*one) for one in (("bsp", 4), ("ssp", 3), ("asp", 1))] == [0.0, 3.0, math.inf]
    with pytest.raises(ValueError, match="mode bsp"):
        staleness_bound("ssp", 0)
    with pytest.raises(ValueError, match="bsp, ssp, asp"):
        staleness_bound("lockstep", 1)
    assert [lag_bound(2, 1.0), lag_bound(4, 3.0), lag_bound(1, 2.0), lag_bound(2, math.inf)] == [3, 21, 0, math.inf]


def test_the_lag_of_two_workers_with_staleness_one_reaches_three() -> None:
    """Worker 1 pulls at clock 1 while worker 0 stands at 0, and computes so long that 0 passes to 3."""
    seconds = {0: [2.0, 0.1, 0.1, 9.0], 1: [1.0, 9.0]}
    played = simulate(2, "ssp", 1, lambda worker, ticket: (seconds[worker] or [1.0]).pop(0), steps=8)
    assert (played.most_lag, played.widest_gap) == (3, 2)


class Straggling:
    """A run with random durations, delays, losses and joins, as a function of its seed."""

    def __init__(self, seed: int, mode: str):
        draw = random.Random(seed)
        self.workers, self.staleness = draw.randint(1, 5), draw.randint(1, 3)
        self.servers, self.shares = draw.randint(1, 3), draw.randint(1, 3)
        self.steps, self.horizon, self.mode = draw.randint(1, 30), draw.choice([0, 1, 5]), mode
        speeds = [draw.choice([0.3, 1.0, 1.0, 4.0]) for _ in range(self.workers + 4)]
        slow = draw.choice([0.0, 0.0, 0.3])
        numbers = list(range(self.workers))
        self.losses, self.joins = [], []
        for new in range(self.workers, self.workers + draw.randint(0, 4)):
            self.joins.append((draw.uniform(0, 10), new))
            numbers.append(new)
        times = sorted(draw.uniform(0, 15) for _ in range(draw.randint(0, len(numbers) - 1)))
        self.losses = list(zip(times, draw.sample(numbers[1:], len(times)), strict=True))  # worker 0 lives
        self.durations = lambda worker, ticket: speeds[worker] * draw.expovariate(1.0)
        self.delays = lambda worker, server: slow * draw.expovariate(1.0)

    def play(self, **changed: object) -> Simulation:
        options = {
            "steps": self.steps,
            "horizon": self.horizon,
            "shares": self.shares,
            "servers": self.servers,
            "delays": self.delays,
            "losses": self.losses,
            "joins": self.joins,
        }
        return simulate(self.workers, self.mode, self.staleness, self.durations, **{**options, **changed})

    @property
    def most_alive(self) -> int:
        """No more than this many are alive at a time, as any server sees it."""
        return self.workers + len(self.joins)


def check_rules(run: Straggling, played: Simulation) -> None:
    if run.mode == "ssp":
        assert played.widest_gap <= run.staleness + 1
        assert played.most_lag <= lag_bound(run.most_alive, run.staleness)
    for data in played.traces:
        applied = Counter(event.ticket for event in read_trace(data) if event.kind is EventKind.APPLY)
        wanted = (Ticket(step, share) for step in range(1, run.steps + 1) for share in range(run.shares))
        assert applied == Counter(wanted)


@given(st.integers(0, 10**9), st.sampled_from(["ssp", "asp"]))
@settings(max_examples=200, deadline=None)
def test_gap_lag_and_every_ticket_once_whoever_is_lost_or_joins(seed: int, mode: str) -> None:
    """That it ends is part of it: no combination locks up."""
    run = Straggling(seed, mode)
    check_rules(run, run.play())


@given(st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_a_replacement_does_not_loosen_the_lag(seed: int) -> None:
    """W is how many are alive at a time, not how many there ever were: each join follows a loss."""
    run = Straggling(seed, "ssp")
    lost = [(time, worker) for time, worker in run.losses if worker < run.workers]
    run.delays = lambda worker, server: 0.0
    run.losses = lost
    run.joins = [(time, 100 + worker) for time, worker in lost]
    speeds = {worker: 1.0 + worker for worker in range(run.workers)}
    draw = random.Random(seed)
    run.durations = lambda worker, ticket: speeds[worker % 100] * draw.expovariate(1.0)
    played = run.play()
    run.joins = []
    check_rules(run, played)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["ssp", "asp"])
def test_rules_under_twenty_thousand_runs(mode: str) -> None:
    for seed in range(20_000):
        run = Straggling(seed, mode)
        check_rules(run, run.play())


def test_a_simulation_says_how_long_workers_wait() -> None:
    """Worker 1 is three times as slow; 12 steps of two shares."""
    seconds = lambda worker, ticket: 3.0 if worker else 1.0  # noqa: E731
    bsp, ssp, asp = (simulate(2, mode, 2, seconds, steps=12, shares=2) for mode in ("bsp", "ssp", "asp"))
    assert (bsp.seconds, bsp.waited, bsp.most_lag) == (36.0, {0: 24.0 - 2.0, 1: 0.0}, 0)
    assert asp.seconds == 18.0 and asp.waited == {0: 0.0, 1: 0.0}
    assert asp.seconds <= ssp.seconds < bsp.seconds
    assert len(asp.computed[0]) == 18 and len(bsp.computed[0]) == 12


def test_a_run_without_workers_says_so() -> None:
    with pytest.raises(RuntimeError, match="step 2 is never done"):
        simulate(1, "asp", 1, lambda worker, ticket: 1.0, steps=5, losses=[(1.5, 0)])


def test_staleness_is_counted_to_the_number() -> None:
    meter = StalenessMeter()
    for lag in [0] * 90 + [4] * 9 + [20]:
        meter.pulled(3, version=100, now=5.0)
        assert meter.applied(3, version=100 + lag, gap=lag % 3, now=5.5) == lag
    other = StalenessMeter()
    other.add(meter.to_dict())
    for one in (meter, other):
        summary = one.summary()
        assert summary["pushes"] == 100
        assert summary["version_lag"] == {
            "mean": 0.56,
            "p95": 4,
            "max": 20,
            "histogram": {"0": 90, "4": 9, "20": 1},
        }
        assert summary["clock_gap"] == {"mean": 0.11, "p95": 1, "max": 2, "histogram": {"0": 90, "1": 9, "2": 1}}
        age = summary["age_seconds"]
        assert age["mean"] == pytest.approx(0.5) and 0.5 <= age["p95"] == age["max"] <= 0.5 * 2**0.25
        assert list(age["histogram"].values()) == [100]
    other.add(meter.to_dict())
    assert other.summary()["pushes"] == 200
    assert StalenessMeter().summary()["version_lag"] == {"mean": None, "p95": None, "max": None, "histogram": {}}


@given(st.floats(0, 1e5))
def test_an_age_is_told_to_a_fifth(age: float) -> None:
    meter = StalenessMeter()
    meter.pulled(0, 0, 0.0)
    meter.applied(0, 0, 0, age)
    told = meter.summary()["age_seconds"]["max"]
    assert age * 0.9995 <= told <= max(1.2 * age, 1e-6)


def test_rates_answer_to_workers_or_staleness() -> None:
    assert [rate_factor(scaling, workers=4, lag=3) for scaling in ("none", "workers", "staleness")] == [1.0, 0.25, 0.25]
    assert rate_factor("staleness", workers=4, lag=0) == 1.0
    with pytest.raises(ValueError, match="none, workers, staleness"):
        rate_factor("linear", 1, 1)
