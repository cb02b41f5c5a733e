"""What nodes among which parameters rotate send, hold and take of memory, beside the formulas of docs/rings.md.

A layer is 1 MB here, which is what counts then, and a group by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from parameter_server_examples import train
from rotation_examples import process_ids, running
from staged_toy import staged_spec
from test_ring import linked_pairs

from distributed.ring_rotate.computation import plan_of
from distributed.ring_rotate.formulas import bytes_sent, resident_bytes
from distributed.ring_rotate.messages import Kind
from distributed.strategy import WorkloadSpec

UNITS, NODES, BYTES, STEPS = 512, 4, 4, 3
ELEMENTS = UNITS * UNITS  # of each stage
MIB = 2**20
SECONDS = 60.0  # far more than anything takes until it is counted


def large(stages: int) -> WorkloadSpec:
    return staged_spec(stages, units=UNITS, words=UNITS, groups=NODES)


def sent_on(report: Mapping[str, Any]) -> list[dict[int, Mapping[str, int]]]:
    """By node, what it sent its successor, by kind; signs of life left out."""
    links = [report["processes"][f"worker {one}"]["links"][f"worker {(one + 1) % NODES}"] for one in range(NODES)]
    return [
        {int(kind): one for kind, one in link["sent"]["by_kind"].items() if int(kind) in set(Kind)} for link in links
    ]


def bytes_of(sent: Mapping[int, Mapping[str, int]]) -> int:
    return sum(one["payload_bytes"] + one["framing_bytes"] for one in sent.values())


def held(report: Mapping[str, Any], what: str) -> list[int]:
    return [report["processes"][f"worker {node}"][what] for node in range(NODES)]


def test_four_nodes_are_linked_to_their_neighbours_alone_and_send_and_hold_what_the_formulas_say() -> None:
    stages = 8
    plan, _ = plan_of(large(stages).build(), NODES)
    formulas = [bytes_sent(plan, node, shadows=True) for node in range(NODES)]
    with running(f"nodes={NODES}", "link=tcp", spec=large(stages)) as strategy:
        train(strategy, 1, STEPS)
        pairs = linked_pairs(process_ids(strategy))
        report, end = strategy.report(), time.monotonic() + SECONDS
        # Who sends counts a frame when it is written, maybe after it was read.
        while sum(map(bytes_of, sent_on(report))) < STEPS * sum(formulas) and time.monotonic() < end:
            report = strategy.report()
    assert pairs == {frozenset(pair) for pair in ((0, 1), (1, 2), (2, 3), (3, 0))}
    whole = stages * ELEMENTS * BYTES
    for node, sent in enumerate(sent_on(report)):
        links = report["processes"][f"worker {node}"]["links"]
        assert links.keys() - {"coordinator"} == {f"worker {(node + 1) % NODES}", f"worker {(node - 1) % NODES}"}
        # Gathered twice but for two layers of eight, summed once, and a quarter for the second copy.
        assert formulas[node] == (3 - 2 / 8) * (NODES - 1) / NODES * whole + whole / NODES
        payload = sum(sent[kind]["payload_bytes"] for kind in (Kind.GATHER, Kind.REDUCE, Kind.COPY))
        assert payload == STEPS * formulas[node]
        assert 1.0 <= bytes_of(sent) / (STEPS * formulas[node]) <= 1.02
    # Parameters, moments and gradient of a quarter, twice; parameters and gradients of two layers.
    assert resident_bytes(plan, moments=2, shadows=True) == 2 * 4 * whole / NODES + 4 * ELEMENTS * BYTES
    assert max(held(report, "model_bytes")) <= resident_bytes(plan, moments=2, shadows=True)
    assert report["cut"]["groups"] == [[f"layer {number}"] for number in range(stages - 1)] + [["output"]]


@pytest.mark.exhaustive
def test_memory_grows_with_the_model_as_the_formula_says_and_no_node_has_all_of_it() -> None:
    found = []
    for stages in (8, 40):
        with running(f"nodes={NODES}", "link=tcp", spec=large(stages)) as strategy:
            before = held(strategy.report(), "memory_bytes")  # with the model's outlines, and no parameters yet
            train(strategy, 1, STEPS)
            strategy.state()
            found.append((before, held(strategy.report(), "memory_bytes")))
    (small_before, small), (large_before, big) = found
    # Without what does not grow with the model: libraries, scratch memory, layers on their way. Activations do:
    # some 5 MB of a node, to 64.
    for node in range(NODES):
        assert large_before[node] - small_before[node] < 16 * MIB  # of 40
    grown, formula = sum(big) - sum(small), 2 * 4 * 32 * ELEMENTS * BYTES
    assert 0.85 < grown / formula < 1.15
