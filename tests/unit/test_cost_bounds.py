"""What a training step may cost, in products, bytes and waits of the host, which no machine's load changes.

Each figure is what the code needs as it stands, with its reason. Products are exact: whoever adds one sees which. Bytes
are bounds: a change that keeps more fails here, and one that keeps less lowers the bound. Decoding is in
test_cost_bounds_decoding.py. Seconds are measured by scripts/bench.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cost_examples import HEADS, LAYERS, MODELS, A, C, D, E, F, H, U, config_of, model_of
from cost_examples import SENTENCES as B
from cost_examples import VOCABULARY as V
from torch import Tensor

from distributed.single import SingleStrategy
from nmt.data.batching import Batch
from nmt.data.vocabulary import SOS
from nmt.models import vocabulary_chunk
from nmt.models.dropout import AddressedDropout
from nmt.models.loss import training_loss
from nmt.models.recurrent import packing
from nmt.profiling.counting import Allocations, HostReads, ProductCount
from nmt.profiling.floors import Product
from nmt.profiling.operations import useful_operations
from nmt.profiling.phases import Given
from nmt.profiling.synthetic import synthetic_data
from nmt.training.workload import TranslationSlot, TranslationWorkload

each_model = pytest.mark.parametrize("name", MODELS)


@dataclass(frozen=True)
class Step:
    """The products of a forward and of a backward pass, the bytes that lay in memory between, and the largest tensor's.

    Parameters and their gradients were there before.
    """

    forward: Counter[Product]
    backward: Counter[Product]
    kept: int
    largest: int

    @property
    def operations(self) -> int:
        return sum(times * product.operations for product, times in (self.forward + self.backward).items())


@functools.cache
def step_of(name: str, source: int | tuple[int, ...], target: int | tuple[int, ...]) -> Step:
    """Of `B` sentence pairs of `source` and `target` tokens, or of pairs of the lengths given, EOS counted."""
    sources, targets = ((length,) * B if isinstance(length, int) else length for length in (source, target))
    model = model_of(name)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.arange(3, 3 + max(targets)).expand(len(targets), -1)
    batch = Batch(
        source=torch.arange(3, 3 + max(sources)).expand(len(sources), -1),
        source_lengths=torch.tensor(sources),
        target_input=torch.cat((torch.full_like(tokens[:, :1], SOS), tokens[:, :-1]), dim=1),
        target_output=tokens,
        target_lengths=torch.tensor(targets),
    )
    slot = TranslationSlot(batch, AddressedDropout(1, 1, 0), sum(targets), sum(sources))
    with Allocations() as made:
        carried: dict[str, Tensor] = {}
        with ProductCount() as forward:
            for stage in model.stages():
                carried = stage(slot, carried)
        kept = made.alive
        with ProductCount() as backward:
            carried["loss"].backward()
    return Step(forward.products, backward.products, kept, made.largest)


def more(few: Counter[Product], many: Counter[Product]) -> dict[Product, int]:
    """The products that a longer loop makes more often; those outside of it have other shapes then."""
    return {product: times - few[product] for product, times in many.items() if 0 < few[product] != times}


def to_first_factor(products: Mapping[Product, int]) -> dict[Product, int]:
    """The products of the gradients of first factors."""
    return {Product(rows, columns, inner, n): times for (rows, inner, columns, n), times in products.items()}


def test_only_what_waits_for_the_step_before_stands_in_a_loop() -> None:
    """And on the way back only the gradient of what did; each weight's gradient is one product over all steps."""
    short, source, target = step_of("recurrent", 5, 5), step_of("recurrent", 6, 5), step_of("recurrent", 5, 6)
    # Both directions at once.
    reading = {Product(B, U, 2 * U, batch=2): LAYERS, Product(B, U, U, batch=2): LAYERS}
    assert more(short.forward, source.forward) == reading
    assert more(short.backward, source.backward) == to_first_factor(reading)
    writing = {
        Product(B, C, 3 * H): 1,  # the context into the first layer's gates
        Product(B, H, 2 * H): LAYERS,  # the state into reset and update gate
        Product(B, H, H): LAYERS,  # the reset state into the candidate
        Product(B, H, 3 * H): LAYERS - 1,  # the output into the next layer's gates
        Product(B, H, A): 1,  # query
        Product(1, A, 5, batch=B): 1,  # scores
        Product(1, 5, C, batch=B): 1,  # context
    }
    assert more(short.forward, target.forward) == writing
    assert more(short.backward, target.backward) == to_first_factor(writing)


