"""`ring_tmp` over real processes: the bits of one process, who is linked to whom, checkpoints, what cannot be cut."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from leftovers import possessions
from parameter_server_examples import Undisturbed, assert_equal_states, train, undisturbed
from stage_ring_examples import STEPS, TOY, one_thread, process_ids, running, single
from staged_toy import staged_spec
from test_ring import linked_pairs

from distributed.errors import DistributedError
from distributed.ring_tmp.messages import Kind
from distributed.single import SingleStrategy
from distributed.strategy import WorkloadSpec
from nmt.config import compose
from nmt.training.workload import workload_spec

SIZES = ["model.embedding.units=16", "model.encoder.units=16", "model.decoder.units=16"]
MODELS = {
    "gru": ["model=attentional", *SIZES, "model.decoder.cell.dropout_input=0.2"],
    "lstm": ["model=attentional", *SIZES, "model.encoder.cell.kind=lstm", "model.decoder.cell.kind=lstm",
             "model.encoder.cell.dropout_input=0.2"],
    "transformer": ["model=transformer", "model.encoder.layers=2", "model.decoder.layers=2", *SIZES],
}  # fmt: skip


def translation(name: str, *words: str) -> WorkloadSpec:
    """A small translation model with clipping, label smoothing and cut words: 4 slots in 2 groups."""
    words = (
        *("data=toy_copy", "data.options.train_size=60", "data.options.vocabulary=60", "batch.size=12", "threads=1"),
        *("batch.micro_batches=4", "batch.groups=2", "loss.vocab_chunks=4", "loss.label_smoothing=0.1"),
        *("optimizer.clip_norm=0.05", "tracking=none", *MODELS[name], *words),
    )
    return workload_spec(compose(list(words)), "cpu")


def in_one_process(spec: WorkloadSpec, steps: int, probed: int, scale: float = 1.0) -> Undisturbed:
    """Steps of which one is probed, and behind which the rate has a factor."""
    with one_thread():
        process = SingleStrategy({})
        process.start(spec)
        stats = [process.step(one, scale if one > probed else 1.0, probe=one == probed) for one in range(1, steps + 1)]
        return Undisturbed(stats, process.state())


@cache
def translated(name: str) -> Undisturbed:
    """What one process makes of a translation model."""
    return in_one_process(translation(name), 3, probed=2)


@pytest.mark.parametrize(("nodes", "link"), [
    (3, "shm"),
    pytest.param(1, "auto", marks=pytest.mark.exhaustive),
    pytest.param(2, "tcp", marks=pytest.mark.exhaustive),
    pytest.param(4, "shm", marks=pytest.mark.exhaustive),
    pytest.param(6, "tcp", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_a_ring_has_the_bits_of_one_process_probes_and_rates_included(nodes: int, link: str) -> None:
    wanted = in_one_process(TOY, STEPS, probed=3, scale=0.5)
    with running(f"nodes={nodes}", f"link={link}") as strategy:
        stats = [strategy.step(1, horizon=2), strategy.step(2, horizon=2), strategy.step(3, probe=True, horizon=3)]
        stats += [strategy.step(step, 0.5, horizon=STEPS) for step in range(4, STEPS + 1)]
        wanted.assert_equal(stats, strategy.state())
        with strategy.evaluation_model() as model:
            own = dict(model.named_parameters())
            assert all(bool((own[name] == one).all()) for name, one in wanted.state["parameters"].items())
    probe = stats[2].probe
    assert probe is not None
    assert min(probe.inner.values()) > 0.0
    assert any(one.gradient_norm > 0.05 for one in stats)  # there was something to clip


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        pytest.param(name, nodes, marks=[] if (name, nodes) == ("gru", 2) else [pytest.mark.exhaustive])
        for name in MODELS
        for nodes in (1, 2, 3, 4)
    ],
)
def test_translation_models_have_the_bits_of_one_process(name: str, nodes: int) -> None:
    with running(f"nodes={nodes}", spec=translation(name)) as strategy:
        stats = [strategy.step(step, probe=step == 2) for step in (1, 2, 3)]
        translated(name).assert_equal(stats, strategy.state())


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [
    ["loss.vocab_chunks=1"],
    ["model.embedding.tie_output=true"],
    ["batch.groups=4", "optimizer.clip_embedding_norm=0.01"],
    ["training.precision=bf16", "loss.vocab_chunks=1"],
])  # fmt: skip
def test_other_models_and_cuts_have_the_bits_of_one_process(words: list[str]) -> None:
    spec = translation("gru", *words)
    wanted = undisturbed(spec, 3)
    with running("nodes=2", spec=spec) as strategy:
        wanted.assert_equal(train(strategy, 1, 3), strategy.state())


def test_four_nodes_are_linked_to_their_neighbours_alone() -> None:
    with running("nodes=4", "link=tcp") as strategy:
        train(strategy, 1, STEPS)
        pairs = linked_pairs(process_ids(strategy))
        report = strategy.report()
    assert pairs == {frozenset(pair) for pair in ((0, 1), (1, 2), (2, 3), (3, 0))}
    for number in range(4):
        links = report["processes"][f"worker {number}"]["links"]
        assert links.keys() - {"coordinator"} == {f"worker {(number + 1) % 4}", f"worker {(number - 1) % 4}"}
        sent = links[f"worker {(number + 1) % 4}"]["sent"]["by_kind"]
        assert (str(int(Kind.FORWARD)) in sent) == (number < 3)
        assert sent[str(int(Kind.GRADIENT))]["messages"] >= STEPS  # one a stage, for the copy
        assert str(int(Kind.STATE)) not in sent
    assert sum(map(len, report["cut"]["stages"])) == 6
    assert (report["steps"], report["recovery"]) == (STEPS, {"count": 0})
    assert report["memory"]["total_bytes"] > report["memory"]["worker_bytes"] > 0


@pytest.mark.exhaustive
def test_gradients_are_in_shared_memory_which_a_state_that_is_loaded_again_uses_again() -> None:
    with running("nodes=3", "link=shm", "shadows=1") as strategy:
        nodes = set(process_ids(strategy).values())
        assert not possessions(nodes).memory
        train(strategy, 1, 3)
        state, held = strategy.state(), possessions(nodes).memory
        assert held
        for _ in range(3):
            strategy.load_state(state)
            later = train(strategy, 4, STEPS)
        assert later == single().stats[3:]
        assert possessions(nodes).memory == held


def test_a_checkpoint_is_of_no_number_of_nodes_and_of_no_strategy() -> None:
    process = SingleStrategy({})
    process.start(TOY)
    stats = train(process, 1, 2)
    with running("nodes=2") as two:
        two.load_state(process.state())
        stats += train(two, 3, 4)
        state = two.state()
        later = train(two, 5, STEPS)
        two.load_state(state)  # back in the same processes
        assert train(two, 5, STEPS) == later
        single().assert_equal(stats + later, two.state())
    process.load_state(state)
    assert train(process, 5, STEPS) == later
    assert_equal_states(process.state(), single().state)


@pytest.mark.exhaustive
def test_a_checkpoint_of_two_nodes_resumes_on_four() -> None:
    with running("nodes=2") as two:
        stats = train(two, 1, 3)
        state = two.state()
    with running("nodes=4") as four:
        four.load_state(state)
        single().assert_equal(stats + train(four, 4, STEPS), four.state())


def test_a_run_is_halted_at_a_step_that_is_not_finite_and_goes_on_behind_it() -> None:
    spec = staged_spec(bad_step=3)
    wanted = undisturbed(spec, STEPS)
    with running("nodes=2", spec=spec) as strategy:
        stats = [strategy.step(1, horizon=STEPS), strategy.step(2, horizon=STEPS), strategy.step(3, horizon=STEPS)]
        assert strategy.halt() == 3
        state = strategy.state()
        assert state["updates"] == 2
        stats += train(strategy, 4, STEPS)
        found = strategy.state()
    assert not math.isfinite(stats[2].loss)
    assert [replace(one, loss=0.0, gradient_norm=0.0) for one in stats] == [
        replace(one, loss=0.0, gradient_norm=0.0) for one in wanted.stats
    ]  # nan is not equal to itself
    assert [one.loss for one in stats if one.index != 3] == [one.loss for one in wanted.stats if one.index != 3]
    assert_equal_states(found, wanted.state)


def test_a_model_that_cannot_be_shared_out_so_far_is_refused_before_a_process_starts() -> None:
    with (
        pytest.raises(DistributedError, match=r"^distribution\.nodes: 2 nodes, and only 1 stages .*share parameters\)"),
        running("nodes=2", spec=staged_spec(shared=True)),
    ):
        pass


@pytest.mark.exhaustive
@pytest.mark.parametrize("fails", ["3", "build"])
def test_an_error_in_a_node_ends_the_run_and_is_told(fails: str) -> None:
    broken = "this toy breaks at step 3" if fails == "3" else "this toy cannot be built here"
    with (
        pytest.raises(RuntimeError, match=rf"worker \d failed:\n(.*\n)*ValueError: {broken}"),
        running("nodes=2", spec=staged_spec(fails=fails)) as strategy,
    ):
        train(strategy, 1, STEPS)
