"""Processes of a parameter server die, stand still and lose frames at named points: no step is lost, no bit differs."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from leftovers import standing_still, wait_for_end
from parameter_server_examples import IMPATIENT, STEPS, Undisturbed, running, train, undisturbed
from toy_workload import workload_spec

from distributed.errors import DistributedError
from distributed.links.listener import HANDSHAKE_SECONDS
from distributed.strategy import StateLost

SHADOWED = ["workers=2", "servers=3", "shadows=1", *IMPATIENT]


@pytest.fixture(scope="module")
def wanted() -> Undisturbed:
    return undisturbed()


def disturbed(wanted: Undisturbed, *faults: str, words: list[str] = SHADOWED) -> Mapping[str, Any]:
    """Train with failures, hold the result against the undisturbed, and return the report."""
    with running(*words, faults=faults) as strategy:
        stats = train(strategy, 1, STEPS)
        wanted.assert_equal(stats, strategy.state())
        return strategy.report()


KILLS = [
    *(f"kill@worker{number}.{phase}" for number in (0, 1) for phase in ("forward", "pushed")),
    *(
        f"kill@server{number}.{phase}"
        for number in (0, 1, 2)
        for phase in ("push", "whole", "prepared", "apply", "applied")
    ),
]
FRAMES = [
    f"{action}@{frame}"
    for action in ("drop", "corrupt")
    for frame in ("worker0.push", *(f"server{n}.{kind}" for n in (0, 1, 2) for kind in ("reply", "shadow", "sums")))
]


def assert_one_died(report: Mapping[str, Any], fault: str, step: int) -> None:
    role, number = fault.split("@")[1].split(".")[0][:-1], fault.split(".")[0][-1]
    assert report["lost"] == {"workers": 0, "servers": 0, "links": 0} | {f"{role}s": 1}
    (recovery,) = report["recoveries"]
    assert recovery["lost"] == f"{role} {number}"
    # The coordinator's count: who dies may be ahead of what it has heard from another, or hold nobody up any more.
    assert recovery["step"] <= step + 1
    assert recovery["seconds"] < HANDSHAKE_SECONDS  # no deadline had to pass


@pytest.mark.parametrize("fault", ["kill@worker1.forward", "kill@worker0.pushed", "kill@server0.whole",
                                   "kill@server1.apply", "kill@server2.applied"])  # fmt: skip
def test_a_process_may_die_anywhere(fault: str, wanted: Undisturbed) -> None:
    assert_one_died(disturbed(wanted, f"{fault}:3"), fault, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("step", "link"), [(1, "shm"), (3, "tcp")])
@pytest.mark.parametrize("fault", KILLS)
def test_every_process_may_die_everywhere(fault: str, step: int, link: str, wanted: Undisturbed) -> None:
    assert_one_died(disturbed(wanted, f"{fault}:{step}", words=[*SHADOWED, f"link={link}"]), fault, step)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["kill@worker1.forward", "kill@worker0.pushed", "kill@server0.push",
                                   "kill@server1.apply", "kill@server2.applied"])  # fmt: skip
@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_a_process_may_die_while_others_copy_as_on_a_gpu(link: str, fault: str, wanted: Undisturbed) -> None:
    report = disturbed(wanted, f"{fault}:3", words=[*SHADOWED, "staging=always", f"link={link}"])
    assert_one_died(report, fault, 3)


def assert_one_link_ended(report: Mapping[str, Any]) -> None:
    assert report["lost"] == {"workers": 0, "servers": 0, "links": 1}
    assert report["recoveries"] == []


@pytest.mark.parametrize("fault", ["corrupt@worker0.push", "drop@server1.reply"])
def test_a_damaged_frame_costs_a_link_and_no_bit(fault: str, wanted: Undisturbed) -> None:
    assert_one_link_ended(disturbed(wanted, f"{fault}:3"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("fault", FRAMES)
def test_every_frame_may_be_damaged(fault: str, link: str, wanted: Undisturbed) -> None:
    assert_one_link_ended(disturbed(wanted, f"{fault}:3", words=[*SHADOWED, f"link={link}"]))


def test_a_state_that_is_damaged_on_its_way_to_the_trainer_is_sent_again(wanted: Undisturbed) -> None:
    disturbed(wanted, f"drop@server0.state:{STEPS}", f"corrupt@server1.state:{STEPS}")


@pytest.mark.parametrize("fault", [
    pytest.param(fault, marks=[] if fault in ("stop@worker0.forward", "stop@server1.apply") else pytest.mark.exhaustive)
    for fault in (kill.replace("kill", "stop") for kill in KILLS)
])  # fmt: skip
def test_a_process_that_stood_still_too_long_is_given_up_and_ends_when_it_wakes(
    fault: str, wanted: Undisturbed
) -> None:
    # Who takes a place kills who had it; without a replacement the zombie may wake.
    # The deadline has to pass, and nobody else may miss it on a busy machine.
    words = [*SHADOWED, "replace_lost=false", "deadline_seconds=5"]
    with running(*words, faults=[f"{fault}:3"]) as strategy:
        stats = train(strategy, 1, 4)
        (zombie,) = standing_still()
        os.kill(zombie, signal.SIGCONT)
        wait_for_end(zombie)  # nobody lets it in
        stats += train(strategy, 5, STEPS)
        wanted.assert_equal(stats, strategy.state())
        assert_one_died(strategy.report(), fault, 3)


@pytest.mark.parametrize("faults", [
    ["kill@worker0.pushed:3", "kill@server1.whole:3"],
    ["kill@server0.apply:3", "kill@worker1.forward:4"],
    pytest.param(["kill@worker0.forward:3", "kill@worker1.forward:3"], marks=pytest.mark.exhaustive),
    pytest.param(["kill@worker0.forward:3", "kill@worker1.pushed:3", "kill@worker2.forward:3"],
                 marks=pytest.mark.exhaustive),
    pytest.param(["kill@server0.whole:2", "kill@server1.applied:4"], marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_several_may_die(faults: list[str], wanted: Undisturbed) -> None:
    report = disturbed(wanted, *faults)
    assert report["lost"]["workers"] + report["lost"]["servers"] == len(faults)
    assert all(recovery["seconds"] < HANDSHAKE_SECONDS for recovery in report["recoveries"])


def test_a_replacement_that_dies_is_replaced(wanted: Undisturbed) -> None:
    faults = ["kill@worker0.forward:2", "kill@worker1.forward:2", "kill@worker2.forward:2", "kill@worker3.forward:3"]
    assert disturbed(wanted, *faults, words=["workers=2", "servers=1", *IMPATIENT])["lost"]["workers"] >= 3


def test_without_replacements_the_last_worker_is_missed() -> None:
    with (
        running("workers=1", "servers=1", "replace_lost=false", faults=["kill@worker0.forward:2"]) as strategy,
        pytest.raises(DistributedError, match="no worker is left"),
    ):
        train(strategy, 1, STEPS)


@pytest.mark.parametrize("phase", ["push", pytest.param("applied", marks=pytest.mark.exhaustive)])
def test_without_shadows_a_lost_server_is_lost_state_at_once(phase: str) -> None:
    with (
        running("workers=2", "servers=2", faults=[f"kill@server1.{phase}:3"]) as strategy,
        pytest.raises(StateLost, match="shard 1 was on server 1 alone"),
    ):
        train(strategy, 1, STEPS)


@pytest.mark.parametrize("fails", ["3", "build"])
def test_an_error_in_a_worker_ends_the_run_and_is_told(fails: str) -> None:
    broken = "this toy breaks at step 3" if fails == "3" else "this toy cannot be built here"
    with (
        pytest.raises(RuntimeError, match=rf"worker [01] failed:\n(.*\n)*ValueError: {broken}"),
        running("workers=2", "servers=1", spec=workload_spec(fails=fails)) as strategy,
    ):
        train(strategy, 1, STEPS)
