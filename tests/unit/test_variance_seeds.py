"""Streams of randomness: which follow the run's seed, which are held, and hyperparameters drawn from it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmt.config import compose, from_dict, to_dict, train_id
from nmt.config.identity import canonical, run_id
from nmt.config.schema import TRAIN, RunConfig
from nmt.config.seeds import drawn, draws, jitterable, stream_seed
from nmt.data.prepare import PreparedData, prepare
from nmt.errors import UserError
from nmt.training.workload import TranslationWorkload

HELD = {"initialisation": "seeds.initialisation=101", "data": "seeds.data=101", "dropout": "seeds.dropout=101"}
JITTER = ["seeds.jitter=0.1", "seeds.jittered=[optimizer.learning_rate,model.encoder.cell.dropout_input]"]


def config_of(seed: int, *words: str) -> RunConfig:
    return compose([f"seed={seed}", "data=toy_copy", "model.embedding.share=false", "scale=smoke", *words])


def only(stream: str) -> list[str]:
    return [word for name, word in HELD.items() if name != stream]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(config_of(1, f"paths.runs={tmp_path_factory.mktemp('runs')}"))


def drawn_of(config: RunConfig, prepared: PreparedData) -> tuple[dict[str, Tensor], list[list[list[int]]], Tensor]:
    """First parameters, source sentences of steps 1 to 3, and a dropout mask."""
    workload = TranslationWorkload(config, "cpu", prepared)
    parameters = {name: value.detach() for name, value in workload.build_model().named_parameters()}
    slots = [workload.slot(step, 0) for step in (1, 2, 3)]
    mask = slots[1].dropout.mask("encoder.forwards.0.input", (16, 32), 0.5, torch.ones(()))
    assert mask is not None
    return parameters, [slot.batch.source.tolist() for slot in slots], mask


@pytest.mark.parametrize("stream", [*HELD, "all", "none"])
def test_replicates_differ_in_the_streams_that_follow_their_seed(stream: str, prepared: PreparedData) -> None:
    words = {"all": [], "none": list(HELD.values())}.get(stream, only(stream))
    one, other = (drawn_of(config_of(seed, *words), prepared) for seed in (1, 2))
    differ = {
        "initialisation": any(not torch.equal(one[0][name], other[0][name]) for name in one[0]),
        "data": one[1] != other[1],
        "dropout": not torch.equal(one[2], other[2]),
    }
    assert differ == {name: stream in (name, "all") for name in HELD}


def test_a_held_stream_has_the_bits_of_that_seed(prepared: PreparedData) -> None:
    held, plain = drawn_of(config_of(1, *only("data")), prepared), drawn_of(config_of(101), prepared)
    assert all(torch.equal(held[0][name], plain[0][name]) for name in held[0])
    assert torch.equal(held[2], plain[2])
    assert held[1] == drawn_of(config_of(1), prepared)[1] != plain[1]


def test_the_first_values_of_the_default_are_addressed_as_ever(prepared: PreparedData) -> None:
    """`initialise` draws a parameter from BLAKE2b of `<seed>/init/<name>`: written out here once more."""
    config = config_of(3)
    model = TranslationWorkload(config, "cpu", prepared).build_model()
    digest = hashlib.blake2b(b"3/init/source_embedding.weight", digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    table = model.source_embedding.weight.detach()
    bound = (6 / sum(table.shape)) ** 0.5
    assert torch.allclose(table, torch.empty_like(table).uniform_(-bound, bound, generator=generator))


def test_neutral_seeds_are_no_part_of_an_identity_and_others_are() -> None:
    assert "seeds" not in canonical(compose([]), {TRAIN})
    variants = [[], *([word] for word in HELD.values()), only("data"), JITTER, [*JITTER, "seeds.jitter=0.2"]]
    assert len({train_id(config_of(1, *words)) for words in variants}) == len(variants)
    assert run_id(config_of(1, *only("data"))) == run_id(config_of(2, *only("data"))).replace("/s2", "/s1")


def test_an_older_configuration_without_the_section_reads_as_the_default() -> None:
    config = compose([])
    stored = to_dict(config)
    del stored["seeds"]
    assert from_dict(stored) == config
    assert stream_seed(config, "data") == config.seed


def test_draws_stay_within_their_share_and_depend_on_seed_and_key_alone() -> None:
    nominal = config_of(1, *JITTER)
    rate = nominal.optimizer.learning_rate
    seeded = [dataclasses.replace(nominal, seed=seed) for seed in range(1, 201)]
    rates = [draws(config)["optimizer.learning_rate"] for config in seeded]
    assert min(rates) < 0.91 * rate < 1.09 * rate < max(rates)
    assert all(0.9 * rate <= value <= 1.1 * rate for value in rates)
    assert sum(rates) / 200 == pytest.approx(rate, rel=0.015)  # sd of the mean: 0.1 / sqrt(3 · 200) = 0.004
    assert draws(config_of(1, "seeds.jitter=0.1", "seeds.jittered=[optimizer.learning_rate]")) == {
        "optimizer.learning_rate": rates[0]
    }
    shares = [value / jitterable(nominal)[name][0] for name, value in draws(nominal).items()]
    assert shares[0] != shares[1]


def test_a_run_trains_with_what_it_drew(prepared: PreparedData) -> None:
    config = config_of(7, *JITTER)
    own = draws(config)
    workload = TranslationWorkload(config, "cpu", prepared)
    assert workload.learning_rate(1) == own["optimizer.learning_rate"] != config.optimizer.learning_rate
    assert workload.config.model.encoder.cell.dropout_input == own["model.encoder.cell.dropout_input"]
    assert drawn(workload.config) == workload.config  # drawing twice draws once
    assert drawn(config_of(7)) == config_of(7)
    rest = {name: getattr(config, name) for name in ("optimizer", "model", "seeds")}
    assert dataclasses.replace(drawn(config), **rest) == config


MISTAKES = [
    (["seeds.jitter=0.1"], ["seeds.jittered", "needed"]),
    (["seeds.jittered=[optimizer.learning_rate]"], ["seeds.jitter", "needed"]),
    (["seeds.jitter=0.1", "seeds.jittered=[optimizer.learning_rat]"], ["did you mean optimizer.learning_rate"]),
    (["seeds.jitter=0.1", "seeds.jittered=[model.encoder.units]"], ["model.encoder.units", "no fractional"]),
    (["seeds.jitter=0.1", "seeds.jittered=[optimizer.momentum]"], ["is 0", "set optimizer.momentum"]),
    (["seeds.jitter=0.2", "seeds.jittered=[optimizer.beta1]"], ["optimizer.beta1 with seeds.jitter=0.2", "< 1"]),
    (["seeds.jitter=0.1", "seeds.jittered=[optimizer.beta2,optimizer.beta2]"], ["twice"]),
    (["seeds.jitter=1.0", "seeds.jittered=[optimizer.learning_rate]"], ["seeds.jitter", "< 1"]),
    (["seeds.data=-1"], ["seeds.data", ">= 0"]),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=lambda value: " ".join(value)[:50])
def test_mistakes_are_named(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(overrides)
    for word in words:
        assert word in str(error.value)


def test_a_plateau_falls_to_the_floor_of_the_drawn_rate(tmp_path: Path) -> None:
    """The floor is a share of the rate that is trained with, not of the configured one."""
    from test_trainer import make

    words = ["schedule=plateau", "schedule.plateau_patience=1", "schedule.decay_rate=0.5", "schedule.minimum_rate=8e-4"]
    words += ["optimizer.learning_rate=1e-3", "seeds.jitter=0.1", "seeds.jittered=[optimizer.learning_rate]"]
    trainer, strategy, _ = make(tmp_path, [*words, "training.max_steps=6", "validation.every_steps=2"], [9.0, 8.0, 7.0])
    trainer.run()
    own = draws(trainer.config)["optimizer.learning_rate"]
    assert strategy.rate_scales[-1] == 8e-4 / own != 0.8
