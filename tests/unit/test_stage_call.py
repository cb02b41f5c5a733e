"""Stages that run apart, with nothing but contiguous tensors between them, give the bits of the model in one piece."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import non_recurrent_reference as non_recurrent
import pytest
import torch
from models_reference import ExampleSlot, model_config, padded_batch
from torch import Tensor

from distributed.arithmetic import FlatParameters, PairwiseSum, norm, square_sums
from distributed.ring_tmp.stage_call import StageCall, StageCalls, shared
from distributed.ring_tmp.stage_times import time_stages
from distributed.single import SingleStrategy
from nmt.config import compose
from nmt.config.schema import LossConfig, ModelConfig
from nmt.models.dropout import AddressedDropout
from nmt.models.scheduled_sampling import ScheduledSampling
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.models.stages import ModelStage
from nmt.models.watch import GradientWatch
from nmt.training.workload import workload_spec

VOCABULARY = 40
SENTENCES = (5, 1, 20)  # of the slots: fewer and more than stay to the end of a packed batch, and a single row

PLAIN = {
    "gru": model_config(encoder_layers=2, dropout=0.2),
    "lstm, final state": model_config(kind="lstm", attention="additive", bridge="projection", dropout=0.2),
    "vanilla, without attention": model_config(kind="vanilla", attention="none_state", encoder_layers=2, dropout=0.2),
    "beside each input": model_config("unidirectional", attention="none_input", encoder_layers=2),
    "joined, dense": model_config("stacked_bidirectional", encoder_layers=3, dropout=0.2, combiner="add", dense=True),
    "concat, torch": model_config(encoder_layers=3, dropout=0.2, combiner="concat", dense=True, family="torch"),
    "reversed": model_config("unidirectional", encoder_layers=2, reverse=True, combiner="mean", dropout=0.2),
    "shared and tied": model_config(share=True, tie=True, dropout=0.2),
    "transformer": non_recurrent.model_config(dropout=0.1),
    "transformer, tied": non_recurrent.model_config(tie=True, dropout=0.1),
    "convolutional": non_recurrent.model_config("convolutional", "recurrent", dropout=0.1),
    "pooling": non_recurrent.model_config("pooling", "recurrent", dropout=0.1),
    "recurrent under transformer": non_recurrent.model_config("bidirectional", dropout=0.1),
}
OTHERS = {
    "layers apart, concat": model_config(
        "unidirectional", "lstm", "none_state", decoder_layers=3, combiner="concat", dropout=0.2
    ),
    "layers apart, mean": model_config("unidirectional", "gru", "none_input", decoder_layers=3, combiner="mean"),
    "layers apart, torch": model_config(attention="none_state", decoder_layers=3, family="torch", dropout=0.2),
    "layers together": model_config(attention="none_state", decoder_layers=3, combiner="add", dense=True),
    "tied": model_config(tie=True, dropout=0.2),
    "shared": model_config(share=True, dropout=0.2),
    "unmasked": model_config(attention="additive", masked=False, reverse=True),
    "pass_through": model_config("unidirectional", encoder_layers=2, bridge="pass_through", units=(6, 6)),
    "dot": model_config("unidirectional", attention="dot", units=(6, 6)),
    "learned scale": model_config(attention="additive", scaling="learned", dropout=0.2),
    "convolutional under transformer": non_recurrent.model_config("convolutional", dropout=0.1),
    "pooling under transformer": non_recurrent.model_config("pooling"),
    "transformer under recurrent": non_recurrent.model_config("transformer", "recurrent", dropout=0.1),
}


def built(config: ModelConfig, vocabulary: int = VOCABULARY) -> Seq2Seq:
    target = vocabulary + (0 if config.embedding.share else 3)
    return build_model(config, vocabulary, target, LossConfig(label_smoothing=0.1), seed=3)


def slots(
    form: str = "none",
    watched: bool = False,
    vocabulary: int = VOCABULARY,
    sentences: Sequence[int] = SENTENCES,
) -> list[ExampleSlot]:
    draw = random.Random(1)

    def some(count: int) -> list[list[int]]:
        return [[draw.randrange(3, vocabulary) for _ in range(draw.randrange(1, 9))] for _ in range(count)]

    return [
        ExampleSlot(
            padded_batch(some(count), some(count)),
            AddressedDropout(1, 2, number),
            None if form == "none" else ScheduledSampling(form, 0.5, 1, 2, number),
            GradientWatch() if watched else None,
        )
        for number, count in enumerate(sentences)
    ]


def widened(config: ModelConfig) -> ModelConfig:
    """Products of another order of size, which go other ways through the libraries."""
    return replace(
        config,
        embedding=replace(config.embedding, units=96),
        encoder=replace(config.encoder, units=96),
        decoder=replace(config.decoder, units=96),
        attention=replace(config.attention, units=96 if config.attention.units else 0),
    )


def precision(bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()


def over_the_wire(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies as a receiver may have them: contiguous, and at an odd place in memory."""
    copies = {}
    for name, tensor in tensors.items():
        assert tensor.is_contiguous() and not tensor.requires_grad
        buffer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        copies[name] = buffer[1:].view(tensor.shape).copy_(tensor)
    return copies


