"""What nodes of a ring of stages send, and the memory that they take, beside the formulas of docs/rings.md.

A layer is 1 MB here, which is what counts then; sizes are of whole chunks, so that nothing is sent between parameters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from parameter_server_examples import train
from stage_ring_examples import running
from staged_toy import staged_spec

from distributed.arithmetic import CHUNK
from distributed.ring_tmp.costs import MemoryRule
from distributed.ring_tmp.messages import Kind
from distributed.strategy import WorkloadSpec

UNITS, NODES, BYTES, STEPS, SECONDS = 512, 4, 4, 3, 60.0
ELEMENTS = UNITS * UNITS  # of each stage
MIB = 2**20


def large(stages: int) -> WorkloadSpec:
    assert ELEMENTS % CHUNK == 0
    return staged_spec(stages, units=UNITS, words=UNITS)


def stages_of(report: Mapping[str, Any]) -> list[int]:
    """How many stages each node has."""
    return list(map(len, report["cut"]["stages"]))


def sent(report: Mapping[str, Any], source: int, target: int) -> int:
    """Bytes that a node has sent another in steps, framing included."""
    kinds = (Kind.FORWARD, Kind.BACKWARD, Kind.GRADIENT, Kind.SUMS)
    link = report["processes"][f"worker {source}"]["links"][f"worker {target}"]["sent"]["by_kind"]
    found = [link[str(int(kind))] for kind in kinds if str(int(kind)) in link]
    return sum(one["payload_bytes"] + one["framing_bytes"] for one in found)


def ratios(report: Mapping[str, Any], tokens: int) -> list[float]:
    """What nodes have sent each neighbour, to what the formula says: activations to the next node and as much back, of
    which a layer makes `h` and hands `first` on; and for the copy a node's gradient, once a step.
    """
    stages, activations = stages_of(report), 2 * tokens * UNITS * BYTES
    found = []
    for node in range(NODES):
        is_last = node == NODES - 1
        formula = STEPS * stages[node] * ELEMENTS * BYTES + (0 if is_last else activations)
        found.append(sent(report, node, (node + 1) % NODES) / formula)
        if node:
            found.append(sent(report, node, node - 1) / activations)
    return found


def words_of(stages: Sequence[int], versions: int) -> list[int]:
    """By node, the elements that the formula gives it."""
    rule = MemoryRule(versions, moments=2, groups=large(4).build().plan.groups)
    return [ELEMENTS * (own * rule.own_words + stages[node - 1] * rule.shadow_words) for node, own in enumerate(stages)]


def memory(report: Mapping[str, Any]) -> list[int]:
    return [report["processes"][f"worker {node}"]["memory_bytes"] for node in range(NODES)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("schedule", "versions", "words"), [("flush", 1, 10), ("async", 2, 14)])
def test_bytes_and_memory_are_those_of_the_formulas_and_no_node_builds_the_model(
    schedule: str, versions: int, words: int
) -> None:
    spec = large(40)  # the model: 40 MB
    tokens = sum(sum(spec.build().slot_tokens(step)) for step in range(1, STEPS + 1))
    found = []
    for stages in (8, 40):
        with running(f"nodes={NODES}", "link=tcp", f"schedule={schedule}", spec=large(stages)) as strategy:
            before = memory(strategy.report())  # with the model's outlines, and no parameters yet
            train(strategy, 1, STEPS)
            strategy.state()
            report, end = strategy.report(), time.monotonic() + SECONDS
            # Who sends counts a frame when it is written, maybe after it was read.
            while min(ratios(report, tokens)) < 1.0 and time.monotonic() < end:
                report = strategy.report()
        assert all(1.0 <= ratio <= 1.02 for ratio in ratios(report, tokens))
        found.append((before, memory(report), words_of(stages_of(report), versions)))
    (small_before, small, few), (large_before, big, many) = found
    # Without what does not grow with the model: libraries, products' scratch memory, a layer's gradient on its way.
    for node in range(NODES):
        assert large_before[node] - small_before[node] < 16 * MIB  # of 40
    grown, formula = sum(big) - sum(small), BYTES * (sum(many) - sum(few))
    assert formula == words * 32 * MIB  # values for each parameter, of 32 stages more
    # Of the second step under way a node may have no complete gradients yet, neither its own nor the copy's.
    surely = (words - 2 * (versions - 1)) / words
    assert 0.85 * surely < grown / formula < 1.1
