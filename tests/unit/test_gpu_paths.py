"""What the model does on a GPU and not on a CPU, made to happen on a CPU; and what it must not do there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_examples import random_model, random_sentences

from nmt.config import compose
from nmt.config.schema import SearchConfig
from nmt.data.vocabulary import EOS
from nmt.evaluation.decode import decode
from nmt.models.recurrent import packing
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.profiling.costs import Shape, batch_of, blank_slot
from nmt.profiling.counting import HostReads
from nmt.search import loop
from nmt.training.workload import TranslationWorkload

ENCODERS = {
    "bidirectional": ["experiment=t5_add_512"],
    "stacked": ["experiment=t5_mul_512", "model/encoder=stacked_bidirectional", "model.encoder.layers=2"],
    "unidirectional, residual": ["experiment=t4_uni_2r", "model.encoder.residual.combiner=add"],
    "Transformer": ["experiment=transformer", "model.encoder.layers=1", "model.decoder.layers=1"],
    "convolutional": ["experiment=convolutional"],
    "pooling": ["experiment=pooling"],
}

SEARCHES = {
    "google": SearchConfig(beam=4, n_best=4, length_penalty=0.6),
    "greedy": SearchConfig(beam=1),
    "standard": SearchConfig(beam=4, finishing="standard", stop="bound", length_penalty=0.6),
    "coverage": SearchConfig(beam=4, n_best=2, coverage="wu", coverage_weight=0.3),
    "constraints": SearchConfig(beam=3, block_ngrams=2, block_unknown=True, min_length_ratio=0.5),
    "diverse": SearchConfig(beam=4, n_best=4, diverse_groups=2, diverse_strength=0.5),
    "sample": SearchConfig(method="sample", n_best=3, top_p=0.9),
}


def others(*names: str) -> list[Any]:
    """Cases for a landing."""
    return [pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


def gradients(overrides: list[str], cache: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and all gradients of a first step, without dropout, of sentences of many lengths."""
    words = ["scale=smoke", "data.options={train_size: 60, test_size: 4}", "data.max_sentences=0", "batch.size=40"]
    words += ["model.encoder.cell.dropout_input=0", "model.decoder.cell.dropout_input=0", f"paths.cache={cache}"]
    config = compose([*overrides, *words])
    workload = TranslationWorkload(config, "cpu")
    model = workload.build_model()
    slot = workload.slot(1, 0)
    assert len(slot.batch.source_lengths.unique()) > 5
    carried: dict[str, torch.Tensor] = {}
    for stage in workload.stages(model):
        carried = stage(slot, carried)
    carried["loss"].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return carried["loss"].item(), found


@pytest.mark.parametrize("family", ["bidirectional", *others("stacked", "unidirectional, residual")])
def test_keeping_all_rows_of_every_step_changes_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU lets ended sentences leave the rows, a GPU does not. Masks are drawn for rows, so they differ."""
    loss, expected = gradients(ENCODERS[family], tmp_path)
    monkeypatch.setattr(packing, "shrinks", lambda device: False)
    other_loss, found = gradients(ENCODERS[family], tmp_path)
    assert other_loss == loss
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), name


@pytest.mark.parametrize("family", ENCODERS)
def test_the_host_looks_at_nothing_between_a_batch_and_its_gradient(family: str) -> None:
    """Tensors of the meta device have no values: whoever asks for one fails, as does an operation on two devices."""
    config = compose(["scale=smoke", *ENCODERS[family]])
    with torch.device("meta"):
        model = build_model(config.model, 40, 50, config.loss)
        assert isinstance(model, Seq2Seq)
        shape = Shape(sentences=20, source_length=7, target_length=6)
        slot = blank_slot(batch_of(shape), shape.target_tokens)
        carried: dict[str, torch.Tensor] = {}
        for stage in model.stages():
            carried = stage(slot, carried)
        carried["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_asking_for_a_value_would_be_found_out() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(3, device="meta").sum().item()
    with pytest.raises(NotImplementedError, match="meta"):
        torch.ones(3, device="meta").nonzero()


@pytest.mark.parametrize(
    "name", ["google", "standard", *others("greedy", "coverage", "constraints", "diverse", "sample")]
)
def test_a_search_that_hardly_looks_finds_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU every place of the beams is computed, and the host asks now and then whether sentences are done."""
    model, sentences = random_model(4), random_sentences(20)
    search = dataclasses.replace(SEARCHES[name], max_length=20)
    expected = decode(model, sentences, search)
    monkeypatch.setattr(loop, "reads_freely", lambda device: False)
    assert decode(model, sentences, search) == expected


@pytest.mark.parametrize("name", ["google", *others("greedy", "standard")])
def test_the_host_looks_at_a_search_every_few_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sentences = random_model(4), [sentence[:5] for sentence in random_sentences(4)]
    with torch.no_grad():
        model.output.bias[EOS] = -50.0  # no output ends before its limit
    monkeypatch.setattr(loop, "reads_freely", lambda device: False)

    def reads(steps: int) -> int:
        with HostReads() as found:
            outputs = decode(model, sentences, dataclasses.replace(SEARCHES[name], max_length=steps))
        assert {len(best[0].tokens) for best in outputs} == {steps}
        return found.count

    assert reads(3 * loop.LOOK_EVERY) - reads(loop.LOOK_EVERY) == 2