Result = tuple[list[Tensor], dict[str, Tensor]]


def with_empty_gradients(model: Seq2Seq) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def in_one_piece(model: Seq2Seq, given: Sequence[ExampleSlot], bf16: bool, sampled: bool = False) -> Result:
    """Losses and gradients of slots whose gradients share a buffer, as `single` computes them."""
    with_empty_gradients(model)
    tokens, losses = sum(slot.target_tokens for slot in given), []
    for slot in given:
        with precision(bf16):
            carried: dict[str, Tensor] = {}
            for stage in model.stages(sampled):
                carried = stage(slot, carried)
        (carried["loss"] / tokens).backward()
        losses.append(carried["loss"].detach())
    return losses, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def in_ranges(
    model: Seq2Seq, stages: Sequence[ModelStage], cuts: Sequence[int], given: Sequence[ExampleSlot], bf16: bool
) -> Result:
    """The same by ranges of stages that know of each other what is carried."""
    with_empty_gradients(model)
    tokens, losses = sum(slot.target_tokens for slot in given), []
    calls = [StageCalls(model, stages, *ends) for ends in itertools.pairwise([0, *cuts, len(stages)])]
    for slot in given:
        waiting: list[StageCall] = []
        carried: dict[str, Tensor] = {}
        for call in calls:
            with precision(bf16):
                waiting.append(call.forward(slot, over_the_wire(carried), tokens))
            carried = waiting[-1].handed_on
        losses.append(carried["loss"])
        gradients: dict[str, Tensor] = {}
        for one in reversed(waiting):
            gradients = one.backward(over_the_wire(dict(reversed(gradients.items()))))
        assert gradients == {}
    return losses, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def differing(one: Result, other: Result) -> list[str]:
    """What has other bits, the sign of a zero included."""

    def bits(tensor: Tensor) -> Tensor:
        return tensor.view(torch.int32)

    losses = [f"loss {number}" for number, (a, b) in enumerate(zip(one[0], other[0], strict=True)) if not a.equal(b)]
    return losses + [name for name, a in one[1].items() if not bits(a).equal(bits(other[1][name]))]


