"""Nodes of a ring of stages that are not equally fast: each gets work by what it measured, and no bit differs."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from core_quotas import CoreQuota, refusal_of_quotas
from parameter_server_examples import train, undisturbed
from stage_ring_examples import STEPS, coordinator_of, process_ids, running, single
from staged_toy import staged_spec

from distributed.ring_tmp.speeds import NodeSpeeds


def test_a_node_with_half_the_processor_time_gets_half_the_work() -> None:
    """Both have so little of a core, and that before all others, that nothing else on the machine decides it.

    A half, roughly: in windows of a tenth of a second a busy kernel has given one 0.3 of the other's, too.
    """
    if refused := refusal_of_quotas():
        pytest.skip(refused)
    spec, name = staged_spec(stages=24), f"nmt-{os.getpid()}"
    wanted = undisturbed(spec, 2)
    with (
        CoreQuota(f"{name}-more", 0.4) as more,
        CoreQuota(f"{name}-less", 0.2) as less,
        running("nodes=2", "speeds=measured", spec=spec) as strategy,
    ):
        processes = process_ids(strategy)
        more.add(processes[0])
        less.add(processes[1])
        wanted.assert_equal(train(strategy, 1, 2), strategy.state())
        cut = strategy.report()["cut"]
    speeds = dict(zip(cut["nodes"], cut["speeds"], strict=True))
    work = {node: cut["seconds"][place] * speeds[node] for place, node in enumerate(cut["nodes"])}
    assert speeds[0] == 1.0
    assert 0.1 < speeds[1] < 0.85
    assert 0.1 < work[1] / work[0] < 0.85
    assert sum(map(len, cut["stages"])) == 24


def test_a_fast_node_has_the_stage_that_cannot_be_cut_and_no_bit_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeSpeeds, "of", lambda self, numbers: {number: (1.0, 0.25)[number] for number in numbers})
    spec = staged_spec(words=6000)  # the output is most of it
    wanted = undisturbed(spec, 3)
    with running("nodes=2", spec=spec) as strategy:
        stats = [strategy.step(step, probe=step == 2) for step in (1, 2, 3)]
        state, cut = strategy.state(), strategy.report()["cut"]
    assert (cut["nodes"], cut["speeds"]) == ([1, 0], [0.25, 1.0])
    assert cut["stages"][1][-1] == "output"
    wanted.assert_equal([replace(one, probe=None) for one in stats], state)


@pytest.mark.exhaustive
def test_who_comes_later_is_measured_before_it_is_given_a_place() -> None:
    with running("nodes=3", "speeds=measured", faults=["kill@worker1.forward:3"]) as strategy:
        stats = train(strategy, 1, 4)
        coordinator = coordinator_of(strategy)
        ring = coordinator._membership
        coordinator._wait(lambda: len(ring.members) == 3 and ring.at_work, lambda: "another node", seconds=300.0)
        assert coordinator._speeds.has(ring.members)
        stats += train(strategy, 5, STEPS)
        single().assert_equal(stats, strategy.state())
