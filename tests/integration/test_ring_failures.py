"""Nodes of a ring die, stand still and lose frames at named points: no step is lost, and no bit differs.

Bits depend on how many workers are configured alone (`ring_examples.RingInOneProcess`): seats of those who are lost are
taken over. A step that some had summed when another was lost is rolled forward; one that nobody had is made anew.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from leftovers import standing_still, wait_for_end
from parameter_server_examples import train
from ring_examples import IMPATIENT, STEPS, by_the_rule, disturbed, running
from toy_workload import workload_spec

from distributed.errors import DistributedError
from distributed.links.listener import HANDSHAKE_SECONDS
from distributed.ring.messages import Kind
from distributed.ring.strategy import RingStrategy
from distributed.strategy import StateLost

ALONE = ["replace_lost=false", *IMPATIENT]
PHASES = ("forward", "backward", "pushed", "reduce", "gather", "facts", "summed", "applied", "told")
FRAMES = ("reduce", "gather", "facts")
# Node 0 drops the last frame that others could make something of: so it has the sum of step 3, and node 1 never has it.
# That takes node 0 to have passed on what began at node 2 before what began at node 1 comes, which is late therefore;
# and then half a second in which all of them get on. Where a busy machine has it otherwise, it is tried again.
ONE_HAS_THE_SUM = ("delay@worker1.forward:3:0.2", "drop@worker0.gather:3")
TRIES = 20


def assert_one_died(report: Mapping[str, Any], fault: str, step: int) -> None:
    number = fault.partition(".")[0][-1]
    assert report["lost"] == {"workers": 1, "links": 0}
    (recovery,) = report["recoveries"]
    assert recovery["lost"] == f"worker {number}"
    assert recovery["step"] <= step + 1  # by the coordinator's count: who dies may be ahead of what it has said
    assert recovery["seconds"] < HANDSHAKE_SECONDS  # no deadline had to pass


@pytest.mark.parametrize("fault", ["kill@worker0.backward", "kill@worker1.reduce", "kill@worker2.gather",
                                   "kill@worker0.summed", "kill@worker2.applied"])  # fmt: skip
def test_a_node_may_die_anywhere(fault: str) -> None:
    assert_one_died(disturbed(f"{fault}:3", words=ALONE), fault, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("step", "link"), [(1, "tcp"), (3, "shm")])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_node_may_die_everywhere(number: int, phase: str, step: int, link: str) -> None:
    fault = f"kill@worker{number}.{phase}"
    assert_one_died(disturbed(f"{fault}:{step}", words=[*ALONE, f"link={link}"]), fault, step)


def assert_one_link_ended(report: Mapping[str, Any]) -> None:
    assert report["lost"] == {"workers": 0, "links": 1}


@pytest.mark.parametrize("fault", ["corrupt@worker1.reduce"])
def test_a_damaged_frame_costs_a_link_and_no_bit(fault: str) -> None:
    assert_one_link_ended(disturbed(f"{fault}:3", words=ALONE))


@pytest.mark.exhaustive
@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_node_may_die_while_others_copy_as_on_a_gpu(phase: str, link: str) -> None:
    fault = f"kill@worker1.{phase}"
    words = [*ALONE, "staging=always", f"link={link}"]
    assert_one_died(disturbed(f"{fault}:3", words=words), fault, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", FRAMES)
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("action", "link"), [("drop", "shm"), ("corrupt", "tcp")])
def test_every_frame_may_be_damaged(action: str, number: int, phase: str, link: str) -> None:
    assert_one_link_ended(disturbed(f"{action}@worker{number}.{phase}:3", words=[*ALONE, f"link={link}"]))


@pytest.mark.parametrize("fault", [
    "kill@worker1.roll:3",
    pytest.param("kill@worker2.roll:3", marks=pytest.mark.exhaustive),
    pytest.param("kill@worker1.rolled:3", marks=pytest.mark.exhaustive),
    pytest.param("kill@worker2.reconfigure:3", marks=pytest.mark.exhaustive),
    pytest.param("drop@worker0.roll:3", marks=pytest.mark.exhaustive),
    pytest.param("corrupt@worker1.rolled:3", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_a_sum_that_one_node_has_is_rolled_forward_whoever_is_lost_meanwhile(fault: str) -> None:
    """Without the frame that is dropped, node 0 alone has the sum."""
    kills = fault.startswith("kill")
    # Faults at `roll` and `rolled` happen only where node 0 had the sum.
    reports = (disturbed(*ONE_HAS_THE_SUM, fault, words=ALONE) for _ in range(TRIES))
    assert {"workers": int(kills), "links": 1 + (not kills)} in (report["lost"] for report in reports)


@pytest.mark.exhaustive
def test_a_sum_that_is_lost_with_the_only_node_that_had_it_is_made_anew() -> None:
    # It is killed there only if it had the sum.
    reports = (disturbed(*ONE_HAS_THE_SUM, "kill@worker0.reconfigure:4", words=ALONE) for _ in range(TRIES))
    assert any(report["lost"]["workers"] == 1 for report in reports)


@pytest.mark.parametrize("faults", [
    ["kill@worker0.pushed:3", "kill@worker1.reduce:3"],
    pytest.param(["kill@worker0.summed:2", "kill@worker1.applied:2"], marks=pytest.mark.exhaustive),
    pytest.param(["kill@worker2.gather:3", "kill@worker0.reconfigure:3"], marks=pytest.mark.exhaustive),
    pytest.param(["kill@worker2.gather:3", "kill@worker0.reconfigure:4"], marks=pytest.mark.exhaustive),
    pytest.param(["kill@worker0.forward:2", "kill@worker1.backward:4"], marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_two_of_three_may_die_at_once_or_one_after_the_other(faults: list[str]) -> None:
    # Where nobody had the sum of step 3, nobody is reconfigured with step 4 open.
    assert disturbed(*faults, words=ALONE)["lost"]["workers"] >= 2 - (faults[1] == "kill@worker0.reconfigure:4")


@pytest.mark.parametrize("fault", [
    "kill@worker0.reconfigure:1",
    "kill@worker1.state:0",
    pytest.param("kill@worker2.state:0", marks=pytest.mark.exhaustive),
    pytest.param("kill@worker2.joined:0", marks=pytest.mark.exhaustive),
    pytest.param("kill@worker1.reconfigure:1", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_a_node_may_die_while_the_first_state_goes_round(fault: str) -> None:
    """Also the only one that has it: the trainer has it still."""
    assert disturbed(fault, words=ALONE)["lost"]["workers"] == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["drop@worker0.state:0", "corrupt@worker1.state:0", "drop@worker1.joined:0"])
def test_a_state_that_is_damaged_on_its_way_is_sent_again(fault: str) -> None:
    assert_one_link_ended(disturbed(fault, words=ALONE))


def wait_for_workers(strategy: RingStrategy, count: int) -> None:
    coordinator = strategy._coordinator
    assert coordinator is not None
    coordinator._wait(lambda: len(coordinator._ready) == count, lambda: f"{count} workers", seconds=60.0)


@pytest.mark.parametrize("staging", ["auto", pytest.param("always", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("link", ["shm", pytest.param("tcp", marks=pytest.mark.exhaustive)])
def test_a_replacement_joins_at_the_end_of_a_step_with_parameters_moments_and_updates(link: str, staging: str) -> None:
    with running(
        "workers=3", *IMPATIENT, f"link={link}", f"staging={staging}", faults=["kill@worker1.gather:3"]
    ) as strategy:
        stats = train(strategy, 1, 4)
        wait_for_workers(strategy, 3)
        stats += train(strategy, 5, 10)
        state, report = strategy.state(), strategy.report()
    by_the_rule(3, steps=10).assert_equal(stats, state)
    sent = report["processes"]["worker 3"]["links"]["worker 0"]["sent"]["by_kind"]
    assert sent[str(int(Kind.REDUCE))]["messages"] > 0  # it has a seat between 2 and 0


@pytest.mark.exhaustive
def test_replacements_may_die_as_soon_as_they_have_joined() -> None:
    faults = ["kill@worker1.gather:2", *(f"kill@worker3.forward:{step}" for step in range(3, 40))]
    with running("workers=3", *IMPATIENT, faults=faults) as strategy:
        stats = train(strategy, 1, 3)
        wait_for_workers(strategy, 3)
        stats += train(strategy, 4, 8)
        wait_for_workers(strategy, 3)
        stats += train(strategy, 9, 14)
        state, report = strategy.state(), strategy.report()
    assert report["lost"]["workers"] == 2
    by_the_rule(3, steps=14).assert_equal(stats, state)


@pytest.mark.parametrize("fault", [
    pytest.param(f"stop@worker{number}.{phase}",
                 marks=[] if (number, phase) == (0, "gather") else pytest.mark.exhaustive)
    for number in (0, 1, 2) for phase in PHASES
])  # fmt: skip
def test_a_node_that_stood_still_too_long_is_given_up_and_ends_when_it_wakes(fault: str) -> None:
    # The deadline has to pass, and nobody else may miss it on a busy machine.
    with running("workers=3", *ALONE, "deadline_seconds=5", faults=[f"{fault}:3"]) as strategy:
        stats = train(strategy, 1, 5)
        (zombie,) = standing_still()
        os.kill(zombie, signal.SIGCONT)
        wait_for_end(zombie)  # nobody lets it in
        stats += train(strategy, 6, STEPS)
        state, report = strategy.state(), strategy.report()
    by_the_rule(3).assert_equal(stats, state)
    assert_one_died(report, fault, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["forward", "reduce", "gather", "summed"])
def test_a_thread_that_hangs_is_given_up(phase: str) -> None:
    report = disturbed(f"hang@worker1.{phase}:3", words=[*ALONE, "watchdog_seconds=5"])
    assert report["lost"] == {"workers": 1, "links": 0}
    assert "has been at the" in report["recoveries"][0]["reason"]


def test_the_last_node_is_lost_state() -> None:
    with (
        running("workers=1", faults=["kill@worker0.forward:2"]) as strategy,
        pytest.raises(StateLost, match="all nodes are gone, and the state with them"),
    ):
        train(strategy, 1, STEPS)


@pytest.mark.exhaustive
def test_without_replacements_the_last_node_is_missed() -> None:
    with (
        running("workers=1", "replace_lost=false", faults=["kill@worker0.forward:2"]) as strategy,
        pytest.raises((DistributedError, StateLost)),
    ):
        train(strategy, 1, STEPS)


@pytest.mark.parametrize("fails", ["3", pytest.param("build", marks=pytest.mark.exhaustive)])
def test_an_error_in_a_node_ends_the_run_and_is_told(fails: str) -> None:
    broken = "this toy breaks at step 3" if fails == "3" else "this toy cannot be built here"
    with (
        pytest.raises(RuntimeError, match=rf"worker [01] failed:\n(.*\n)*ValueError: {broken}"),
        running("workers=2", spec=workload_spec(fails=fails)) as strategy,
    ):
        train(strategy, 1, STEPS)