def check(config: ModelConfig, bf16: bool, some: int | None, form: str = "none") -> None:
    """The finest cut, none, and `some` others, or all there are."""
    model, sampled = built(config), form != "none"
    whole = in_one_piece(model, slots(form), bf16, sampled)
    assert all(loss.isfinite() for loss in whole[0])
    stages = model.stages(sampled, fine=True, directions=not bf16)
    places = range(1, len(stages))
    every: Iterator[tuple[int, ...]] = itertools.chain.from_iterable(
        itertools.combinations(places, count) for count in range(len(places) + 1)
    )
    draw = random.Random(len(stages))
    cuts = list(every) if some is None else [(), tuple(places)]
    cuts += [tuple(place for place in places if draw.random() < 0.5) for _ in range(some or 0)]
    for cut in cuts:
        assert differing(whole, in_ranges(model, stages, cut, slots(form), bf16)) == [], cut


@pytest.mark.parametrize("family", PLAIN)
def test_a_cut_changes_no_bit(family: str) -> None:
    check(PLAIN[family], bf16=False, some=1)


@pytest.mark.parametrize("family", ["gru", "transformer, tied"])
def test_a_cut_changes_no_bit_in_mixed_precision(family: str) -> None:
    check(PLAIN[family], bf16=True, some=1)


def test_a_cut_changes_no_bit_under_scheduled_sampling() -> None:
    check(model_config(encoder_layers=2, tie=True, dropout=0.2), bf16=False, some=1, form="output")


