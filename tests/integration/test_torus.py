"""`ring_tmp` with several rings over real processes: the bits of one process, who is linked to whom, losses."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from parameter_server_examples import assert_equal_states, started, train, undisturbed
from stage_ring_examples import STEPS, one_thread, process_ids
from staged_toy import staged_spec
from test_ring import linked_pairs
from test_stage_ring_processes import in_one_process, translated, translation

from distributed.ring_tmp.messages import Kind
from distributed.ring_torus.strategy import TorusStrategy
from distributed.single import SingleStrategy
from distributed.strategy import StateLost, WorkloadSpec
from nmt.config import compose
from nmt.training.fit import strategy_options

TOY = staged_spec(groups=4)
ACROSS = (Kind.ACROSS_REDUCE, Kind.ACROSS_GATHER, Kind.ACROSS_WORD)


@contextmanager
def running(
    nodes: int, rings: int, *words: str, faults: Sequence[str] = (), spec: WorkloadSpec = TOY
) -> Iterator[TorusStrategy]:
    """Several rings with their processes; afterwards none of them is left."""
    # Who measures takes half a second, and lays links where the speeds want them.
    words = (f"nodes={nodes}", f"rings={rings}", "speeds=equal", *words)
    ring = ("scale=smoke", "threads=1", "batch.micro_batches=8", "distribution=ring_tmp")
    config = compose([*ring, *(f"distribution.{word}" for word in words)])
    asked = strategy_options(config, "0123456789ab/s1", Path("nowhere"), 1) | {"faults": list(faults)}
    with one_thread(), started(TorusStrategy(asked), spec) as strategy:
        yield strategy


def links_of(report: Mapping[str, Any], number: int) -> dict[int, Mapping[str, Any]]:
    """By number of the node at the other end, what a node has sent it, by kind."""
    links = report["processes"][f"worker {number}"]["links"]
    return {int(name.split()[1]): one["sent"]["by_kind"] for name, one in links.items() if name != "coordinator"}


def sent_across(report: Mapping[str, Any], number: int, kinds: Sequence[Kind] = ACROSS) -> int:
    """Bytes that a node has sent across rings, framing included."""
    found = [
        one[str(int(kind))] for one in links_of(report, number).values() for kind in kinds if str(int(kind)) in one
    ]
    return sum(one["payload_bytes"] + one["framing_bytes"] for one in found)


@pytest.mark.parametrize(("nodes", "rings", "link"), [
    (1, 2, "shm"),
    (2, 2, "tcp"),
    pytest.param(2, 2, "shm", marks=pytest.mark.exhaustive),
    pytest.param(1, 3, "tcp", marks=pytest.mark.exhaustive),
    pytest.param(3, 2, "shm", marks=pytest.mark.exhaustive),
    pytest.param(2, 4, "shm", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_rings_have_the_bits_of_one_process_and_links_to_neighbours_alone(nodes: int, rings: int, link: str) -> None:
    wanted = in_one_process(TOY, STEPS, probed=3, scale=0.5)
    with running(nodes, rings, f"link={link}") as strategy:
        stats = [strategy.step(1, horizon=2), strategy.step(2, horizon=2), strategy.step(3, probe=True, horizon=3)]
        stats += [strategy.step(step, 0.5, horizon=STEPS) for step in range(4, STEPS + 1)]
        wanted.assert_equal(stats, strategy.state())
        pairs = linked_pairs(process_ids(strategy)) if link == "tcp" else None
        report = strategy.report()
    assert any(one.gradient_norm > 0.05 for one in stats)  # there was something to clip
    neighbours = {
        frozenset(pair)
        for ring in range(rings)
        for node in range(nodes)
        for pair in (
            (ring * nodes + node, ring * nodes + (node + 1) % nodes),
            (ring * nodes + node, (ring + 1) % rings * nodes + node),
        )
        if pair[0] != pair[1]
    }
    assert pairs in (None, neighbours)
    for number in range(nodes * rings):
        assert {frozenset((number, other)) for other in links_of(report, number)} <= neighbours
        assert sent_across(report, number, [Kind.ACROSS_REDUCE]) > 0
    assert report["cut"]["rings"] == rings
    assert sum(map(len, report["cut"]["stages"])) == 6
    assert (report["steps"], report["recovery"]) == (STEPS, {"count": 0})


@pytest.mark.exhaustive
@pytest.mark.parametrize(("nodes", "rings"), [(2, 2), (1, 4)])
def test_across_rings_go_the_bytes_of_the_formula(nodes: int, rings: int) -> None:
    units, steps = 512, 3
    spec = staged_spec(8, units=units, words=units, groups=4)
    with running(nodes, rings, "link=tcp", spec=spec) as strategy:
        train(strategy, 1, steps)

        def ratios() -> list[float]:
            report = strategy.report()
            own = [units * units * len(stages) for stages in report["cut"]["stages"]]  # parameters, by place in a ring
            formula = [2 * (rings - 1) / rings * own[number % nodes] * 4 * steps for number in range(nodes * rings)]
            return [sent_across(report, number) / formula[number] for number in range(nodes * rings)]

        end = time.monotonic() + 60.0
        while min(ratios()) < 1.0 and time.monotonic() < end:
            pass  # who sends counts a frame when it is written, maybe after it was read
        found = ratios()
    assert all(1.0 <= ratio <= 1.02 for ratio in found)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "nodes"), [("gru", 1), ("gru", 2), ("transformer", 1), ("transformer", 3)])
def test_translation_models_have_the_bits_of_one_process(name: str, nodes: int) -> None:
    with running(nodes, 2, "speeds=measured", spec=translation(name)) as strategy:
        stats = [strategy.step(step, probe=step == 2) for step in (1, 2, 3)]
        translated(name).assert_equal(stats, strategy.state())


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rings", "words"), [
    (4, ["batch.groups=4", "optimizer.clip_embedding_norm=0.01"]),
    (3, ["batch.groups=4", "model.embedding.tie_output=true"]),
])  # fmt: skip
def test_other_models_and_shares_have_the_bits_of_one_process(rings: int, words: list[str]) -> None:
    spec = translation("gru", *words)
    with running(1, rings, spec=spec) as strategy:
        undisturbed(spec, 3).assert_equal(train(strategy, 1, 3), strategy.state())


@pytest.mark.parametrize(("nodes", "groups"), [(1, 2), pytest.param(2, 3, marks=pytest.mark.exhaustive)])
def test_a_ring_may_have_nothing_to_compute_of_a_step(nodes: int, groups: int) -> None:
    """Slot 1 of every second step is empty, and is all that the second ring has of it."""
    spec = staged_spec(groups=groups, each=1)
    with running(nodes, groups, spec=spec) as strategy:
        undisturbed(spec, STEPS).assert_equal(train(strategy, 1, STEPS), strategy.state())


@pytest.mark.exhaustive
def test_a_checkpoint_is_of_no_number_of_rings_and_nodes() -> None:
    wanted = undisturbed(TOY, STEPS)
    process = SingleStrategy({})
    process.start(TOY)
    stats = train(process, 1, 2)
    with running(1, 3) as three:
        three.load_state(process.state())
        stats += train(three, 3, 4)
        state = three.state()
        later = train(three, 5, STEPS)
        three.load_state(state)  # back in the same processes
        assert train(three, 5, STEPS) == later
        wanted.assert_equal(stats + later, three.state())
    with running(2, 2) as four:
        four.load_state(state)
        wanted.assert_equal(stats + train(four, 5, STEPS), four.state())
    process.load_state(state)
    assert train(process, 5, STEPS) == later
    assert_equal_states(process.state(), wanted.state)


@pytest.mark.exhaustive
def test_a_run_is_halted_at_a_step_that_is_not_finite_and_goes_on_behind_it() -> None:
    spec = staged_spec(groups=4, bad_step=3)
    wanted = undisturbed(spec, STEPS)
    with running(2, 2, spec=spec) as strategy:
        stats = [strategy.step(step, horizon=STEPS) for step in (1, 2, 3)]
        assert strategy.halt() == 3
        assert strategy.state()["updates"] == 2
        stats += train(strategy, 4, STEPS)
        assert_equal_states(strategy.state(), wanted.state)
    assert not math.isfinite(stats[2].loss)
    assert [one.loss for one in stats if one.index != 3] == [one.loss for one in wanted.stats if one.index != 3]


# ------------------------------------------------------------------------------------------------------- losses

PHASES = ("forward", "backward", "shipped", "apply", "applied", "told")
FRAMES = ("forward", "sums", "reduce", "gather", "across")
ALONE = ["replace_lost=false"]
IMPATIENT = ["deadline_seconds=10", "heartbeat_seconds=0.5"]  # no machine keeps a process from its cores for so long


def disturbed(nodes: int, rings: int, *faults: str, words: Sequence[str] = ALONE) -> Mapping[str, Any]:
    """Train with failures, and hold the result against one process; returns the report."""
    with running(nodes, rings, *words, faults=faults) as strategy:
        stats = train(strategy, 1, STEPS)
        state, report = strategy.state(), strategy.report()
    undisturbed(TOY, STEPS).assert_equal(stats, state)
    return report


def assert_was_lost(report: Mapping[str, Any], number: int) -> None:
    """Others may have been lost, too: a process that gets no time on a core for a deadline is."""
    recoveries = {one["lost"]: one for one in report["recoveries"]}
    assert recoveries[f"worker {number}"]["seconds"] >= 0.0


def test_a_node_may_die_and_the_rings_that_are_left_lose_no_step(caplog: pytest.LogCaptureFixture) -> None:
    report = disturbed(1, 2, "kill@worker1.applied:3")
    assert_was_lost(report, 1)
    assert report["cut"]["rings"] == 1
    assert ": worker 1 was lost at step " in caplog.text


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "phase"), [(number, phase) for number in range(4) for phase in PHASES])
def test_every_node_may_die_everywhere(number: int, phase: str) -> None:
    words = [*ALONE, f"link={'tcp' if number % 2 else 'shm'}"]
    assert_was_lost(disturbed(2, 2, f"kill@worker{number}.{phase}:{1 + number % 3}", words=words), number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("phase", FRAMES)
@pytest.mark.parametrize("action", ["drop", "corrupt"])
def test_every_frame_may_be_lost_or_damaged(action: str, phase: str) -> None:
    report = disturbed(2, 2, f"{action}@worker2.{phase}:3", words=[*ALONE, "heartbeat_seconds=0.2"])
    assert report["lost"]["links"] + report["lost"]["workers"] >= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["kill@worker0.halt:3", "kill@worker4.halt:3", "kill@worker3.halt:4"])
def test_rings_that_are_mended_may_be_broken_again(fault: str) -> None:
    """Whoever stands at another step is not killed; and of three rings any two nodes may go."""
    assert_was_lost(disturbed(2, 3, "kill@worker1.backward:3", fault), 1)


@pytest.mark.exhaustive
def test_another_process_takes_the_place_of_a_lost_one() -> None:
    report = disturbed(2, 2, "kill@worker1.forward:3", words=[])
    assert_was_lost(report, 1)
    assert report["cut"]["rings"] == 2
    assert "worker 4" in report["processes"]  # numbers are given once


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [ALONE, []], ids=["fewer", "replaced"])
def test_a_node_that_stands_still_too_long_is_given_up(words: list[str]) -> None:
    report = disturbed(2, 2, "stop@worker3.backward:3", words=[*IMPATIENT, *words])
    assert_was_lost(report, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("lost", "is_over"), [((1, 3), True), ((0, 3), False)])
def test_a_stage_whose_holders_are_all_lost_is_lost_state(lost: tuple[int, int], is_over: bool) -> None:
    with running(2, 2, *ALONE) as strategy:
        stats = train(strategy, 1, 2)
        processes = process_ids(strategy)
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for number in lost:
                os.kill(processes[number], sent)
        if is_over:
            with pytest.raises(
                StateLost, match=r"^nobody has the state of .*: it is gone with its node of every ring$"
            ):
                train(strategy, 3, STEPS)
        else:
            undisturbed(TOY, STEPS).assert_equal(stats + train(strategy, 3, STEPS), strategy.state())


@pytest.mark.exhaustive
def test_a_loss_at_rest_costs_no_step() -> None:
    with running(2, 2, *ALONE) as strategy:
        stats = train(strategy, 1, 3)
        os.kill(process_ids(strategy)[0], signal.SIGKILL)
        strategy.state()
        undisturbed(TOY, STEPS).assert_equal(stats + train(strategy, 4, STEPS), strategy.state())