def outside_of_loops(name: str) -> tuple[int, int]:
    """Products of a forward and of a backward pass that do not become more with the lengths."""
    output = 3  # logits, and the gradients of both factors while a piece of the logits is there
    if name == "transformer":
        self_attention, memory_attention, feed_forward = 4, 6, 2  # with keys and values of the memory, made apart
        forward = LAYERS * (2 * self_attention + memory_attention + 2 * feed_forward)
        return forward + output, 2 * forward  # the gradients of both factors of each
    inputs, keys, embeddings, mix = LAYERS, 1, 1, 1  # the encoder's layers' inputs, the first decoder layer's
    weights = 2 * LAYERS + 3 * LAYERS + 1  # recurrent ones; the decoder's, with those of its inputs; the query's
    backward = 2 * (inputs + keys + mix) + embeddings + weights + 2  # to keys and values, over all steps
    return inputs + keys + embeddings + mix + output, backward


@each_model
@pytest.mark.parametrize(("source", "target"), [(5, 5), (6, 5), (5, 6), (6, 9)])
def test_products_of_a_training_step(name: str, source: int, target: int) -> None:
    step, (forward, backward) = step_of(name, source, target), outside_of_loops(name)
    reading, writing = (2 * LAYERS, 3 * LAYERS + 3) if name == "recurrent" else (0, 0)
    looped = reading * source + writing * target
    assert (step.forward.total(), step.backward.total()) == (forward + looped, backward + looped)


@each_model
def test_a_training_step_computes_what_is_useful_and_nothing_twice(name: str) -> None:
    useful = useful_operations(config_of(name), (V, V)).of(np.full(B, 6), np.full(B, 9))
    assert step_of(name, 6, 9).operations == sum(useful.values())


@each_model
def test_the_output_layer_and_a_recurrent_encoder_compute_no_padding(name: str) -> None:
    sources, targets = (9,) * B + (3,) * B, (4,) * B + (7,) * B
    found = step_of(name, sources, targets).forward
    width = H if name == "recurrent" else D
    assert {product: found[product] for product in found if product.columns == V} == {Product(11 * B, width, V): 1}
    if name == "recurrent":
        assert found[Product(12 * B, E, 3 * U, batch=2)] == 1
        gates = {product.rows: times for product, times in found.items() if product[1:] == (U, 2 * U, 2)}
        assert gates == {2 * B: 3 * LAYERS, B: 6 * LAYERS}


def recurrent_bytes(s: int, t: int) -> int:
    """What a pair of `s` and `t` tokens leaves in memory for its backward pass, or sets aside for it."""
    layer = 3 * U + U + U  # gates, reset state, state
    reading = 2 * (2 * E + layer) + 2 * (LAYERS - 1) * (2 * U + layer)  # with each layer's input and its mask
    memory = C + A  # values and keys
    order = 8 * (2 + 2 + 1) + 4  # packed places, to and fro in each direction and a step back; four masks of a byte

    layer = 3 * H + H + H
    writing = E + 2 * (E + C) + (LAYERS - 1) * 2 * H + LAYERS * layer  # embeddings, inputs of layers and their masks
    attention = C + 2 * A + 2 * s  # context; query and weights, both with room for their gradients
    mixed = (H + C) + H + H  # its input, the output, the output's mask
    output = H  # the gradient of its input
    place = 8  # of a real token in the batch
    first = 2 * LAYERS * U + 2 * LAYERS * H + C  # before the first token: states, the decoder's twice, and a context
    return 4 * (s * (reading + memory) + t * (writing + attention + mixed + output) + first) + s * order + t * place


