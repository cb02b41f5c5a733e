"""`ring_tmp` with `mode=rotate` over real processes: the bits of its rule, links, bytes, memory, checkpoints."""

from __future__ import annotations

import math

import pytest
from parameter_server_examples import assert_equal_states, train
from rotation_examples import STEPS, TOY, rule, running
from rotation_rule import by_the_rule
from staged_toy import staged_spec
from test_ring import parameters_apart, single, smoke_spec

from distributed.ring_rotate.messages import Kind
from distributed.single import SingleStrategy
from distributed.strategy import WorkloadSpec

SGD = ["optimizer=sgd", "optimizer.momentum=0"]


@pytest.mark.parametrize(("nodes", "link"), [
    (2, "shm"),
    pytest.param(3, "tcp", marks=pytest.mark.exhaustive),
    pytest.param(1, "auto", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_a_ring_has_the_bits_of_its_rule(nodes: int, link: str) -> None:
    with running(f"nodes={nodes}", f"link={link}") as strategy:
        assert train(strategy, 1, STEPS) == rule(nodes).stats
        assert_equal_states(strategy.state(), rule(nodes).state)
        with strategy.evaluation_model() as model:
            wanted = rule(nodes).state["parameters"]
            assert all(bool((one == wanted[name]).all()) for name, one in model.named_parameters())


def assert_close_to_single(spec: WorkloadSpec, nodes: int) -> None:
    """Loss within 1e-5, gradients within 1e-6 of their norm, and parameters within 1e-6 under SGD; probes, too."""
    process = SingleStrategy({})
    process.start(spec)
    with running(f"nodes={nodes}", spec=spec) as strategy:
        for step in range(1, 5):
            scale = 0.5 if step > 2 else 1.0
            wanted = process.step(step, scale, probe=step == 2)
            found = strategy.step(step, scale, probe=step == 2, horizon=step if step < 3 else 4)
            assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
            assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-6)
            exact = ("index", "target_tokens", "source_tokens", "learning_rate")
            assert [getattr(found, name) for name in exact] == [getattr(wanted, name) for name in exact]
            assert (found.probe is None) == (wanted.probe is None)
            if found.probe is not None and wanted.probe is not None:
                for kind in ("gradients", "updates", "inner"):
                    norms, expected = getattr(found.probe, kind), getattr(wanted.probe, kind)
                    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-6), kind
        assert parameters_apart(strategy.state()["parameters"], process.state()["parameters"]) < 1e-6


def test_it_is_the_single_process_but_for_rounding() -> None:
    assert_close_to_single(smoke_spec(*SGD, "optimizer.learning_rate=0.5"), 3)


SIZES = ["model.embedding.units=16", "model.encoder.units=16", "model.decoder.units=16"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [
    ["model.encoder.cell.kind=lstm", "model.decoder.cell.kind=lstm"],
    ["model=transformer", "model.encoder.layers=2", "model.decoder.layers=2", *SIZES],
    ["model.embedding.tie_output=true", *SIZES],
    ["loss.vocab_chunks=4"],
    ["training.precision=bf16"],
], ids=lambda words: words[0])  # fmt: skip
def test_other_models_are_the_single_process_but_for_rounding(words: list[str]) -> None:
    assert_close_to_single(smoke_spec(*SGD, "optimizer.learning_rate=0.5", *words), 2)


@pytest.mark.exhaustive
def test_gradients_agree_with_the_single_process_to_a_millionth_of_their_norm() -> None:
    """With plain SGD and a rate of one, a step's change is the gradient."""
    spec = smoke_spec(*SGD, "optimizer.clip_norm=0", "optimizer.learning_rate=1")
    stats, process = single(spec, 1)
    with running("nodes=3", spec=spec) as strategy:
        strategy.step(1)
        found = strategy.state()["parameters"]
    wanted = process.state()["parameters"]
    apart = math.sqrt(sum(float((found[name] - wanted[name]).double().square().sum()) for name in wanted))
    assert apart <= 1e-6 * stats[0].gradient_norm


def test_a_checkpoint_is_of_no_number_of_nodes_and_of_no_strategy() -> None:
    with running("nodes=3") as three:
        first = train(three, 1, 2)
        state = three.state()
        later = train(three, 3, 4)
        three.load_state(state)  # back in the same processes
        assert train(three, 3, 4) == later
        assert_equal_states(three.state(), rule(3, 4).state)
    mixed = by_the_rule(TOY, [3, 3, 2, 2])
    with running("nodes=2") as two:
        two.load_state(state)
        assert first + train(two, 3, 4) == mixed.stats
        assert_equal_states(two.state(), mixed.state)
    process = SingleStrategy({})
    process.start(TOY)
    process.load_state(mixed.state)
    assert process.step(5).loss == pytest.approx(rule(3, 5).stats[4].loss, rel=1e-4)


def test_a_run_is_halted_at_the_last_step_that_was_begun_and_at_one_that_is_not_finite() -> None:
    with running("nodes=2", spec=staged_spec(bad_step=9)) as strategy:
        stats = [strategy.step(1, horizon=50)]
        last = strategy.halt()
        assert 1 < last < 9
        stats += train(strategy, 2, last)
        assert_equal_states(strategy.state(), rule(2, last).state)
        stats += train(strategy, last + 1, 8)
        assert stats == rule(2, 8).stats
        assert not math.isfinite(strategy.step(9, horizon=12).loss)
        assert strategy.halt() == 9
        assert_equal_states(strategy.state(), rule(2, 8).state)


def test_what_nodes_did_is_reported() -> None:
    with running("nodes=2", "shadows=0") as strategy:
        train(strategy, 1, STEPS)
        journals, report = strategy.journals(), strategy.report()
    assert set(journals) == {"timeline-worker-0.jsonl", "timeline-worker-1.jsonl"}
    assert (report["steps"], report["lost"], report["recovery"]) == (STEPS, {"workers": 0, "links": 0}, {"count": 0})
    assert 0.0 <= report["idle"]["workers"] <= report["idle"]["workers_max"] < 1.0
    assert report["cut"] == {"groups": [[f"layer {number}" for number in range(5)], ["output"]]}
    assert all(str(int(Kind.COPY)) not in one["links"]["worker 0"]["sent"]["by_kind"]
               for name, one in report["processes"].items() if name == "worker 1")  # fmt: skip
    for one in report["processes"].values():
        assert 0.0 < one["times"]["busy"] < one["times"]["wall"]
