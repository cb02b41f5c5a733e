"""A model without memory for its parameters: what nodes of a ring of stages build (`Workload.outline`)."""

from __future__ import annotations

import pytest
import torch

from nmt.config import compose
from nmt.models.parameters import keeps_more_than_parameters
from nmt.training import workload as module
from nmt.training.workload import TranslationWorkload


def workload(*words: str) -> TranslationWorkload:
    return TranslationWorkload(compose(["scale=smoke", "tracking=none", "device=cpu", *words]), "cpu")


@pytest.mark.parametrize("words", [
    ["model=attentional", "loss.vocab_chunks=3"],
    ["model=attentional", "model.encoder.cell.kind=lstm", "model.decoder.cell.kind=lstm"],
    ["model=transformer", "loss.vocab_chunks=3", "model.embedding.share=false"],
])  # fmt: skip
def test_it_has_the_parameters_and_stages_of_the_model_and_no_values(words: list[str]) -> None:
    one = workload(*words)
    model, outline = one.build_model(fine=True), one.outline()
    assert {name: own.shape for name, own in outline.named_parameters()} == {
        name: own.shape for name, own in model.named_parameters()
    }
    assert all(own.is_meta for own in outline.parameters())
    assert [(stage.name, stage.parameter_names()) for stage in one.stages(outline, fine=True)] == [
        (stage.name, stage.parameter_names()) for stage in one.stages(model, fine=True)
    ]


def test_a_model_that_keeps_other_tensors_is_built_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, attribute = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    attribute.rates = torch.arange(3)  # type: ignore[assignment]
    assert not keeps_more_than_parameters(torch.nn.Sequential(plain))
    assert keeps_more_than_parameters(torch.nn.Sequential(attribute))
    assert keeps_more_than_parameters(torch.nn.BatchNorm1d(2))
    one = workload("loss.vocab_chunks=3")
    monkeypatch.setattr(module, "keeps_more_than_parameters", lambda model: True)
    wanted = dict(one.build_model(fine=True).named_parameters())
    assert all(bool((wanted[name] == own).all()) for name, own in one.outline().named_parameters())
