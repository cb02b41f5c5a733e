from collections.abc import Sequence

import pytest
import torch

from distributed.arithmetic import FlatParameters
from distributed.gradient_buffers import GradientBuffers

NAMES = ("first", "second", "third", "fourth")
SIZES = (5, 40, 17, 3)  # so that there are gaps between them in the flat buffer

Passes = Sequence[dict[str, torch.Tensor]]
"""Of each backward pass, the gradient of every parameter that it comes to."""


class Given(torch.nn.Module):
    """Parameters whose gradients are whatever a pass is told."""

    def __init__(self) -> None:
        super().__init__()
        for name, size in zip(NAMES, SIZES, strict=True):
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(size)))

    def backward(self, gradients: dict[str, torch.Tensor]) -> None:
        used = [self.get_parameter(name) for name in gradients]
        torch.autograd.backward([one * 1.0 for one in used], list(gradients.values()))


def given(seed: int, *names: str) -> dict[str, torch.Tensor]:
    """Random gradients, some of them negative zeros."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(SIZES[NAMES.index(name)], generator=generator) for name in names}
    return {name: torch.where(one > 0.5, torch.tensor(-0.0), one) for name, one in found.items()}


LEAVES: Sequence[Passes] = (
    [given(1, *NAMES)],
    [given(2, "first", "third"), given(3, "third", "fourth")],
    [],
    [given(4, "second")],
    [given(5, "second"), given(6, "second", "first")],
    [given(7, "fourth")],
)


class Collector:
    """A model whose gradients go through `GradientBuffers`."""

    def __init__(self, only_read: bool) -> None:
        self.model = Given()
        self.flat = FlatParameters(self.model)
        self.came: list[str] = []
        self.buffers = GradientBuffers(self.flat, dict(self.model.named_parameters()), only_read, self.came.append)

    def leaf(self, passes: Passes) -> torch.Tensor:
        buffer = self.buffers.begin()
        self.came.clear()
        for gradients in passes:
            self.model.backward(gradients)
        assert sorted(self.came) == sorted(name for gradients in passes for name in gradients)
        assert all(parameter.grad is None for parameter in self.model.parameters())
        self.buffers.end()
        return buffer


def summed_from_zeros(passes: Passes) -> torch.Tensor:
    model = Given()
    flat = FlatParameters(model)
    flat.collect_into(flat.new_buffer())
    for gradients in passes:
        model.backward(gradients)
    return flat.gradient


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("only_read", [True, False])
def test_a_buffer_used_again_and_again_has_the_bits_of_a_sum_from_zeros(only_read: bool) -> None:
    collector = Collector(only_read)
    addresses = set()
    for passes in (*LEAVES, *reversed(LEAVES)):
        buffer = collector.leaf(passes)
        assert same_bits(buffer, summed_from_zeros(passes))
        addresses.add(buffer.data_ptr())
        if not only_read:
            for part in collector.flat.views(buffer).values():
                part.fill_(torch.nan)
        collector.flat.release(buffer)
    assert len(addresses) == 1


def test_what_was_added_to_a_buffer_is_not_taken_for_zero() -> None:
    collector = Collector(only_read=True)
    left, right = collector.leaf(LEAVES[3]), collector.leaf(LEAVES[0])
    left.add_(right)
    collector.buffers.added(left, right)
    for one in (right, left):
        collector.flat.release(one)
    for _ in range(2):
        assert same_bits(collector.leaf([]), summed_from_zeros([]))


def test_a_leaf_that_was_broken_off_leaves_nothing_behind() -> None:
    collector = Collector(only_read=True)
    collector.flat.release(collector.leaf([]))
    broken_off = collector.buffers.begin()
    collector.model.backward(given(8, *NAMES))
    collector.buffers.forget(broken_off)
    collector.flat.release(broken_off)
    assert same_bits(collector.leaf([]), summed_from_zeros([]))