@pytest.mark.exhaustive
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_no_cut_of_any_family_changes_a_bit(family: str, bf16: bool) -> None:
    config = {**PLAIN, **OTHERS}[family]
    check(config, bf16, some=None if len(built(config).stages(fine=True)) <= 7 else 12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("attention", ["additive", "multiplicative", "none_state", "none_input"])
@pytest.mark.parametrize("encoder", ["unidirectional", "bidirectional", "stacked_bidirectional"])
@pytest.mark.parametrize("kind", ["gru", "lstm", "vanilla"])
def test_no_cut_of_a_recurrent_model_changes_a_bit(kind: str, encoder: str, attention: str) -> None:
    residuals = [("none", False), ("add", False), ("add", True), ("mean", True), ("concat", False), ("concat", True)]
    for number, (combiner, dense) in enumerate(residuals):
        config = model_config(
            encoder,
            kind,
            attention,
            encoder_layers=2 + number % 2,
            dropout=0.2 * (number % 3 > 0),
            family="torch" if number % 2 else "tf",
            combiner=combiner,
            dense=dense,
            reverse=number == 2,
            bridge="projection" if attention in ("additive", "multiplicative") and number % 2 else "",
        )
        check(config, bf16=number % 4 in (1, 2), some=2)  # each family in both


@pytest.mark.exhaustive
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("form", ["embedding", "output"])
def test_no_cut_under_scheduled_sampling_changes_a_bit(form: str, bf16: bool) -> None:
    check(model_config(encoder_layers=2, tie=True, share=True, dropout=0.2), bf16, None, form)


@pytest.mark.parametrize("family", ["gru", "concat, torch"])
def test_a_direction_alone_has_its_bits_with_a_single_sentence_too(family: str) -> None:
    model, given = built(widened(PLAIN[family])), slots(sentences=(1,))
    stages = model.stages(fine=True)
    whole = in_one_piece(model, given, bf16=False)
    assert differing(whole, in_ranges(model, stages, range(1, len(stages)), given, bf16=False)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", [*PLAIN, *(name for name in OTHERS if name.startswith("layers"))])
def test_no_cut_of_a_wide_model_changes_a_bit_whatever_the_threads(family: str, bf16: bool) -> None:
    model, given = built(widened({**PLAIN, **OTHERS}[family]), 700), slots(vocabulary=700, sentences=(33, 64))
    stages, before = model.stages(fine=True, directions=not bf16), torch.get_num_threads()
    whole = in_one_piece(model, given, bf16)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            if bf16:  # whose products have other bits for other numbers of threads
                whole = in_one_piece(model, given, bf16)
            assert differing(whole, in_ranges(model, stages, range(1, len(stages)), given, bf16)) == []
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("words", [[], ["training.precision=bf16"]])
def test_a_step_of_single_by_ranges_of_a_run_s_own_stages(words: list[str], tmp_path: Path) -> None:
    small = "{vocabulary: 8, min_length: 2, max_length: 6, train_size: 200, validation_size: 5, test_size: 5}"
    shape = ["scale=smoke", "batch.micro_batches=4", "batch.groups=2", "model.encoder.layers=2"]
    config = compose(["data=toy_reverse", f"data.options={small}", *shape, f"paths.cache={tmp_path}", *words])
    single = SingleStrategy()
    single.start(workload_spec(config, "cpu"))
    workload = workload_spec(config, "cpu").build()
    model = workload.build_model()
    flat, stages, tokens = FlatParameters(model), workload.stages(model, fine=True), workload.slot_tokens(1)
    assert ("encoder.backwards.1" in [stage.name for stage in stages]) == (not words)
    calls = [StageCalls(model, stages, 0, 2), StageCalls(model, stages, 2, len(stages))]
    tree, losses = PairwiseSum(flat), []
    for number in range(4):
        if number % 2 == 0:
            flat.collect_into(flat.new_buffer())
        slot = workload.slot(1, number)
        with workload.autocast():
            first = calls[0].forward(slot, {}, sum(tokens))
        with workload.autocast():
            second = calls[1].forward(slot, over_the_wire(first.handed_on), sum(tokens))
        losses.append(second.handed_on["loss"].item())
        first.backward(over_the_wire(second.backward({})))
        if number % 2:
            tree.add(flat.gradient)
    found, stats = norm(square_sums(tree.result())), single.step(1)
    assert (math.fsum(losses) / sum(tokens), found) == (stats.loss, stats.gradient_norm)


@pytest.mark.parametrize("family", ["transformer", "beside each input", "gru"])
def test_gradients_inside_the_model_are_seen_as_in_one_piece(family: str) -> None:
    model, watched, cut = built(PLAIN[family]), slots(watched=True), slots(watched=True)
    stages = model.stages(fine=True)
    in_one_piece(model, watched, bf16=False)
    in_ranges(model, stages, range(1, len(stages)), cut, bf16=False)
    for one, other in zip(watched, cut, strict=True):
        assert one.watch is not None and other.watch is not None
        seen = one.watch.square_sums()
        assert seen == other.watch.square_sums() and {"decoder.0", "decoder.1"} <= seen.keys()


def carried_by_cut(config: ModelConfig, directions: bool = True) -> dict[str, dict[str, tuple[int, ...]]]:
    """By stage, what a cut behind it carries: names and shapes, for the first slot."""
    model, found, carried = built(config), {}, {}
    for stage in model.stages(fine=True, directions=directions):
        carried = stage(slots()[0], carried)
        found[stage.name] = {name: tuple(tensor.shape) for name, tensor in carried.items()}
    return found


def test_a_cut_carries_what_later_stages_read_and_nothing_else() -> None:
    time, batch, target = 9, 5, 9  # of the first slot
    total = batch * time  # so few sentences stay to the end of a packed batch
    assert carried_by_cut(model_config(encoder_layers=2)) == {
        "source_embedding": {"source": (time, batch, 6)},
        "encoder.forwards.0": {"encoder.backwards.packed": (1, total, 6), "encoder.forwards.1": (1, total, 5)},
        "encoder.forwards.1": {"encoder.backwards.packed": (1, total, 6), "encoder.forwards.2": (1, total, 5)},
        "encoder.backwards.0": {"encoder.backwards.1": (1, total, 5), "encoder.forwards.2": (1, total, 5)},
        "encoder.backwards.1": {"outputs": (time, batch, 10)},
        "target_embedding": {"outputs": (time, batch, 10), "target": (target, batch, 6)},
        "attention.keys": {
            "memory.keys": (batch, time, 4),
            "memory.values": (batch, time, 10),
            "target": (target, batch, 6),
        },
        "decoder": {"decoder.contexts": (target, batch, 10), "decoder.tops": (target, batch, 6)},
        "decoder.mix": {"mix": (target, batch, 6)},
        "output": {"loss": ()},
    }
    both = carried_by_cut(model_config(), directions=False)
    decoder = ["target_embedding", "attention.keys", "decoder", "decoder.mix"]
    assert list(both) == ["source_embedding", "encoder.0", *decoder, "output"]
    dot = carried_by_cut(model_config("unidirectional", attention="dot", units=(6, 6)))
    assert list(dot) == ["source_embedding", "encoder.0", "target_embedding", "decoder", "decoder.mix", "output"]


def test_a_final_state_rides_along_where_the_decoder_reads_it_and_outputs_where_it_attends() -> None:
    time, batch = 9, 5
    total = batch * time
    found = carried_by_cut(model_config("unidirectional", "lstm", "none_state", encoder_layers=2))
    states = {f"final.forwards.0.{part}": (batch, 5) for part in (0, 1)}
    assert found["encoder.0"] == {"encoder.1": (1, total, 5), **states}
    assert found["encoder.1"] == {"final_state": (batch, 20)}
    assert found["decoder.0"] == {"decoder.1": (9, batch, 6), "decoder.first.1": (batch, 12)}
    attending = carried_by_cut(model_config("unidirectional", "lstm", encoder_layers=2))
    assert attending["encoder.1"] == {"outputs": (time, batch, 5)}


def test_the_memory_rides_along_through_a_transformer_and_dense_connections_through_an_encoder() -> None:
    found = carried_by_cut(PLAIN["transformer"])
    assert list(found) == [
        "source_embedding",
        *("encoder.0", "encoder.1"),
        "target_embedding",
        *("decoder.0", "decoder.1"),
        "output",
    ]
    assert found["decoder.0"] == {"decoder.1": (5, 9, 12), "outputs": (9, 5, 8)}
    assert found["decoder.1"] == {"mix": (9, 5, 12)}
    dense = carried_by_cut(PLAIN["joined, dense"])
    assert set(dense["encoder.1.backwards"]) == {"encoder.0", "encoder.1", "encoder.2"}
    plain = carried_by_cut(model_config("stacked_bidirectional", encoder_layers=3))
    assert set(plain["encoder.1.backwards"]) == {"encoder.2"}
    assert set(plain["encoder.1.forwards"]) == {"encoder.1.packed", "encoder.1.forwards.outputs"}


def test_what_is_not_cut_says_why() -> None:
    def why(config: ModelConfig, sampled: bool = False) -> dict[str, str]:
        return {stage.name: stage.couples for stage in built(config).stages(sampled, fine=True) if stage.couples}

    softmax = "the softmax is over the whole vocabulary"
    fed = "each step of its lowest layer is fed the context that its top layer has asked for the step before"
    assert why(model_config()) == {"decoder": fed, "output": softmax}
    assert why(PLAIN["transformer"]) == {"output": softmax}
    sampling = "with scheduled sampling each step reads what the output layer made of the step before"
    assert why(model_config(), sampled=True) == {"decoder_output": sampling}
    assert why(model_config(attention="none_state")) == {"output": softmax}
    together = "its layers go through the target together, step by step"
    assert why(OTHERS["layers together"]) == {"decoder": together, "output": softmax}
    assert why(PLAIN["pooling"])["encoder"] == "it does not say how it may be cut"


def test_the_gradient_of_a_tied_table_goes_back_through_ranges_that_do_not_read_it() -> None:
    model = built(PLAIN["shared and tied"])
    stages, slot, table = model.stages(fine=True), slots()[0], "source_embedding.weight"
    names = [stage.name for stage in stages]
    assert [table in stage.parameter_names() for stage in stages] == [
        name in ("source_embedding", "target_embedding", "output") for name in names
    ]
    with_empty_gradients(model)
    ranges = [(0, 1), (1, 3), (3, 4), (4, 7), (7, 8)]
    calls, carried = [], {}
    for ends in ranges:
        calls.append(StageCalls(model, stages, *ends).forward(slot, carried, 10))
        carried = calls[-1].handed_on
    gradients: dict[str, Tensor] = {}
    sums = []
    for call in reversed(calls):
        assert not model.source_embedding.weight.grad.any()  # only the first reader adds to it
        gradients = call.backward(gradients)
        sums.append(gradients.get(shared(table)))
    last, decoder, embedding, encoder, first = sums
    assert last is decoder and embedding is encoder and first is None
    assert last is not None and embedding is not None and not last.equal(embedding)


def test_ranges_that_are_none_are_refused() -> None:
    model = built(model_config())
    for ends in ((0, 0), (2, 1), (0, 9), (-1, 2)):
        with pytest.raises(ValueError, match=r"stages -?\d to \d of 8"):
            StageCalls(model, model.stages(fine=True), *ends)


class Timed:
    """As much of a workload as is asked for its times."""

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()


def test_costs_of_stages() -> None:
    model = built(model_config(encoder_layers=2, tie=True))
    stages, given = model.stages(fine=True), slots()[:1]
    model.output.bias.grad = kept = torch.ones_like(model.output.bias)
    ticks = itertools.count()
    costs = time_stages(Timed(), model, stages, given, clock=lambda: float(next(ticks)))
    assert [cost.name for cost in costs] == [stage.name for stage in stages]
    assert all(cost.forward == cost.backward == 1.0 and cost.seconds == 2.0 for cost in costs)
    by_name = {cost.name: cost for cost in costs}
    assert by_name["decoder.mix"].handed_on == {"mix": 9 * 5 * 6 * 4}
    table = "target_embedding.weight"
    assert by_name["output"].returned == {"mix": 9 * 5 * 6 * 4, shared(table): 43 * 6 * 4}
    assert by_name["source_embedding"].returned == {}
    assert by_name["output"].parameters == {table: 43 * 6, "output.bias": 43}
    assert by_name["output"].handed_on == {}
    keys = by_name["attention.keys"]  # keeps what the product reads, batch by batch, and what it hands on
    assert keys.kept_bytes == (5 * 9 * 10 + 5 * 9 * 4) * 4
    cost = by_name["decoder"].cost()
    assert cost.output_bytes == (9 * 5 * 6 + 9 * 5 * 10) * 4 and cost.kept_bytes > cost.output_bytes
    assert (cost.seconds, cost.couples) == (2.0, by_name["decoder"].couples) and "context" in cost.couples
    assert model.output.bias.grad is kept and kept.eq(1).all() and model.target_embedding.weight.grad is None
    with pytest.raises(ValueError, match="no slots"):
        time_stages(Timed(), model, stages, [])


class Constant:
    """A first stage without parameters, and a second that reads one number of what it makes."""

    couples = ""

    def __init__(self, name: str):
        self.name = name

    def parameter_names(self) -> Sequence[str]:
        return ["weight"] if self.name == "reads" else []

    def __call__(self, slot: Any, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.name == "makes":
            return {"x": torch.tensor([1.0, 2.0]), "place": torch.tensor(1)}
        return {"loss": (carried["x"] * slot)[carried["place"]].sum()}


def test_what_needs_no_gradient_is_carried_and_gets_none() -> None:
    weight = torch.nn.Linear(1, 1, bias=False)
    stages = [Constant("makes"), Constant("reads")]
    first = StageCalls(weight, stages, 0, 1).forward(weight.weight[0], {}, 1)
    second = StageCalls(weight, stages, 1, 2).forward(weight.weight[0], first.handed_on, 1)
    assert second.handed_on["loss"].item() == 2 * weight.weight.item()
    assert first.backward(second.backward({})) == {}
    assert weight.weight.grad.item() == 2
