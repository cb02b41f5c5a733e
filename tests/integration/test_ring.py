"""`ring_allreduce` over real processes: the bits of its rule, who is linked to whom, bytes, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from leftovers import possessions, sockets_of
from parameter_server_examples import assert_equal_states, train
from ring_examples import STEPS, TOY, by_the_rule, options, process_ids, running
from toy_workload import BOTH_CLIPPINGS, CLIPPING, workload_spec

from distributed.ring.messages import Kind
from distributed.ring.strategy import build
from distributed.single import SingleStrategy
from distributed.strategy import StepStats, WorkloadSpec
from nmt.config import compose
from nmt.training.workload import workload_spec as workload_spec_of

BYTES = 4
SECONDS = 60.0  # far more than anything takes until it is counted


def smoke_spec(*words: str) -> WorkloadSpec:
    """A small translation model with dropout and clipping: 6 slots in 3 groups."""
    words = (
        *("scale=smoke", "tracking=none", "threads=1", "data.options={train_size: 200, test_size: 4}", "batch.size=12"),
        *("batch.micro_batches=6", "batch.groups=3", "model.decoder.cell.dropout_input=0.2", "optimizer.clip_norm=0.5"),
        *words,
    )
    return workload_spec_of(compose(list(words)), "cpu")


def single(spec: WorkloadSpec, steps: int) -> tuple[list[StepStats], SingleStrategy]:
    strategy = SingleStrategy({})
    strategy.start(spec)
    return train(strategy, 1, steps), strategy


@pytest.mark.parametrize("clipping", [CLIPPING, BOTH_CLIPPINGS], ids=["clipped", "parameters clipped too"])
@pytest.mark.parametrize(("workers", "link"), [(2, "shm"), (3, "tcp")])
def test_a_ring_has_the_bits_of_its_rule(workers: int, link: str, clipping: dict[str, float]) -> None:
    spec = workload_spec(groups=5, clipping=clipping)
    with running(f"workers={workers}", f"link={link}", spec=spec) as strategy:
        stats = train(strategy, 1, STEPS)
        by_the_rule(workers, spec).assert_equal(stats, strategy.state())
    assert any(one.gradient_norm > CLIPPING["max_norm"] for one in stats)  # there was something to clip


@pytest.mark.parametrize("link", ["shm", pytest.param("tcp", marks=pytest.mark.exhaustive)])
def test_gradients_that_go_through_copies_as_on_a_gpu_have_the_same_bits(link: str) -> None:
    wanted = by_the_rule(3)
    with running("workers=3", "staging=always", f"link={link}") as strategy:
        stats = train(strategy, 1, 3)
        state = strategy.state()
        stats += train(strategy, 4, STEPS)
        wanted.assert_equal(stats, strategy.state())
        strategy.load_state(state)
        wanted.assert_equal(stats[:3] + train(strategy, 4, STEPS), strategy.state())


def test_a_ring_of_one_is_the_single_process() -> None:
    stats, process = single(TOY, STEPS)
    with running("workers=1") as strategy:
        assert train(strategy, 1, STEPS) == stats
        assert_equal_states(strategy.state(), process.state())


@pytest.mark.exhaustive
@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5])
def test_rings_of_all_sizes_and_several_buckets_have_the_bits_of_the_rule(workers: int, link: str) -> None:
    spec = smoke_spec("batch.groups=6", "model.decoder.units=320", "model.encoder.units=160",
                      "model.embedding.units=160")  # fmt: skip
    with running(f"workers={workers}", f"link={link}", "bucket_mib=1", spec=spec) as strategy:
        stats, state = train(strategy, 1, STEPS), strategy.state()
    assert sum(one.numel() for one in state["parameters"].values()) > 1_000_000
    by_the_rule(workers, spec, 2**20).assert_equal(stats, state)


def parameters_apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in other)


@pytest.mark.parametrize("workers", [3, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_it_is_the_single_process_but_for_rounding(workers: int) -> None:
    spec = smoke_spec("optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=0.5")
    process = SingleStrategy({})
    process.start(spec)
    with running(f"workers={workers}", spec=spec) as strategy:
        for one in range(1, STEPS + 1):
            wanted = process.step(one, probe=one == 2)
            found = strategy.step(one, probe=one == 2, horizon=1 if one == 1 else STEPS)
            assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
            assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-6)
            exact = ("index", "target_tokens", "source_tokens", "learning_rate")
            assert [getattr(found, name) for name in exact] == [getattr(wanted, name) for name in exact]
            assert (found.probe is not None) == (one == 2)
            if found.probe is not None and wanted.probe is not None:
                for kind in ("gradients", "updates", "inner"):
                    norms, expected = getattr(found.probe, kind), getattr(wanted.probe, kind)
                    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-6), kind
        state = strategy.state()
        assert parameters_apart(state["parameters"], process.state()["parameters"]) < 1e-6
        with strategy.evaluation_model() as model:
            assert all(torch.equal(own, state["parameters"][name]) for name, own in model.named_parameters())


def test_gradients_agree_with_the_single_process_to_a_millionth_of_their_norm() -> None:
    """With plain SGD and a rate of one, a step's change is the gradient."""
    spec = smoke_spec("optimizer=sgd", "optimizer.momentum=0", "optimizer.clip_norm=0", "optimizer.learning_rate=1")
    before = SingleStrategy({})
    before.start(spec)
    first, (stats, process) = before.state()["parameters"], single(spec, 1)
    with running("workers=3", spec=spec) as strategy:
        strategy.step(1)
        found = strategy.state()["parameters"]
    wanted = process.state()["parameters"]
    apart = math.sqrt(sum(float((found[name] - wanted[name]).double().square().sum()) for name in wanted))
    moved = math.sqrt(sum(float((wanted[name] - first[name]).double().square().sum()) for name in wanted))
    assert moved == pytest.approx(stats[0].gradient_norm, rel=1e-3)
    assert apart <= 1e-6 * stats[0].gradient_norm


