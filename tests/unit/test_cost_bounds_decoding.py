"""What a step of a search may cost, in products, copies and waits of the host; see test_cost_bounds.py."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cost_examples import HEADS, LAYERS, MODELS, A, C, D, E, F, H, W, config_of, model_of
from cost_examples import SENTENCES as B
from cost_examples import VOCABULARY as V
from torch import Tensor

from nmt.data.vocabulary import EOS, SOS
from nmt.evaluation.decode import decode
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.recurrent import packing
from nmt.models.seq2seq import Seq2Seq
from nmt.profiling.counting import Allocations, HostReads, ProductCount
from nmt.profiling.floors import Product
from nmt.search import loop
from nmt.search.rows import STABLE_ROWS
from nmt.search.statistics import SearchStatistics

each_model = pytest.mark.parametrize("name", MODELS)

S = 8  # positions of a source: a length class of `decode`


@functools.cache
def endless(name: str) -> Seq2Seq:
    """Its outputs go on to their limit."""
    model = copy.deepcopy(model_of(name))
    with torch.no_grad():
        model.output.bias[EOS] = -50.0
    return model


def search_of(name: str, beam: int, steps: int, sentences: int = B, ahead: bool = False) -> Counter[Product]:
    """The products of a search through `steps` steps; `ahead`: what all tokens share is made in advance."""
    search = replace(config_of(name).search, beam=beam, max_length=steps)
    rows: Any = endless(name).in_rows(2 * V if ahead else 0)
    with ProductCount() as found:
        outputs = decode(rows, [np.arange(3, 2 + S)] * sentences, search)
    assert {len(best.tokens) for best, *_ in outputs} == {steps}
    return found.products


def decoding_products(name: str, k: int, length: int) -> dict[Product, int]:
    """Of the step that chooses the `length`-th token of `k` hypotheses a sentence, which share its memory."""
    rows = k * B
    if name == "recurrent":
        return {
            Product(rows, E, 3 * H): 1,
            Product(rows, C, 3 * H): 1,
            Product(rows, H, 2 * H): LAYERS,
            Product(rows, H, H): LAYERS,
            Product(rows, H, 3 * H): LAYERS - 1,
            Product(rows, H, A): 1,
            Product(k, A, S, batch=B): 1,
            Product(k, S, C, batch=B): 1,
            Product(rows, H + C, H): 1,
            Product(rows, H + 1, V): 1,  # with the bias
        }
    return {
        Product(rows, D, 3 * D): LAYERS,
        Product(1, W, length, batch=rows * HEADS): LAYERS,  # each over its own tokens
        Product(1, length, W, batch=rows * HEADS): LAYERS,
        Product(rows, D, D): 3 * LAYERS,  # output; query and output of attention over the memory
        Product(k, W, S, batch=B * HEADS): LAYERS,
        Product(k, S, W, batch=B * HEADS): LAYERS,
        Product(rows, D, F): LAYERS,
        Product(rows, F, D): LAYERS,
        Product(rows, D + 1, V): 1,
    }


@each_model
@pytest.mark.parametrize("beam", [1, 4])
def test_products_of_a_decoding_step(name: str, beam: int) -> None:
    """A larger beam has more rows, but neither more products nor a copy of what the encoder made."""
    step = search_of(name, beam, 4) - search_of(name, beam, 3)
    assert step == decoding_products(name, beam, 4)


def test_what_all_tokens_share_is_looked_up() -> None:
    step = search_of("recurrent", 4, 4, ahead=True) - search_of("recurrent", 4, 3, ahead=True)
    embedded = Product(4 * B, E, 3 * H)
    assert step == {product: n for product, n in decoding_products("recurrent", 4, 4).items() if product != embedded}


@each_model
def test_a_decoding_step_copies_nothing_that_the_encoder_made(name: str) -> None:
    model, time, k = endless(name).in_rows(), 40, 4
    places = torch.arange(B).repeat_interleave(k)
    with torch.inference_mode():
        encoded = model.encode(torch.full((B, time), 5), torch.full((B,), time))
        state = tuple(part[places] for part in model.start(encoded))
        with Allocations() as made:
            model.step(torch.full((k * B,), SOS), state, encoded, HypothesisRows(B, k))
    layers = LAYERS if name == "transformer" else 1  # each with a share of the memory
    assert made.largest < min(encoded.keys.nbytes, encoded.values.nbytes) / layers


class Rows(SearchStatistics):
    """Hypotheses that were extended, places of the beam, and rows that the model's step took, of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[tuple[int, int, int]] = []

    def step(self, going: Tensor, rows: int) -> None:
        self.each.append((int(going.sum()), going.numel(), rows))


@each_model
def test_only_live_hypotheses_are_computed(name: str) -> None:
    """One a sentence at first, then those that have not ended; a Transformer's step has all places, its logits not."""
    few, sentences, rows = 60, B + 4, Rows()
    model = copy.deepcopy(model_of(name, few))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that outputs differ, and end here and there
        model.output.bias[EOS] += {"recurrent": 1.0, "transformer": 3.0}[name]
    texts = [np.random.default_rng(number).integers(3, few, S - 1) for number in range(sentences)]
    with ProductCount() as found:
        decode(model, texts, replace(config_of(name).search, max_length=12), statistics=rows)
    live, places, computed = zip(*rows.each, strict=True)
    assert live[0] == sentences and len(set(live)) > 4 and sum(live) < 0.9 * sum(places)
    needed = [max(count, STABLE_ROWS) for count in live]
    assert list(computed) == (needed if name == "recurrent" else list(places))
    logits = Counter({product.rows: times for product, times in found.products.items() if product.columns == few})
    assert logits == Counter(needed)


@each_model
def test_the_host_waits_for_a_search_once_in_many_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever beam and sentences: for their lengths, now and then for whether any goes on, and for what was found."""
    monkeypatch.setattr(packing, "shrinks", lambda device: False)  # as on a GPU
    monkeypatch.setattr(loop, "reads_freely", lambda device: False)
    for beam, sentences, looks in ((1, B, 1), (4, B + 3, 2)):
        with HostReads() as reads:
            search_of(name, beam, looks * loop.LOOK_EVERY, sentences)
        assert reads.count == 6 + looks, reads.counts
