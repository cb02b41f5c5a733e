"""Probes: the right norms, and not a bit of training changed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from models_reference import model_config, padded_batch, random_model

from distributed.arithmetic import FlatParameters
from distributed.single import SingleStrategy
from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.data.prepare import prepare
from nmt.models.dropout import NO_DROPOUT
from nmt.models.plain import plain_autograd
from nmt.models.watch import GradientWatch
from nmt.training.checkpoint import digest_tensors
from nmt.training.probe import probe_metrics, training_sample
from nmt.training.workload import workload_spec

WORDS = [
    "data=toy_reverse",
    "data.options={vocabulary: 8, min_length: 2, max_length: 6, train_size: 200, validation_size: 5, test_size: 5}",
    "scale=smoke",
    "batch.micro_batches=4",
    "batch.groups=2",
    "preset=master_2017_04",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return compose([*WORDS, f"paths.cache={tmp_path_factory.mktemp('cache')}"])


def started(config: RunConfig) -> SingleStrategy:
    strategy = SingleStrategy()
    strategy.start(workload_spec(config, "cpu"))
    return strategy


def test_a_probed_step_has_the_bits_of_an_unprobed_one(config: RunConfig) -> None:
    plain, probed = started(config), started(config)
    for index in (1, 2, 3):
        one, other = plain.step(index), probed.step(index, probe=index != 2)
        assert (one.probe is None, other.probe is None) == (True, index == 2)
        assert (one.loss, one.gradient_norm) == (other.loss, other.gradient_norm)
        assert digest_tensors(plain.state()) == digest_tensors(probed.state())


def test_norms_of_gradients_and_updates(config: RunConfig) -> None:
    strategy = started(config)
    before = strategy.state()["parameters"]
    stats = strategy.step(1, probe=True)
    after = strategy.state()["parameters"]
    assert stats.probe is not None
    assert stats.probe.updates.keys() == stats.probe.gradients.keys() == before.keys()
    for name, norm in stats.probe.updates.items():
        assert norm == pytest.approx((after[name] - before[name]).double().norm().item(), rel=1e-6)
    metrics = probe_metrics(stats)
    assert metrics["probe/gradient/all"] == pytest.approx(stats.gradient_norm, rel=1e-12)
    modules = [name for name in metrics if name.startswith("probe/gradient/") and not name.endswith("/all")]
    assert "probe/gradient/decoder.cells" in modules
    assert math.hypot(*(metrics[name] for name in modules)) == pytest.approx(stats.gradient_norm, rel=1e-12)
    assert {name for name in metrics if "state" in name} == {f"probe/state_gradient/decoder.{i}" for i in (0, 1)}


def test_embedding_gradients_are_clipped_after_the_global_clip(config: RunConfig) -> None:
    """By plain gradient descent of rate 1 the update is the clipped gradient itself."""
    words = [*WORDS, "optimizer=sgd", "optimizer.learning_rate=1", "schedule=constant", "optimizer.clip_norm=0.2"]
    clipped = compose([*words, "optimizer.clip_embedding_norm=0.00005", f"paths.cache={config.paths.cache}"])
    stats = started(clipped).step(1, probe=True)
    assert stats.probe is not None
    assert stats.gradient_norm > 0.2
    for name, norm in stats.probe.gradients.items():
        expected = norm * 0.2 / stats.gradient_norm
        if "embedding" in name:
            assert expected > 0.00005
            expected = 0.00005
        assert stats.probe.updates[name] == pytest.approx(expected, rel=1e-3, abs=1e-8), name  # float32 values


def test_the_watch_sees_every_layer_at_every_step() -> None:
    """What the hand-written loop reports is what hooks on autograd's own tensors see."""
    batch = padded_batch([[3, 4, 5], [10]], [[4, 12, 3], [7, 7]])
    seen: dict[str, list[torch.Tensor]] = {}

    class Keeping(GradientWatch):
        def __call__(self, name: str, tensor: torch.Tensor) -> None:
            tensor.register_hook(lambda gradient: seen.setdefault(name, []).append(gradient.clone()))
            super().__call__(name, tensor)

    def watched(watch: GradientWatch) -> dict[str, list[float]]:
        model = random_model(model_config(attention="additive", decoder_layers=2))
        encoded = model._encode(batch.source, batch.source_lengths, NO_DROPOUT)
        model._decode(batch, encoded, NO_DROPOUT, None, watch).square().sum().backward()
        return watch.square_sums()

    with plain_autograd():
        by_hooks = watched(Keeping())
    by_hand = watched(GradientWatch())
    assert by_hooks.keys() == by_hand.keys() == seen.keys() == {"decoder.0", "decoder.1"}
    for name, values in by_hooks.items():
        assert len(values) == 4 * 2  # a row for each time step and sentence
        assert math.fsum(values) == pytest.approx(sum(g.square().sum().item() for g in seen[name]), rel=1e-12)
        assert math.fsum(values) > 0
        assert by_hand[name] == pytest.approx(values, rel=1e-9)


def test_training_text_is_sampled_evenly_and_scored_without_dropout(config: RunConfig) -> None:
    prepared = prepare(config)
    assert training_sample(config, prepared, "cpu") is None
    words = [*WORDS, "training.probe.every_steps=5", "training.probe.sentences=30"]
    probing = compose([*words, f"paths.cache={config.paths.cache}"])
    sample = training_sample(probing, prepared, "cpu")
    assert sample is not None
    assert len(sample._text) == 30
    assert sample._text.source[0].tolist() == prepared.train.source[0].tolist()
    assert sample._text.source[-1].tolist() == prepared.train.source[len(prepared.train) - 1].tolist()
    with started(config).evaluation_model() as model:
        first, again = sample(model), sample(model)
    assert first == again
    assert 0 < first["train/teacher_forced/log_perplexity"] < 3 * math.log(11)


def test_probing_is_placement(tmp_path: Path) -> None:
    from nmt.config import train_id

    assert train_id(compose([])) == train_id(compose(["training.probe.every_steps=10"]))


def test_a_shared_table_has_one_norm() -> None:
    flat = FlatParameters(random_model(model_config(share=True, tie=True), vocab=(11, 11)))
    assert [name for name in flat.layout if "embedding" in name or name == "output.weight"] == [
        "source_embedding.weight"
    ]