def established(process: int) -> set[tuple[str, str]]:
    """A process's TCP connections: own end, other end."""
    inodes = set(sockets_of(process))
    lines = (line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:])
    return {(words[1], words[2]) for words in lines if words[9] in inodes and words[3] == "01"}


def linked_pairs(processes: Mapping[int, int]) -> set[frozenset[int]]:
    """Who is connected to whom of these nodes, by number with their processes."""
    ends = {own: node for node, process in processes.items() for own, _ in established(process)}
    return {
        frozenset((node, ends[other]))
        for node, process in processes.items()
        for _, other in established(process)
        if other in ends
    }


def sent_on(report: Mapping[str, Any]) -> list[dict[Kind, Mapping[str, int]]]:
    """By node of a ring of four, what it sent its successor in steps, by kind."""
    kinds = (Kind.REDUCE, Kind.GATHER, Kind.FACTS)
    links = [report["processes"][f"worker {one}"]["links"][f"worker {(one + 1) % 4}"] for one in range(4)]
    return [{kind: link["sent"]["by_kind"][str(int(kind))] for kind in kinds} for link in links]


def bytes_of_a_step(sent: Mapping[Kind, Mapping[str, int]]) -> float:
    return sum(one["payload_bytes"] + one["framing_bytes"] for one in sent.values()) / STEPS


def test_four_nodes_are_linked_to_their_neighbours_alone_and_send_what_the_formula_says() -> None:
    with running("workers=4", "link=tcp") as strategy:
        train(strategy, 1, STEPS)
        pairs = linked_pairs(process_ids(strategy))
        state = strategy.state()
        elements = sum(one.numel() for one in state["parameters"].values())
        formula = 2 * 3 / 4 * elements * BYTES
        report, end = strategy.report(), time.monotonic() + SECONDS
        # Who sends counts a frame when it is written, maybe after it was read.
        while min(map(bytes_of_a_step, sent_on(report))) < formula and time.monotonic() < end:
            report = strategy.report()
    assert pairs == {frozenset(pair) for pair in ((0, 1), (1, 2), (2, 3), (3, 0))}
    for number, sent in enumerate(sent_on(report)):
        links = report["processes"][f"worker {number}"]["links"]
        assert links.keys() - {"coordinator"} == {f"worker {(number + 1) % 4}", f"worker {(number - 1) % 4}"}
        gradients = sum(sent[kind]["payload_bytes"] for kind in (Kind.REDUCE, Kind.GATHER)) / STEPS
        assert 1.0 <= bytes_of_a_step(sent) / formula <= 1.02
        assert gradients == pytest.approx(formula, rel=1e-3)  # segments are multiples of 16 elements


