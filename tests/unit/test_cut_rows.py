"""Models whose rows are cut: chunk by chunk on nodes of their own they have the bits of `single`."""

from __future__ import annotations

import random
import weakref
from contextlib import nullcontext

import non_recurrent_reference as non_recurrent
import pytest
import torch
from models_reference import ExampleSlot, model_config, padded_batch

from distributed.arithmetic import FlatParameters
from distributed.ring_tmp.stage_call import StageCalls
from nmt.config import compose
from nmt.config.schema import LossConfig, ModelConfig
from nmt.data.prepare import prepare
from nmt.models.dropout import AddressedDropout
from nmt.models.fine_stages import cut_rows
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.models.vocabulary_chunk import VocabularyChunk
from nmt.training.workload import TranslationWorkload

MODELS = {
    "gru": model_config(encoder_layers=2, dropout=0.2),
    "lstm": model_config("unidirectional", kind="lstm", attention="additive", reverse=True, dropout=0.2),
    "transformer": non_recurrent.model_config(dropout=0.1),
    "shared": model_config(share=True, dropout=0.2),
    "tied": model_config(tie=True),
}
CUT = {
    "gru": (3, 2, 3),
    "lstm": (3, 2, 3),
    "transformer": (3, 2, 3),
    "shared": (1, 1, 3),
    "tied": (3, 1, 1),
}  # chunks of source table, target table and output layer of a model cut in three


def built(config: ModelConfig, recompute: bool = False) -> Seq2Seq:
    loss = LossConfig(label_smoothing=0.1, vocab_chunks=3, recompute_logits=recompute)
    return build_model(config, 70 if config.embedding.share else 40, 70, loss, seed=3)


def slots() -> list[ExampleSlot]:
    draw = random.Random(1)

    def some(count: int, words: int) -> list[list[int]]:
        return [[draw.randrange(3, words) for _ in range(draw.randrange(1, 9))] for _ in range(count)]

    return [
        ExampleSlot(padded_batch(some(count, 40), some(count, 70)), AddressedDropout(1, 2, number))
        for number, count in enumerate((5, 1, 20))
    ]


Result = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]
"""Losses of the slots, and the flat buffers of parameters and gradient."""


def in_one_piece(model: Seq2Seq, bf16: bool) -> Result:
    flat, given, losses = FlatParameters(model), slots(), []
    flat.collect_into(flat.new_buffer())
    for slot in given:
        carried: dict[str, torch.Tensor] = {}
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            for stage in model.stages():
                carried = stage(slot, carried)
        (carried["loss"] / sum(one.target_tokens for one in given)).backward()
        losses.append(carried["loss"].detach())
    return losses, flat.values, flat.gradient


def stage_by_stage(model: Seq2Seq, bf16: bool) -> Result:
    """Every stage for itself, with its neighbours' tensors alone."""
    stages, flat, given, losses = model.stages(fine=True, directions=not bf16), FlatParameters(model), slots(), []
    flat.collect_into(flat.new_buffer())
    calls = [StageCalls(model, stages, number, number + 1) for number in range(len(stages))]
    tokens = sum(one.target_tokens for one in given)
    for slot in given:
        arrived: dict[str, torch.Tensor] = {}
        passes = []
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            for call in calls:
                passes.append(call.forward(slot, arrived, tokens))
                arrived = {name: tensor.clone() for name, tensor in passes[-1].handed_on.items()}
        losses.append(arrived["loss"])
        gradients: dict[str, torch.Tensor] = {}
        for one in reversed(passes):
            gradients = one.backward(gradients)
    return losses, flat.values, flat.gradient


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_chunk_for_itself_has_the_bits_of_single(name: str, bf16: bool) -> None:
    expected = in_one_piece(built(MODELS[name]), bf16)
    for recompute in (False, True):
        model = built(MODELS[name], recompute)
        cut_rows(model, 3)
        losses, values, gradient = stage_by_stage(model, bf16)
        assert all(map(torch.equal, losses, expected[0]))
        assert torch.equal(values, expected[1])  # laid out alike, so norms, updates and checkpoints are the same
        assert torch.equal(gradient, expected[2])


@pytest.mark.parametrize("recompute", [False, True])
def test_logits_of_a_slot_in_flight_are_kept_or_not(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    new_buffer = VocabularyChunk.new_buffer

    def noted(chunk: VocabularyChunk) -> torch.Tensor:
        buffer = new_buffer(chunk)
        made.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(VocabularyChunk, "new_buffer", noted)
    model = built(MODELS["gru"], recompute)
    cut_rows(model)
    carried: dict[str, torch.Tensor] = {}
    for stage in model.stages(fine=True):
        carried = stage(slots()[0], carried)
    assert len(made) == 3
    assert [buffer() is None for buffer in made] == [recompute] * 3
    carried["loss"].backward()


@pytest.mark.parametrize("name", MODELS)
def test_each_chunk_is_a_stage_with_parameters_of_its_own(name: str) -> None:
    model = built(MODELS[name])
    cut_rows(model, 3)
    stages = model.stages(fine=True)
    for kind, chunks in zip(("source_embedding", "target_embedding", "output"), CUT[name], strict=True):
        found = [stage for stage in stages if stage.name.split(".")[0] == kind]
        assert [stage.name for stage in found] == [kind] if chunks == 1 else [f"{kind}.{one}" for one in range(chunks)]
        if chunks > 1:
            for number, stage in enumerate(found):
                assert [part.split(".")[-1] for part in stage.parameter_names()] == [str(number)] * len(
                    stage.parameter_names()
                )
    assert {part for stage in stages for part in stage.parameter_names()} == {
        part for part, _ in model.named_parameters()
    }


def test_a_workload_cuts_the_output_layer_into_the_chunks_of_its_loss() -> None:
    config = compose(["data=toy_copy", "model=attentional", "loss.vocab_chunks=2", "scale=local"])
    workload = TranslationWorkload(config, "cpu", prepare(config))
    names = [name for name, _ in workload.build_model(fine=True).named_parameters() if name.startswith("output")]
    assert names == ["output.weight.0", "output.weight.1", "output.bias.0", "output.bias.1"]
    model = workload.build_model(fine=True)
    assert [stage.name for stage in workload.stages(model, fine=True)][-2:] == ["output.0", "output.1"]
    whole = FlatParameters(workload.build_model())
    assert torch.equal(FlatParameters(model).values, whole.values)
