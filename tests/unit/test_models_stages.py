"""The stages of a model name the parameters that they read: a strategy waits for these and no others."""

from __future__ import annotations

import non_recurrent_reference as non_recurrent
import pytest
import torch
from models_reference import SOURCES, TARGETS, ExampleSlot, model_config, padded_batch
from torch import Tensor

from nmt.config.schema import ModelConfig
from nmt.models.dropout import AddressedDropout
from nmt.models.scheduled_sampling import ScheduledSampling
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.models.stages import ModelStage

FAMILIES = {
    "gru": model_config(dropout=0.2),
    "lstm, torch": model_config(kind="lstm", family="torch", attention="additive", scaling="learned", dropout=0.2),
    "vanilla, stacked": model_config("stacked_bidirectional", "vanilla", encoder_layers=2, combiner="add", dense=True),
    "reversed, projection": model_config(
        "unidirectional", attention="dot", bridge="projection", reverse=True, units=(6, 6)
    ),
    "none_state": model_config(attention="none_state"),
    "none_input": model_config(attention="none_input"),
    "pass_through": model_config("unidirectional", encoder_layers=2, bridge="pass_through", units=(6, 6)),
    "unmasked": model_config(attention="additive", masked=False),
    "shared table": model_config(share=True),
    "tied output": model_config(tie=True),
    "shared and tied": model_config(share=True, tie=True, dropout=0.2),
    "transformer": non_recurrent.model_config(dropout=0.1),
    "transformer, tied": non_recurrent.model_config(tie=True),
    "convolutional": non_recurrent.model_config("convolutional", "recurrent", dropout=0.1),
    "pooling": non_recurrent.model_config("pooling", "recurrent"),
    "recurrent under transformer": non_recurrent.model_config("bidirectional"),
}
RECURRENT = [name for name, config in FAMILIES.items() if config.decoder.name == "recurrent"]
CASES = [(name, "none") for name in FAMILIES] + [
    (name, form) for name in RECURRENT for form in ("embedding", "output")
]  # fmt: skip
FINE = [(name, form, True) for name, form in CASES if form != "embedding"]


def built(config: ModelConfig) -> Seq2Seq:
    shared = config.embedding.share
    return build_model(config, 13 if shared else 11, 13, seed=3)


def stages_and_slot(model: Seq2Seq, form: str, fine: bool) -> tuple[list[ModelStage], ExampleSlot]:
    sampling = None if form == "none" else ScheduledSampling(form, 0.5, 1, 2, 0)
    slot = ExampleSlot(padded_batch(SOURCES, TARGETS), AddressedDropout(1, 2, 0), sampling)
    return model.stages(sampled=form != "none", fine=fine), slot


def run(stage: ModelStage, slot: ExampleSlot, carried: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a stage puts out, with its gradients in the model, as if the stages around it were elsewhere."""
    inputs = {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in carried.items()}
    found = stage(slot, inputs)
    floats = [tensor.sum() for tensor in found.values()]
    torch.stack(floats).sum().backward()
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.mark.parametrize(("family", "form", "fine"), [(*case, False) for case in CASES] + FINE)
def test_a_stage_reads_the_parameters_that_it_names_and_no_others(family: str, form: str, fine: bool) -> None:
    model = built(FAMILIES[family])
    parameters = dict(model.named_parameters())
    stages, slot = stages_and_slot(model, form, fine)
    carried: dict[str, Tensor] = {}
    named: set[str] = set()
    for stage in stages:
        names = stage.parameter_names()
        assert list(names) == [name for name in parameters if name in names]  # each once, in the model's order
        named |= set(names)
        whole = run(stage, slot, carried)
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        assert set(gradients) <= set(names)
        model.zero_grad()

        poisoned = built(FAMILIES[family])
        with torch.no_grad():
            for name, parameter in poisoned.named_parameters():
                if name not in names:
                    parameter.fill_(torch.nan)
        own = next(other for other in stages_and_slot(poisoned, form, fine)[0] if other.name == stage.name)
        found = run(own, slot, carried)
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        again = {name: parameter.grad for name, parameter in poisoned.named_parameters() if parameter.grad is not None}
        assert all(torch.equal(again[name], gradients[name]) for name in gradients.keys() | again.keys())
        carried = whole
    assert named == set(parameters)  # so that every parameter is fetched for some stage


def test_a_shared_table_stands_under_one_name_at_every_stage_that_reads_it() -> None:
    encoder, decoder, output = built(FAMILIES["shared and tied"]).stages()
    table = "source_embedding.weight"
    assert all(table in stage.parameter_names() for stage in (encoder, decoder, output))
    assert output.parameter_names() == (table, "output.bias")
    encoder, both = built(FAMILIES["tied output"]).stages(sampled=True)
    assert "target_embedding.weight" in both.parameter_names()
    assert "target_embedding.weight" not in encoder.parameter_names()
