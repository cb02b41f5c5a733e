"""Nodes of a ring of stages die, stand still, hang and lose frames: no step is lost, and no bit differs.

Nothing here is to happen within a time or a number of steps: what is waited for is a condition.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from leftovers import standing_still, wait_for_end
from parameter_server_examples import train
from stage_ring_examples import ALONE, IMPATIENT, STEPS, coordinator_of, disturbed, process_ids, running, single

from distributed.strategy import StateLost

PHASES = ("forward", "backward", "shipped", "apply", "applied", "told")
SIZES = (2, 3, 4)
# Every node of every ring in every phase: each with another step, or action, than its neighbours. Who stands still
# takes a deadline, so that each node and each phase comes up once. The protocol itself goes through orders of events by
# the thousand in tests/unit/test_stage_ring_deaths.py.
DEATHS = [
    (nodes, number, phase, 1 + 2 * ((number + index) % 2))
    for nodes in SIZES
    for number in range(nodes)
    for index, phase in enumerate(PHASES)
]
STILL = [(2, 0, "forward"), *((4, index % 4, phase) for index, phase in enumerate(PHASES))]
FAULTY_FRAMES = [
    (nodes, number, phase, ("drop", "corrupt")[(nodes + number + index) % 2])
    for nodes in SIZES
    for index, phase in enumerate(("forward", "backward", "gradient", "sums"))
    for number in range(phase == "backward", nodes - (phase == "forward"))  # activations go on, their gradients back
]
# While the ring closes over node 1 of four.
AGAIN = [
    *(f"{action}@worker{number}.{phase}:0" for action in ("kill", "drop", "corrupt") for number in (0, 2, 3)
      for phase in ("walk", "verdict")),
    *(f"kill@worker{number}.{phase}:{step}" for number in (0, 2, 3) for phase in ("freeze", "enter")
      for step in (3, 4)),
]  # fmt: skip


def assert_was_lost(report: Mapping[str, Any], number: int) -> None:
    """Others may have been lost, too: a process that gets no time on a core for a deadline is."""
    recoveries = {one["lost"]: one for one in report["recoveries"]}
    assert recoveries[f"worker {number}"]["seconds"] >= 0.0


def assert_something_was_noticed(report: Mapping[str, Any]) -> None:
    assert report["lost"]["links"] + report["lost"]["workers"] >= 1


@pytest.mark.parametrize(("nodes", "fault"), [(2, "kill@worker1.backward:3"), (3, "kill@worker0.applied:3")])
def test_a_node_may_die_anywhere(nodes: int, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_was_lost(disturbed(fault, nodes=nodes), int(fault[11]))
    assert f": worker {fault[11]} was lost at step " in caplog.text


@pytest.mark.exhaustive
@pytest.mark.parametrize(("nodes", "number", "phase", "step"), DEATHS)
def test_every_node_may_die_everywhere(nodes: int, number: int, phase: str, step: int) -> None:
    link = "tcp" if (number + step) % 2 else "shm"
    report = disturbed(f"kill@worker{number}.{phase}:{step}", words=[*ALONE, f"link={link}"], nodes=nodes)
    assert_was_lost(report, number)


@pytest.mark.parametrize("fault", ["corrupt@worker1.gradient"])
def test_a_damaged_frame_costs_a_link_and_no_bit(fault: str) -> None:
    assert_something_was_noticed(disturbed(f"{fault}:3", nodes=2))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("nodes", "number", "phase", "action"), FAULTY_FRAMES)
def test_every_frame_may_be_lost_or_damaged(nodes: int, number: int, phase: str, action: str) -> None:
    words = [*ALONE, "heartbeat_seconds=0.2", f"link={'tcp' if number % 2 else 'shm'}"]
    assert_something_was_noticed(disturbed(f"{action}@worker{number}.{phase}:3", words=words, nodes=nodes))


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", AGAIN)
def test_a_ring_that_closes_may_be_disturbed_again(fault: str) -> None:
    """Of four nodes the second is lost; whoever is lost with it may be its neighbour, and then its state is gone."""
    try:
        assert_was_lost(disturbed("kill@worker1.backward:3", fault, nodes=4), 1)
    except StateLost as error:
        assert fault.startswith(("kill@worker0", "kill@worker2"))
        assert "nobody has the state of" in str(error)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["drop@worker2.state:2", "corrupt@worker0.stated:2", "kill@worker0.forward:3"])
def test_a_state_may_be_lost_on_its_way(fault: str) -> None:
    """Of three nodes one is lost at step 3, so that states of step 2 are sent to those that have no copy any more."""
    try:
        disturbed("kill@worker1.shipped:3", fault, nodes=3)
    except StateLost:
        assert fault.startswith("kill")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("nodes", "number", "phase"), STILL)
def test_a_node_that_stands_still_too_long_is_given_up_and_ends_when_it_wakes(
    nodes: int, number: int, phase: str
) -> None:
    with running(f"nodes={nodes}", *ALONE, *IMPATIENT, faults=[f"stop@worker{number}.{phase}:3"]) as strategy:
        stats = train(strategy, 1, 5)
        for zombie in standing_still():
            os.kill(zombie, signal.SIGCONT)
            wait_for_end(zombie)  # nobody lets it in
        stats += train(strategy, 6, STEPS)
        single().assert_equal(stats, strategy.state())
        assert_was_lost(strategy.report(), number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["backward", "apply"])
def test_a_thread_that_hangs_is_given_up(phase: str) -> None:
    report = disturbed(f"hang@worker1.{phase}:3", words=[*ALONE, "watchdog_seconds=5"])
    assert_was_lost(report, 1)
    assert any("has been at the" in one["reason"] for one in report["recoveries"])


@pytest.mark.parametrize(("nodes", "number"), [
    (3, 1),
    *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((2, 0), (2, 1), (4, 0), (4, 3))),
])  # fmt: skip
def test_another_process_takes_the_place_of_a_lost_one(nodes: int, number: int) -> None:
    with running(f"nodes={nodes}", faults=[f"kill@worker{number}.forward:3"]) as strategy:
        stats = train(strategy, 1, 4)
        coordinator = coordinator_of(strategy)
        ring = coordinator._membership
        coordinator._wait(
            lambda: len(ring.members) == nodes and ring.at_work, lambda: "another node to be admitted", seconds=300.0
        )
        assert max(ring.members) >= nodes  # numbers are given once
        assert all(ring.placement.stages_of(one) for one in ring.members)
        stats += train(strategy, 5, STEPS)
        single().assert_equal(stats, strategy.state())
        assert_was_lost(strategy.report(), number)


@pytest.mark.exhaustive
def test_nodes_may_be_replaced_one_after_the_other() -> None:
    with running("nodes=3", faults=[f"kill@worker{step}.backward:{step + 1}" for step in (1, 2, 3)]) as strategy:
        stats = []
        coordinator = coordinator_of(strategy)
        ring = coordinator._membership
        for step in range(1, STEPS + 1):
            stats += train(strategy, step, step)
            coordinator._wait(
                lambda: len(ring.members) == 3 and ring.at_work, lambda: "another node to be admitted", seconds=300.0
            )
        single().assert_equal(stats, strategy.state())
        assert strategy.report()["lost"]["workers"] >= 3


def test_two_neighbours_that_are_lost_at_once_are_lost_state() -> None:
    with running("nodes=3", *ALONE) as strategy:
        train(strategy, 1, 2)
        processes = process_ids(strategy)
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for number in (1, 2):
                os.kill(processes[number], sent)
        with pytest.raises(StateLost, match=r"^nobody has the state of .*on node 1 and on the next, and both are gone"):
            train(strategy, 3, STEPS)


@pytest.mark.exhaustive
def test_two_that_are_no_neighbours_may_be_lost_at_once() -> None:
    with running("nodes=4", *ALONE) as strategy:
        stats = train(strategy, 1, 2)
        processes = process_ids(strategy)
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for number in (0, 2):
                os.kill(processes[number], sent)
        single().assert_equal(stats + train(strategy, 3, STEPS), strategy.state())
        assert strategy.report()["lost"]["workers"] >= 2


@pytest.mark.exhaustive
def test_without_shadows_a_node_that_is_lost_is_lost_state() -> None:
    with (
        running("nodes=2", "shadows=0", *ALONE, faults=["kill@worker1.forward:3"]) as strategy,
        pytest.raises(StateLost, match="on node 1 alone, which is gone, and without shadows there is no copy"),
    ):
        train(strategy, 1, STEPS)


@pytest.mark.exhaustive
def test_the_last_node_is_lost_state() -> None:
    with (
        running("nodes=1", faults=["kill@worker0.forward:2"]) as strategy,
        pytest.raises(StateLost, match="all nodes are gone, and the state with them"),
    ):
        train(strategy, 1, STEPS)
