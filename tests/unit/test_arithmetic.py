"""The canonical step's arithmetic: fixed trees, chunked norms, updates that any cut may share."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.arithmetic import (
    CHUNK,
    FlatParameters,
    PairwiseSum,
    chunks,
    clip_,
    clip_parameters_,
    norm,
    parameter_norms,
    square_sums,
)
from distributed.optimizers import Adam, Sgd, build_optimizer
from distributed.strategy import BatchPlan, OptimizerSpec


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2))


def reference_tree(leaves: list[str]) -> str:
    """The tree in words: neighbours of equal height first, what is left over from the right."""
    nodes = [(1, leaf) for leaf in leaves]
    stack: list[tuple[int, str]] = []
    for node in nodes:
        stack.append(node)
        while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
            right, left = stack.pop(), stack.pop()
            stack.append((left[0] * 2, f"({left[1]}+{right[1]})"))
    while len(stack) > 1:
        right, left = stack.pop(), stack.pop()
        stack.append((left[0], f"({left[1]}+{right[1]})"))
    return stack[0][1]


@given(st.integers(1, 33))
@settings(max_examples=33, deadline=None)
def test_pairwise_sum_follows_its_tree_to_the_bit(leaves: int) -> None:
    flat = FlatParameters(small_model())
    generator = torch.Generator().manual_seed(leaves)
    values = [torch.randn(flat.values.shape, generator=generator) for _ in range(leaves)]
    tree = PairwiseSum(flat)
    for value in values:
        tree.add(value.clone())
    names = {f"v{i}": value for i, value in enumerate(values)}
    expected = eval(reference_tree(list(names)), {}, names)
    assert torch.equal(tree.result(), expected)


def test_pairwise_sum_holds_logarithmically_many_buffers() -> None:
    tree = PairwiseSum(FlatParameters(small_model()))
    for _ in range(1000):
        tree.add(torch.zeros(48))
        assert len(tree._nodes) <= 10


def test_flat_parameters_are_the_model() -> None:
    model = small_model()
    flat = FlatParameters(model)
    before = model(torch.ones(1, 5)).detach().clone()
    flat.collect_into(flat.new_buffer())
    model(torch.ones(1, 5)).sum().backward()
    weight = dict(model.named_parameters())["0.weight"]
    assert torch.equal(flat.view(flat.gradient, "0.weight"), weight.grad)
    assert flat.gradient.abs().sum() > 0
    flat.values.mul_(2.0)
    assert torch.equal(weight, flat.view(flat.values, "0.weight"))
    assert not torch.equal(model(torch.ones(1, 5)), before)


@pytest.mark.parametrize("elements", [7, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_norm_is_exact_to_fp64_and_independent_of_threads(elements: int) -> None:
    values = torch.randn(elements, generator=torch.Generator().manual_seed(1))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(norm(square_sums(values)))
    assert found[0] == found[1]
    assert found[0] == pytest.approx(math.sqrt(math.fsum(v * v for v in values.tolist())), rel=1e-13)


def test_norm_of_a_cut_at_chunk_borders_is_the_norm_of_the_whole() -> None:
    values = torch.randn(6 * CHUNK + 100, generator=torch.Generator().manual_seed(2))
    cut = 4 * CHUNK
    parts = square_sums(values[:cut])[:-1] + square_sums(values[cut:])
    assert norm(parts) == norm(square_sums(values))


def test_norm_lets_non_finite_values_through() -> None:
    assert math.isnan(norm(square_sums(torch.tensor([1.0, math.nan]))))
    assert norm(square_sums(torch.tensor([1.0, math.inf]))) == math.inf


def test_clipping_scales_only_what_is_too_long() -> None:
    gradient = torch.tensor([3.0, 4.0])
    clip_(gradient, 5.0, 10.0)
    assert gradient.tolist() == [3.0, 4.0]
    clip_(gradient, 5.0, 0.0)
    assert gradient.tolist() == [3.0, 4.0]
    clip_(gradient, 5.0, 1.0)
    assert gradient.tolist() == pytest.approx([0.6, 0.8])


def wide_model() -> torch.nn.Module:
    """Parameters that begin and end anywhere between chunk borders; the second spans several."""
    torch.manual_seed(0)
    shapes = {"a": (300, 100), "b": (700, 190), "c": (5,), "d": (CHUNK,)}
    model = torch.nn.Module()
    for name, shape in shapes.items():
        model.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))
    return model


def test_the_norm_of_each_parameter_is_exact_and_the_same_from_any_shards() -> None:
    flat = FlatParameters(wide_model())
    whole = parameter_norms(flat, flat.values)
    chunks_in_all = -(-flat.values.numel() // CHUNK)
    for cuts in ([2], [1, 3], list(range(1, chunks_in_all))):
        borders = [0, *(cut * CHUNK for cut in cuts), flat.values.numel()]
        for name, (start, shape) in flat.layout.items():
            stop = start + shape.numel()
            sums = []
            for left, right in itertools.pairwise(borders):
                shard = flat.values[left:right].clone()  # a process has its shard only
                inside = max(start, left) - left, min(stop, right) - left
                if inside[0] < inside[1]:
                    sums += square_sums(shard, *inside)
            assert norm(sums) == whole[name]
            expected = math.sqrt(math.fsum(v * v for v in flat.view(flat.values, name).flatten().tolist()))
            assert whole[name] == pytest.approx(expected, rel=1e-13)


def test_only_the_named_parameters_are_clipped_each_by_its_own_norm() -> None:
    flat = FlatParameters(small_model())
    gradient = flat.new_buffer()
    for name, value in (("0.weight", 3.0), ("0.bias", 3.0), ("1.weight", 0.001)):
        flat.view(gradient, name).fill_(value)
    clip_parameters_(flat, gradient, {"0.weight": 0.1, "1.weight": 0.1})
    norms = parameter_norms(flat, gradient)
    assert norms["0.weight"] == pytest.approx(0.1)
    assert norms["0.bias"] == pytest.approx(3.0 * math.sqrt(3))
    assert flat.view(gradient, "1.weight").eq(0.001).all()


def adam_reference(form: str, steps: int) -> float:
    """Adam of one number with gradient 0.5 in plain Python, from the paper's equations."""
    x, m, v, rate, b1, b2, epsilon = 1.0, 0.0, 0.0, 0.1, 0.9, 0.999, 1e-2
    for t in range(1, steps + 1):
        m, v = b1 * m + (1 - b1) * 0.5, b2 * v + (1 - b2) * 0.25
        if form == "tf":
            x -= rate * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (math.sqrt(v) + epsilon)
        else:
            x -= rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + epsilon)
    return x


