"""What of a model goes round together, and when; that shards cover it; and that memory given back really is free."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from distributed.ring.messages import Ring
from distributed.ring_rotate.formulas import bytes_sent, resident_bytes
from distributed.ring_rotate.plan import BYTES, Pass, RotationPlan, Unit, groups_of, rotation_plan
from distributed.ring_rotate.seating import Seating
from distributed.ring_rotate.shard import gathered, scatter
from distributed.ring_rotate.unit_memory import UnitMemory, mapped_zeros
from distributed.ring_tmp.parts import Held


@dataclass
class Reads:
    """A stage, as far as a plan looks at it."""

    name: str
    names: list[str]
    couples: str = ""

    def parameter_names(self) -> list[str]:
        return self.names

    def __call__(self, slot: object, carried: object) -> dict[str, torch.Tensor]:
        raise NotImplementedError


def plan_of(sizes: list[int], seats: int, shared: int = 0, part_bytes: int = 4 * 2**20) -> RotationPlan:
    """A stage for each size, with one parameter; `shared` elements that the first and the last read."""
    shapes = {f"p{number}": torch.Size([size]) for number, size in enumerate(sizes)}
    stages = [Reads(f"s{number}", [f"p{number}"]) for number in range(len(sizes))]
    if shared:
        shapes["shared"] = torch.Size([shared])
        stages[0].names.append("shared")
        stages[-1].names.append("shared")
    return rotation_plan(shapes, stages, seats, part_bytes=part_bytes)


@pytest.mark.parametrize(("sizes", "groups"), [
    ([5], [(0, 1)]),
    ([5, 5, 5], [(0, 1), (1, 2), (2, 3)]),
    ([1, 2, 9, 3, 3, 3, 1], [(0, 2), (2, 3), (3, 6), (6, 7)]),
    ([0, 0, 7, 0, 0], [(0, 5)]),
    ([4, 0, 6, 1, 5, 6], [(0, 2), (2, 3), (3, 5), (5, 6)]),
])  # fmt: skip
def test_neighbouring_stages_go_together_up_to_the_size_of_the_largest(
    sizes: list[int], groups: list[tuple[int, int]]
) -> None:
    assert groups_of(sizes) == groups
    assert max(sum(sizes[start:stop]) for start, stop in groups) == max(sizes)


def test_a_step_goes_there_and_back_with_two_groups_at_a_time() -> None:
    plan = plan_of([100, 100, 100, 100], seats=2)
    assert [(phase.kind, phase.group) for phase in plan.phases] == [
        (Pass.FORWARD, 0), (Pass.FORWARD, 1), (Pass.FORWARD, 2),
        (Pass.TURN, 3), (Pass.BACK, 2), (Pass.BACK, 1), (Pass.BACK, 0),
    ]  # fmt: skip
    assert plan.gathers == (0, 1, 2, 3, 1, 0)  # the last two once
    assert [phase.gathers for phase in plan.phases] == [(0,), (1,), (2,), (3,), (), (4,), (5,)]
    assert [phase.frees for phase in plan.phases] == [(0,), (1,), (), (3,), (2,), (1,), (0,)]
    assert [phase.completes for phase in plan.phases] == [(), (), (), (3,), (2,), (1,), (0,)]


def test_what_two_groups_read_stays_from_the_first_to_the_last() -> None:
    plan = plan_of([100, 100, 100], seats=2, shared=50)
    held = [[one.name for one in unit.held] for unit in plan.units]
    assert held == [["p0"], ["shared"], ["p1"], ["p2"]]
    assert plan.gathers.count(1) == 1  # the last group reads it, too
    assert all(1 in phase.needs for phase in plan.phases)
    assert [phase.completes for phase in plan.phases] == [(), (), (3,), (2,), (0, 1)]


@pytest.mark.parametrize("seats", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[1000, 3000, 17, 2500], [40, 8, 3]])
def test_shards_have_every_element_once_and_are_put_together_again(sizes: list[int], seats: int) -> None:
    plan = plan_of(sizes, seats, shared=130)
    whole = torch.arange(1.0, 1.0 + sum(math.ceil(size / 16) * 16 for size in [*sizes, 130]))
    own = [gathered(plan, seat, whole) for seat in range(seats)]
    found = torch.zeros_like(whole)
    for seat, buffer in enumerate(own):
        assert len(buffer) == plan.shard_elements(seat)
        scatter(plan, seat, buffer, found)
    known = sorted(float(value) for buffer in own for value in buffer if value)
    assert known == sorted(float(value) for value in found if value)  # nothing twice
    start = 0
    for size in [*sizes, 130]:
        assert torch.equal(found[start : start + size], whole[start : start + size])
        start += math.ceil(size / 16) * 16
    names: dict[str, int] = {}
    for seat in range(seats):
        for name, ranges in plan.parameters_of(seat).items():
            names[name] = names.get(name, 0) + sum(last - first for first, last in ranges)
    assert names == {f"p{number}": size for number, size in enumerate(sizes)} | {"shared": 130}


@pytest.mark.parametrize("seats", [2, 3, 8])
def test_bytes_are_three_times_the_parameters_but_for_the_last_two_groups(seats: int) -> None:
    sizes = [400_000, 300_000, 250_000, 420_000]
    plan = plan_of(sizes, seats)
    words = (3 * sum(sizes) - sum(sizes[-2:])) * (seats - 1) / seats
    for seat in range(seats):
        assert bytes_sent(plan, seat, shadows=False) == pytest.approx(BYTES * words, rel=1e-3)
        copy = BYTES * sum(sizes) / seats
        assert bytes_sent(plan, seat, shadows=True) == pytest.approx(BYTES * words + copy, rel=1e-3)
    # Many layers: parameters gathered twice, gradients scattered once.
    many = plan_of([100_000] * 200, seats)
    whole = 3 * BYTES * 200 * 100_000 * (seats - 1) / seats
    assert 0.98 * whole < bytes_sent(many, 0, shadows=False) <= whole
    assert bytes_sent(plan_of(sizes, 1), 0, shadows=True) == 0


def test_a_node_has_its_share_and_two_layers() -> None:
    """With Adam 4 P / N words, and as many for the shadow; two groups' parameters and as many gradients beside them."""
    sizes, seats = [100_000] * 20, 4
    plan, share = plan_of(sizes, seats), 20 * 100_000 / seats
    found = resident_bytes(plan, moments=2, shadows=False)
    assert found == pytest.approx(BYTES * (4 * share + 2 * 100_000 + 2 * 100_000), rel=1e-3)
    assert resident_bytes(plan, moments=2, shadows=True) - found == pytest.approx(BYTES * 4 * share, rel=1e-3)
    whole = BYTES * 4 * sum(sizes)
    assert found < 0.31 * whole


