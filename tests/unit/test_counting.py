"""The instruments of the benchmark and of the cost bounds, against code whose costs are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nmt.config import compose
from nmt.models.plain import plain_autograd
from nmt.models.seq2seq import build_model
from nmt.profiling.costs import Shape, batch_of, blank_slot
from nmt.profiling.counting import Allocations, HostReads, ProductCount
from nmt.profiling.floors import Product, fastest, product_rate
from nmt.profiling.operations import Polynomial, useful_operations

SMALL = [
    "model/attention=multiplicative", "model.embedding.units=3", "model.encoder.units=5", "model.decoder.units=7",
    "model.attention.units=4",
]  # fmt: skip
TRANSFORMER = ["model=transformer", "scale=smoke", "model.encoder.layers=2", "model.decoder.layers=1"]


def test_products_are_counted_by_shape_in_both_directions() -> None:
    layer, x = nn.Linear(5, 7), torch.ones(2, 3, 5, requires_grad=True)
    with ProductCount() as forward:
        y = layer(x)
    assert forward.products == {Product(6, 5, 7): 1}
    with ProductCount() as backward:
        y.sum().backward()
    assert backward.products == {Product(6, 7, 5): 1, Product(7, 6, 5): 1}
    assert backward.operations == 2 * forward.operations == 4 * 6 * 5 * 7
    with ProductCount() as by_sentence, torch.inference_mode():
        torch.bmm(torch.ones(4, 1, 3), torch.ones(4, 3, 2)), layer(x)
    assert by_sentence.products == {Product(1, 3, 2, batch=4): 1, Product(6, 5, 7): 1}


def test_memory_of_changed_and_of_freed_tensors_is_not_counted() -> None:
    before = torch.ones(1000)
    with Allocations() as found:
        before.mul_(2)
        before[:10].add_(1)
        assert (found.alive, found.largest) == (0, 0)
        for _ in range(20):  # storages that come to lie where others lay
            kept = before + 1
        view = kept[5:]
    assert found.alive == found.largest == 4000
    del kept, view
    assert found.alive == 0


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x[0]), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu().numpy(), 2),
        (lambda x: x[x > 0], 1),
        (lambda x: torch.nonzero(x), 1),
        (lambda x: torch.nonzero_static(x, size=3), 0),
        (lambda x: x[torch.tensor([0, 1])], 0),
        (lambda x: torch.where(x > 0, x, -x).softmax(0).cumsum(0), 0),
    ],
)
def test_reads_of_the_host_are_counted_without_a_gpu(read, count) -> None:  # type: ignore[no-untyped-def]
    with HostReads() as found:
        read(torch.tensor([1.0, 2.0, 3.0]))
    assert found.count == count, found.counts


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_reads_are_counted_where_composite_operations_arrive_whole(context: type[torch.no_grad]) -> None:
    with context(), HostReads() as found:
        torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).sum().item()
    assert found.counts == {"_local_scalar_dense": 1}


def test_a_polynomial_is_found_from_six_counts() -> None:
    count = lambda s, t: 7 + 2 * s + 3 * t + 5 * s * t + 11 * s * s + 13 * t * t  # noqa: E731
    found = Polynomial.through(count)
    assert found.coefficients == (7, 2, 3, 5, 11, 13)
    assert found.total(np.array([4, 9]), np.array([6, 1])) == count(4, 6) + count(9, 1)


@pytest.mark.parametrize("overrides", [["scale=smoke", *SMALL], TRANSFORMER], ids=["recurrent", "transformer"])
def test_useful_operations_are_those_of_sentences_without_padding(overrides: list[str], tmp_path: Path) -> None:
    config = compose([*overrides, f"paths.runs={tmp_path}"])
    source, target = np.array([3, 8, 8]), np.array([5, 1, 9])
    found = useful_operations(config, (30, 40)).of(source, target)
    assert set(found) == {"encoder", "decoder", "output", "attention"}

    total = 0
    with torch.device("meta"), plain_autograd(), torch.no_grad():
        model = build_model(config.model, 30, 40, config.loss)
        for s, t in zip(source.tolist(), target.tolist(), strict=True):
            with FlopCounterMode(display=False) as counter:
                carried: dict[str, torch.Tensor] = {}
                for stage in model.stages():
                    carried = stage(blank_slot(batch_of(Shape(1, s, t)), t), carried)
            total += counter.get_total_flops()
    assert sum(found.values()) == 3 * total
    units = config.model.decoder.units
    assert found["output"] == 3 * 2 * 40 * units * int(target.sum())
    if overrides is not TRANSFORMER:
        contexts = config.model.encoder.units * 2 + config.model.attention.units
        assert config.model.attention.name == "additive" or found["attention"] == 3 * 2 * contexts * int(
            source @ target
        )


def test_a_rate_is_operations_by_the_time_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from nmt.profiling import floors

    clock = iter(range(100))
    monkeypatch.setattr(floors.time, "perf_counter", lambda: float(next(clock)))  # a second a timing
    assert product_rate(Product(2, 3, 5, batch=4), torch.float32) == 2 * 4 * 2 * 3 * 5
    assert fastest(lambda: None, timings=2) == 1.0
