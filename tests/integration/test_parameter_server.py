"""BSP over real processes has the bits of the single process, whatever the sizes, and is resumed by any strategy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from parameter_server_examples import STEPS, assert_equal_states, running, train, undisturbed
from toy_workload import BOTH_CLIPPINGS, CLIPPING, workload_spec

from distributed.single import SingleStrategy
from distributed.strategy import StepStats, WorkloadSpec
from nmt.config import compose
from nmt.training.workload import workload_spec as workload_spec_of

SECONDS = 60.0  # far more than anything takes until it has arrived


def smoke_spec(*words: str) -> WorkloadSpec:
    """A small translation model with dropout and clipping: 6 slots in 3 groups."""
    words = (
        *("scale=smoke", "tracking=none", "threads=1", "data.options={train_size: 200, test_size: 4}", "batch.size=12"),
        *("batch.micro_batches=6", "batch.groups=3", "model.decoder.cell.dropout_input=0.2", "optimizer.clip_norm=0.5"),
        *words,
    )
    return workload_spec_of(compose(list(words)), "cpu")


def assert_exact(spec: WorkloadSpec, steps: int, *words: str) -> None:
    with running(*words, spec=spec) as strategy:
        stats = train(strategy, 1, steps)
        undisturbed(spec, steps).assert_equal(stats, strategy.state())


@pytest.mark.parametrize("clipping", [CLIPPING, BOTH_CLIPPINGS], ids=["clipped", "parameters clipped too"])
@pytest.mark.parametrize(
    ("workers", "servers", "link"), [(1, 1, "auto"), (2, 3, "shm"), (3, 2, "tcp")], ids=["1x1", "2x3 shm", "3x2 tcp"]
)
def test_any_number_of_processes_has_the_bits_of_one(
    workers: int, servers: int, link: str, clipping: dict[str, float]
) -> None:
    spec = workload_spec(groups=5, clipping=clipping)
    assert any(one.gradient_norm > CLIPPING["max_norm"] for one in undisturbed(spec, 2).stats)  # there is what to clip
    assert_exact(spec, STEPS, f"workers={workers}", f"servers={servers}", f"link={link}", "bucket_mib=1")


@pytest.mark.exhaustive
@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("clipped", ["", "optimizer.clip_embedding_norm=0.05"])
@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_number_of_processes_has_the_bits_of_one(workers: int, servers: int, clipped: str, link: str) -> None:
    spec = smoke_spec(*[clipped] * bool(clipped))
    assert_exact(spec, 20, f"workers={workers}", f"servers={servers}", f"link={link}")


@pytest.mark.exhaustive
def test_the_published_sizes_have_the_bits_of_one() -> None:
    assert_exact(workload_spec(groups=16), STEPS, "workers=8", "servers=6", "shadows=1")


def test_a_translation_model_with_dropout_is_the_same_and_looks_the_same_from_inside() -> None:
    spec = smoke_spec()
    single = SingleStrategy({})
    single.start(spec)
    with running("workers=2", "servers=2", spec=spec) as strategy:
        for one in (1, 2, 3):
            wanted = single.step(one, probe=one == 2)
            found: StepStats = strategy.step(one, probe=one == 2, horizon=1 if one == 1 else 3)
            assert found == wanted
            assert (found.probe is not None) == (one == 2)
        assert_equal_states(strategy.state(), single.state())
        with strategy.evaluation_model() as model:
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, single.state()["parameters"][name]), name


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_parameters_that_go_through_copies_as_on_a_gpu_have_the_same_bits(link: str) -> None:
    wanted = undisturbed()
    with running("workers=2", "servers=2", "staging=always", f"link={link}") as strategy:
        stats = train(strategy, 1, 3)
        state = strategy.state()
        stats += train(strategy, 4, STEPS)
        wanted.assert_equal(stats, strategy.state())
        with strategy.evaluation_model() as model:
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, wanted.state["parameters"][name]), name
        strategy.load_state(state)
        with strategy.evaluation_model() as model:
            assert torch.equal(dict(model.named_parameters())["hidden"], state["parameters"]["hidden"])
        wanted.assert_equal(stats[:3] + train(strategy, 4, STEPS), strategy.state())


@pytest.mark.exhaustive
@pytest.mark.parametrize("staging", ["auto", "always"])
def test_a_model_of_several_buckets_has_the_bits_of_one_process(staging: str) -> None:
    spec = smoke_spec("model.decoder.units=320", "model.encoder.units=160", "model.embedding.units=160")
    with running("workers=3", "servers=2", "bucket_mib=1", f"staging={staging}", spec=spec) as strategy:
        stats = train(strategy, 1, STEPS)
        state = strategy.state()
    assert sum(one.numel() for one in state["parameters"].values()) > 1_000_000
    undisturbed(spec).assert_equal(stats, state)


@pytest.mark.parametrize("staging", ["auto", "always"])
def test_one_worker_that_waits_for_nobody_is_one_process(staging: str) -> None:
    """Then no gradient is of old parameters."""
    with running("mode=asp", "workers=1", "servers=2", f"staging={staging}") as strategy:
        undisturbed().assert_equal(train(strategy, 1, STEPS), strategy.state())


def test_a_checkpoint_is_of_no_number_of_servers_and_of_no_strategy() -> None:
    wanted = undisturbed(steps=8)
    with running("workers=2", "servers=2", "shadows=1") as two:
        stats = train(two, 1, 2)
        state = two.state()
    single = SingleStrategy({})
    single.start(workload_spec())
    single.load_state(state)
    stats += train(single, 3, 4)
    with running("workers=1", "servers=3") as three:
        three.load_state(single.state())
        stats += train(three, 5, 6)
        assert_equal_states(three.state(), undisturbed(steps=6).state)
        three.load_state(state)  # back in the same processes
        again = train(three, 3, 8)
        wanted.assert_equal(stats[:2] + again, three.state())
    assert stats == wanted.stats[:6]


def test_a_run_is_halted_at_the_last_step_that_was_begun() -> None:
    with running("workers=2", "servers=2") as strategy:
        stats = [strategy.step(1, horizon=50)]
        last = strategy.halt()
        assert 1 < last < 50
        stats += train(strategy, 2, last)
        undisturbed(steps=last).assert_equal(stats, strategy.state())
        stats += train(strategy, last + 1, last + 2)
        undisturbed(steps=last + 2).assert_equal(stats, strategy.state())


def test_what_a_run_sent_and_how_its_processes_spent_their_time_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    for name, content in (("name", "package-0"), ("max_energy_range_uj", "1000000000"), ("energy_uj", "7")):
        (package / name).write_text(content)
    monkeypatch.setenv("S2S_POWERCAP", str(tmp_path))
    with running("workers=2", "servers=2", "link=tcp") as strategy:
        train(strategy, 1, STEPS)
        (package / "energy_uj").write_text("5000007")
        journals = strategy.journals()
        state, end = strategy.state(), time.monotonic() + SECONDS
        # Gradients go there, values come back, and once more at the start. What was sent last may be on its way still.
        parameters = 4 * sum(one.numel() for one in state["parameters"].values())
        came = (STEPS + 1) / STEPS * parameters
        report = strategy.report()
        while report["traffic"]["worker_received_bytes_per_step"] < came and time.monotonic() < end:
            report = strategy.report()
    names = ["server 0", "server 1", "worker 0", "worker 1"]
    assert list(report["processes"]) == names
    assert (report["steps"], report["energy"]["joules"], report["energy"]["hosts"]) == (STEPS, 5.0, 1)
    assert report["lost"] == {"workers": 0, "servers": 0, "links": 0}
    assert (report["recovery"], 0.0 < report["idle"]["workers"] < 1.0) == ({"count": 0}, True)
    memory = report["memory"]
    both = memory["worker_bytes"] + memory["server_bytes"]  # the largest of each
    assert memory["coordinator_bytes"] + both < memory["total_bytes"] <= memory["coordinator_bytes"] + 2 * both
    traffic = report["traffic"]  # beside gradients and values are headers and a step's sums
    assert 1.0 <= traffic["worker_sent_bytes_per_step"] / parameters < 1.1
    assert 1.0 <= traffic["worker_received_bytes_per_step"] / came < 1.1
    assert traffic["bytes_per_step"] >= 4 * parameters
    assert report["recoveries"] == []
    assert set(journals) == {f"timeline-{name.replace(' ', '-')}.jsonl" for name in names}
    for one in report["processes"].values():
        assert 0 <= one["times"]["idle"] <= 1
        assert {link["received"]["payload_bytes"] > 0 for link in one["links"].values()} == {True}
