"""Nodes among which parameters rotate die, stand still and lose frames at named points: no step is lost, and no bit.

Bits depend on how many nodes are configured alone (`rotation_rule`): the seats of those who are lost are taken over. A
step that somebody had applied when another was lost is applied by all; one that nobody had is made anew.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from leftovers import standing_still, wait_for_end
from parameter_server_examples import assert_equal_states, train
from rotation_examples import ALONE, IMPATIENT, STEPS, coordinator_of, disturbed, rule, running

from distributed.ring_rotate.strategy import RotateStrategy
from distributed.strategy import StateLost

PHASES = ("batches", "forward", "turn", "back", "gather", "reduce", "room", "copy", "facts", "squares", "complete",
          "summed", "applied", "told")  # fmt: skip
FRAMES = ("gather", "reduce", "room", "copy", "facts")


def assert_one_died(report: Mapping[str, Any], fault: str, step: int) -> None:
    number = fault.partition(".")[0][-1]
    assert report["lost"] == {"workers": 1, "links": 0}
    (recovery,) = report["recoveries"]
    assert recovery["lost"] == f"worker {number}"
    assert recovery["step"] <= step + 1  # by the coordinator's count: who dies may be ahead of what it has said


@pytest.mark.parametrize("fault", ["kill@worker1.reduce", "kill@worker0.applied"])
def test_a_node_may_die_anywhere(fault: str) -> None:
    assert_one_died(disturbed(f"{fault}:3", words=ALONE), fault, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("step", "link"), [(1, "shm"), (3, "tcp")])
@pytest.mark.parametrize(("phase", "number"), [(phase, index % 3) for index, phase in enumerate(PHASES)])
def test_a_node_may_die_at_every_point(phase: str, number: int, step: int, link: str) -> None:
    fault = f"kill@worker{number}.{phase}"
    assert_one_died(disturbed(f"{fault}:{step}", words=[*ALONE, f"link={link}"]), fault, step)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["kill@worker0.turn", "kill@worker1.applied"])
def test_one_of_two_may_die(fault: str) -> None:
    assert_one_died(disturbed(f"{fault}:3", words=ALONE, nodes=2), fault, 3)


def assert_one_link_ended(report: Mapping[str, Any]) -> None:
    assert report["lost"] == {"workers": 0, "links": 1}


@pytest.mark.parametrize("fault", ["corrupt@worker1.gather"])
def test_a_damaged_frame_costs_a_link_and_no_bit(fault: str) -> None:
    assert_one_link_ended(disturbed(f"{fault}:3", words=ALONE))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("phase", "number"), [(phase, index % 3) for index, phase in enumerate(FRAMES)])
@pytest.mark.parametrize("action", ["drop", "corrupt"])
def test_every_frame_may_be_damaged(action: str, phase: str, number: int) -> None:
    assert_one_link_ended(disturbed(f"{action}@worker{number}.{phase}:3", words=ALONE))


@pytest.mark.exhaustive
@pytest.mark.parametrize("faults", [
    ["kill@worker0.turn:3", "kill@worker2.settle:3"],  # it has shards to hand on, or to be given
    ["kill@worker0.turn:3", "kill@worker2.reconfigure:3"],
    ["kill@worker0.turn:2", "kill@worker2.turn:4"],
], ids=str)  # fmt: skip
def test_another_may_die_during_the_recovery_and_after_it(faults: list[str]) -> None:
    """Of nodes 0 and 2 the second copy of 2 lies on 0, and that of 0 on 1: after its loss before anything is handed on
    the shard of 2 is gone."""
    try:
        assert disturbed(*faults, words=ALONE)["lost"]["workers"] == 2
    except StateLost as lost:
        assert faults[1] != "kill@worker2.turn:4"
        assert str(lost).endswith("worker 2 and worker 0, which had its second copy, are gone")


def test_without_shadows_a_loss_leaves_only_a_checkpoint_which_is_said_in_a_sentence() -> None:
    with (
        running("nodes=3", *ALONE, "shadows=0", faults=["kill@worker1.turn:2"]) as strategy,
        pytest.raises(StateLost, match=r"^shard 1 of 3 of the parameters is lost: worker 1 is gone$"),
    ):
        train(strategy, 1, STEPS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shadows", [0, 1])
@pytest.mark.parametrize("fault", ["kill@worker1.reconfigure:1", "kill@worker1.settle:1", "kill@worker0.reconfigure:1"])
def test_a_node_may_die_while_the_ring_begins(fault: str, shadows: int) -> None:
    """Without shadows, too: the trainer has the state still, and the others begin anew."""
    assert disturbed(fault, words=[*ALONE, f"shadows={shadows}"])["lost"]["workers"] == 1


def wait_for_members(strategy: RotateStrategy, count: int) -> None:
    coordinator = coordinator_of(strategy)
    coordinator._wait(
        lambda: coordinator._membership.at_work and len(coordinator._membership.ring.order) == count,
        lambda: f"{count} members",
        seconds=60.0,
    )


def test_another_process_takes_the_place_of_one_that_is_lost() -> None:
    """It comes in at the end of a step: steps are asked for until it has."""
    with running("nodes=3", *IMPATIENT, faults=["kill@worker1.turn:2"]) as strategy:
        stats = train(strategy, 1, 3)
        coordinator = coordinator_of(strategy)
        coordinator._wait(lambda: len(coordinator._ready) == 3, lambda: "another process", seconds=60.0)
        stats += train(strategy, 4, STEPS)
        wait_for_members(strategy, 3)
        assert stats == rule(3).stats
        assert_equal_states(strategy.state(), rule(3).state)
        owners = coordinator._membership.seating.owners
        assert sorted(owners) == [0, 2, 3]


@pytest.mark.exhaustive
def test_a_node_that_stands_still_is_given_up_and_is_not_let_in_when_it_wakes() -> None:
    # No machine that still gets on with anything keeps a process from its cores for so long.
    words = ["nodes=3", "replace_lost=false", "heartbeat_seconds=0.5", "deadline_seconds=10"]
    with running(*words, faults=["stop@worker1.turn:3"]) as strategy:
        stats = train(strategy, 1, 5)
        (zombie,) = standing_still()
        os.kill(zombie, signal.SIGCONT)
        wait_for_end(zombie)  # nobody lets it in
        stats += train(strategy, 6, STEPS)
        assert stats == rule(3).stats
        assert_equal_states(strategy.state(), rule(3).state)
        assert strategy.report()["lost"]["workers"] == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", ["forward", "back", "gather", "reduce"])
def test_a_thread_that_hangs_is_given_up(phase: str) -> None:
    report = disturbed(f"hang@worker1.{phase}:3", words=[*ALONE, "watchdog_seconds=5"])
    assert report["lost"] == {"workers": 1, "links": 0}