def transformer_bytes(s: int, t: int) -> int:
    """The same of the Transformer."""
    norm = 3 * D + 2  # its input, normalised and scaled; the statistics
    feed_forward = norm + F + D  # inside, mask
    weights = 2 * HEADS  # of a query and a key: their logarithm too
    encoder_layer = norm + 3 * D + s * weights + D + D + feed_forward  # query, keys, values; context; mask
    decoder_layer = encoder_layer + (t - s) * weights + norm + D + s * weights + D + D  # and over the memory
    source = D + LAYERS * encoder_layer + norm + LAYERS * 2 * D  # first mask; memory
    target = D + LAYERS * decoder_layer + norm - D + D  # nobody keeps the last, scaled; gradient of the output's input
    return 4 * (s * source + t * target) + 4 * s + 8 * t  # four masks of padding, a byte each; places of real tokens


@each_model
@pytest.mark.parametrize(("source", "target"), [(5, 5), (9, 5), (5, 9)])
def test_bytes_kept_between_forward_and_backward_pass(name: str, source: int, target: int) -> None:
    """Those of every pair, the loss, the gradients of output weight and bias, and what all pairs share."""
    if name == "recurrent":
        pair, width = recurrent_bytes(source, target), H
        shared = 4 * sum(parameter.numel() for parameter in model_of(name).encoder.parameters())  # directions together
    else:
        pair, width = transformer_bytes(source, target), D
        shared = target * target  # which positions are later
    assert step_of(name, source, target).kept <= B * pair + shared + 4 * (V * width + V + 1)


@each_model
def test_logits_of_all_tokens_never_stand_in_memory(name: str) -> None:
    target = 1 + vocabulary_chunk.PIECE_BYTES // (B * V * 4)
    assert step_of(name, 5, target).largest <= vocabulary_chunk.PIECE_BYTES < B * target * V * 4


class Peak(Allocations):
    """The most that was alive at a time, as well."""

    most = 0

    def after(self, result: Any) -> None:
        super().after(result)
        self.most = max(self.most, self.alive)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_output_layer_holds_one_piece_of_logits_and_the_gradients(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside these a block of the softmax; in bf16 also the operands and their gradients, half the size each."""
    size, copies = (4, 1) if precision == "fp32" else (2, 2)
    monkeypatch.setattr(vocabulary_chunk, "PIECE_BYTES", 1 << 20)
    monkeypatch.setattr(vocabulary_chunk, "BLOCK", 1 << 14)
    words = 1000
    tokens = 2 * (1 << 20) // (words * size) - 10  # two pieces
    hidden, weight, bias = (torch.zeros(shape, requires_grad=True) for shape in ((tokens, H), (words, H), (words,)))
    targets = torch.zeros(tokens, dtype=torch.int64)
    with Peak() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = training_loss(hidden, weight, bias, targets, 0.1)
        loss.backward()
    gradients = hidden.nbytes + weight.nbytes + bias.nbytes
    assert seen.largest == tokens // 2 * words * size
    assert seen.most <= seen.largest + copies * gradients + 4 * vocabulary_chunk.BLOCK


@each_model
def test_the_host_waits_for_a_training_step_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the gradient's norm, which may stop the update, and for the losses of all slots."""
    monkeypatch.setattr(packing, "shrinks", lambda device: False)  # as on a GPU
    slots = 2
    config = config_of(name, f"batch.micro_batches={slots}", f"batch.size={B}")
    workload = TranslationWorkload(config, "cpu", synthetic_data(B, V, 4))
    given = [workload.slot(1, slot) for slot in range(slots)]  # batches are made by the host
    monkeypatch.setattr(workload, "slot", lambda index, slot, probe: given[slot])
    strategy = SingleStrategy()
    strategy.start(Given("", {}, workload))
    with HostReads() as reads:
        strategy.step(1)
    assert reads.counts == {"tolist": 2}