@pytest.mark.parametrize(("owners", "seats", "shadowed"), [
    ((0, 1, 2), {0: [0], 1: [1], 2: [2]}, {0: [2], 1: [0], 2: [1]}),
    ((0, 0, 2), {0: [0, 1], 2: [2]}, {0: [2], 2: [0, 1]}),
    ((2, 1, 2), {1: [1], 2: [2, 0]}, {1: [2, 0], 2: [1]}),
    ((7, 7, 7), {7: [0, 1, 2]}, {7: []}),
])  # fmt: skip
def test_seats_of_a_node_follow_each_other_over_the_end_of_the_ring_too(
    owners: tuple[int, ...], seats: dict[int, list[int]], shadowed: dict[int, list[int]]
) -> None:
    seating = Seating(Ring(1, tuple(sorted(seats))), owners)
    assert {number: seating.seats_of(number) for number in seats} == seats
    assert {number: seating.shadowed_by(number) for number in seats} == shadowed


MEGABYTES = 64  # more than what malloc ever keeps for itself


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_that_is_given_back_is_free_and_graphs_find_what_is_gathered_anew() -> None:
    size = MEGABYTES * 2**20 // BYTES // 1024
    unit = Unit((Held("weight", 0, (1024, size)),), 0, 0)
    memory = UnitMemory(unit)
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.data = unit.view(memory.flat, "weight")
    assert memory.bytes == 0
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, size, generator=generator, requires_grad=True)
    memory.allocate()
    memory.flat.copy_(torch.randn(unit.elements, generator=generator) / 100)
    wanted = parameter.detach().clone()
    y = functional.linear(torch.tanh(functional.linear(x, parameter)), parameter.t())
    before = resident()
    memory.free()
    assert before - resident() > 0.9 * MEGABYTES * 2**20
    memory.allocate()
    memory.flat.copy_(wanted.view(-1))
    y.sum().backward()
    found, x.grad = [x.grad, parameter.grad], None
    copy = wanted.clone().requires_grad_()
    functional.linear(torch.tanh(functional.linear(x, copy)), copy.t()).sum().backward()
    for one, other in zip(found, (x.grad, copy.grad), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("count", [1, 40])
def test_small_buffers_leave_no_holes_where_small_tensors_are_made_between_them(count: int) -> None:
    """As in a forward pass over many layers: what is kept of each is small, and lies between their parameters."""
    memories = [UnitMemory(Unit((Held("weight", 0, (2**18,)),), 0, 0)) for _ in range(count)]
    before, kept = resident(), []
    for memory in memories:
        memory.allocate()
        memory.flat.fill_(1.0)
        gradient = mapped_zeros(2**18).fill_(1.0)
        kept += [torch.ones(1000) for _ in range(10)]
        memory.free()
        del gradient
    assert resident() - before < count * 10 * 1000 * BYTES + 12 * 2**20
    assert not memories[0].flat[:10].any()


def test_rows_of_a_parameter_in_several_units_are_the_parameters() -> None:
    shapes = {"top": torch.Size([4, 16]), "bottom": torch.Size([6, 16])}
    stages = [Reads("upper", ["top"]), Reads("lower", ["bottom"])]
    plan = rotation_plan(shapes, stages, 2, named={"matrix": (0, 160)})
    assert len(plan.units) == 2
    assert [sum(last - first for first, last in plan.parameters_of(seat)["matrix"]) for seat in range(2)] == [
        plan.shard_elements(seat) for seat in range(2)
    ]