def test_a_node_has_two_gradients_in_turn() -> None:
    """They alone are in shared memory, and are all that it has of it."""
    with running("workers=3", "link=shm", spec=workload_spec(groups=3)) as strategy:
        train(strategy, 1, STEPS)
        memory = possessions(set(process_ids(strategy).values())).memory
    assert len(memory) == 2 * 3


def test_a_checkpoint_is_of_no_number_of_nodes_and_of_no_strategy() -> None:
    with running("workers=3") as three:
        first = train(three, 1, 2)
        state = three.state()
        later = train(three, 3, 4)
        three.load_state(state)  # back in the same processes
        assert train(three, 3, 4) == later
        end = three.state()
    process = SingleStrategy({})
    process.start(TOY)
    process.load_state(state)
    with running("workers=2") as two:
        two.load_state(state)
        again = train(two, 3, 4)
        assert_equal_states(two.state(), by_the_rule({1: 3, 2: 3, 3: 2, 4: 2}, steps=4).state)
        process.load_state(two.state())
    assert first + again == by_the_rule({1: 3, 2: 3, 3: 2, 4: 2}, steps=4).stats
    assert process.step(5).loss == pytest.approx(by_the_rule(3, steps=5).stats[4].loss)
    assert_equal_states(end, by_the_rule(3, steps=4).state)


def test_a_run_is_halted_at_the_last_step_that_was_begun_and_at_one_that_is_not_finite() -> None:
    with running("workers=2") as strategy:
        stats = [strategy.step(1, horizon=50)]
        last = strategy.halt()
        assert 1 < last < 50
        stats += train(strategy, 2, last)
        state = strategy.state()
        by_the_rule(2, steps=last).assert_equal(stats, state)
        next(iter(state["parameters"].values())).fill_(math.inf)
        strategy.load_state(state)
        assert not math.isfinite(strategy.step(last + 1, horizon=last + 9).loss)
        assert strategy.halt() == last + 1
        assert_equal_states(strategy.state(), state)


def test_what_nodes_did_is_reported() -> None:
    with running("workers=2") as strategy:
        train(strategy, 1, STEPS)
        journals, report = strategy.journals(), strategy.report()
    assert set(journals) == {"timeline-worker-0.jsonl", "timeline-worker-1.jsonl"}
    assert (report["steps"], report["lost"], report["recovery"]) == (STEPS, {"workers": 0, "links": 0}, {"count": 0})
    assert 0.0 <= report["idle"]["workers"] <= report["idle"]["workers_max"] < 1.0
    assert report["memory"]["total_bytes"] > report["memory"]["worker_bytes"] > 0
    assert report["traffic"]["worker_sent_bytes_per_step"] > 0
    for one in report["processes"].values():
        assert 0.0 < one["times"]["busy"] < one["times"]["wall"]


@pytest.mark.parametrize("engine", ["gloo"])
def test_an_engine_of_torch_sums_the_same_buckets_and_has_the_same_bits_again(engine: str) -> None:
    wanted, process = single(TOY, STEPS)
    seen = []
    for _ in range(2):
        strategy = build(options("workers=3", f"engine={engine}", "bucket_mib=1"))
        try:
            strategy.start(TOY)
            stats = train(strategy, 1, STEPS)
            seen.append((stats, strategy.state()))
        finally:
            strategy.close()
    assert seen[0][0] == seen[1][0]
    assert_equal_states(seen[0][1], seen[1][1])
    assert [one.loss for one in stats] == pytest.approx([one.loss for one in wanted], rel=1e-6)
    assert parameters_apart(seen[0][1]["parameters"], process.state()["parameters"]) < 1e-5