@pytest.mark.parametrize("form", ["tf", "torch"])
def test_adam_equals_its_equations_in_both_epsilon_forms(form: str) -> None:
    rule = Adam(epsilon=1e-2, epsilon_form=form)
    values = torch.ones(3)
    state = {slot: torch.zeros(3) for slot in rule.slots}
    for update in range(1, 6):
        rule.apply(values, torch.full((3,), 0.5), state, update, 0.1)
    assert values.tolist() == pytest.approx([adam_reference(form, 5)] * 3, abs=1e-6)
    assert abs(adam_reference("tf", 5) - adam_reference("torch", 5)) > 1e-3


def test_momentum_is_the_classical_one() -> None:
    rule = Sgd(momentum=0.5)
    values, state = torch.zeros(1), {"velocity": torch.zeros(1)}
    rule.apply(values, torch.ones(1), state, 1, 0.1)
    rule.apply(values, torch.ones(1), state, 2, 0.1)
    assert values.item() == pytest.approx(-0.1 * (1.0 + 1.5))


RULES = {"adam": "distributed.optimizers:Adam", "sgd": "distributed.optimizers:Sgd"}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_update_has_the_same_bits_for_any_cut_and_any_number_of_threads(name: str) -> None:
    results = []
    for size, threads in ((8 * CHUNK, 1), (CHUNK, 2), (3 * CHUNK, 2)):
        torch.set_num_threads(threads)
        rule = build_optimizer(OptimizerSpec(RULES[name], {"momentum": 0.9} if name == "sgd" else {}))
        generator = torch.Generator().manual_seed(3)
        values = torch.randn(10 * CHUNK + 5, generator=generator)
        gradient = torch.randn(10 * CHUNK + 5, generator=generator)
        moments = [torch.zeros_like(values) for _ in rule.slots]
        for update in (1, 2, 3):
            for part, g, *rest in chunks(values, gradient, *moments, size=size):
                rule.apply(part, g, dict(zip(rule.slots, rest, strict=True)), update, 1e-3)
        results.append(values)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_slots_form_equal_groups_or_are_refused() -> None:
    assert BatchPlan(6, 3).slots_per_group == 2
    with pytest.raises(ValueError, match="4 slots cannot form 3"):
        BatchPlan(4, 3)
