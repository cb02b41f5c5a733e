"""What a stage owns of the flat buffer, its norms and its copy: the bits of one process, wherever the borders lie."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from distributed.arithmetic import (
    CHUNK,
    FlatParameters,
    chunks,
    clip_,
    clip_parameters_,
    norm,
    parameter_norms,
    square_sums,
)
from distributed.errors import FrameError
from distributed.optimizers import build_optimizer
from distributed.ring.messages import Ring
from distributed.ring_tmp.barrier import PrepareBarrier
from distributed.ring_tmp.parts import Gradients, GroupSums, Held, Part, chunk_pieces, parts_of
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.probes import ProbePieces
from distributed.ring_tmp.scalars import Contribution, Decision, Pieces, StepFacts, decide
from distributed.ring_tmp.shadow import PartState
from distributed.strategy import BatchPlan, OptimizerSpec

LENGTHS = {"a": 5, "b": CHUNK + 7, "c": 100, "d": 3 * CHUNK, "e": 33, "f": CHUNK // 2}
STAGES = [("one", ["b", "e"]), ("two", ["a", "d"]), ("three", ["c", "f"])]
RULE = OptimizerSpec(
    "distributed.optimizers:Adam", {}, max_norm=1.0, parameter_max_norms={"d": 0.5, "e": 1e-3, "a": 9.0}
)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, length in LENGTHS.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(length, generator=generator)))


def whole_gradient(flat: FlatParameters, seed: int) -> torch.Tensor:
    buffer = flat.new_buffer()
    generator = torch.Generator().manual_seed(seed)
    for name in flat.layout:
        view = flat.view(buffer, name)
        view.copy_(torch.randn(view.shape, generator=generator))
    return buffer


def parts() -> tuple[Part, ...]:
    shapes = {name: parameter.shape for name, parameter in Model().named_parameters()}
    return parts_of(shapes, STAGES)


def cut_parts() -> tuple[Part, ...]:
    """The rows of `d` lie on stages two and three, and the border is inside a chunk."""
    one, two, three = parts()
    a, d = two.held
    rows = CHUNK + CHUNK // 3
    upper, lower = Held("d", d.start, (rows,)), Held("d", d.start + rows, (LENGTHS["d"] - rows,))
    c, f = three.held
    return one, Part("two", (a, upper), two.elements), Part("three", (c, lower, f), three.elements)


def split(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """What a stage has of a whole buffer."""
    own = torch.zeros(part.size)
    for held in part.held:
        start = part.local(held.start)
        own[start : start + held.stop - held.start] = whole[held.start : held.stop]
    return own


def placed(owners: Sequence[int]) -> Placement:
    return Placement(Ring(1, tuple(dict.fromkeys(owners))), tuple(owners))


def test_a_part_has_whole_chunks_in_order() -> None:
    one, two, three = parts()
    flat = FlatParameters(Model())
    assert one.chunks == (0, 1, 4)
    assert two.chunks == (0, 1, 2, 3, 4)
    assert [(held.name, held.start) for held in one.held] == [(name, flat.layout[name][0]) for name in ("b", "e")]
    assert three.chunks == (1, 4)
    assert three.size == CHUNK + len(flat.values) - 4 * CHUNK  # the last chunk is a short one
    assert all(one.local(held.start) % CHUNK == held.start % CHUNK for held in one.held)
    assert one.runs[0] == (16, 16 + LENGTHS["b"])
    assert sum(stop - start for part in parts() for start, stop in part.runs) >= sum(LENGTHS.values())
    values = torch.arange(float(one.size))
    assert torch.equal(one.view(values, "e"), values[one.runs[1][0] :][:33])


def test_neighbouring_parameters_are_sent_in_one_piece() -> None:
    shapes = {name: torch.Size([length]) for name, length in LENGTHS.items()}
    [everything] = parts_of(shapes, [("all", LENGTHS)])
    assert everything.runs == ((0, everything.elements - (-LENGTHS["f"] % 16)),)


def test_a_shared_parameter_belongs_to_the_stage_that_reads_it_first() -> None:
    one, two = parts_of({"x": torch.Size([4]), "y": torch.Size([2, 3])}, [("one", ["x"]), ("two", ["x", "y"])])
    assert [list(one.views), list(two.views)] == [["x"], ["y"]]
    assert two.view(torch.zeros(two.size), "y").shape == (2, 3)


def test_groups_are_added_by_the_tree_and_slots_must_ascend() -> None:
    [part] = parts_of({"x": torch.Size([64])}, [("one", ["x"])])
    leaves = [torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    for groups in (1, 2, 3, 6):
        each = 6 // groups
        pool = Gradients([part])
        sums = GroupSums(BatchPlan(6, groups), pool, 0)
        for slot, leaf in enumerate(leaves):
            if slot != 1:  # an empty one
                sums.buffer(slot).add_(leaf)
        nodes = []
        for group in range(groups):
            total = torch.zeros(64)
            for slot in range(group * each, (group + 1) * each):
                if slot != 1:
                    total = total + leaves[slot]
            nodes.append(total)
        wanted = {
            1: lambda n: n[0],
            2: lambda n: n[0] + n[1],
            3: lambda n: (n[0] + n[1]) + n[2],
            6: lambda n: ((n[0] + n[1]) + (n[2] + n[3])) + (n[4] + n[5]),
        }[groups](nodes)
        assert torch.equal(sums.result(), wanted)
    again = GroupSums(BatchPlan(6, 3), Gradients([part]), 0)
    again.buffer(2)
    with pytest.raises(ValueError, match="slot 2 comes after slot 2"):
        again.buffer(2)


# --------------------------------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize("owners", [(0, 0, 0), (0, 1, 1), (0, 1, 2), (0, 1, 0)], ids=str)
@pytest.mark.parametrize("make", [parts, cut_parts], ids=["whole", "cut"])
def test_every_node_has_the_norm_of_one_process_to_the_bit(owners: tuple[int, ...], make: object) -> None:
    some: tuple[Part, ...] = make()  # type: ignore[operator]
    flat = FlatParameters(Model())
    placement = placed(owners)
    start, length = flat.layout["d"][0], LENGTHS["d"]
    for seed in range(4):
        whole = whole_gradient(flat, seed)
        own = {stage: split(whole, part) for stage, part in enumerate(some)}
        for pieces, wanted in [
            (Pieces(chunk_pieces(0, len(whole)), some, placement), norm(square_sums(whole))),
            (Pieces(chunk_pieces(start, start + length), some, placement), parameter_norms(flat, whole, ["d"])["d"]),
        ]:
            said = {}
            for node in dict.fromkeys(owners):
                mine = {stage: own[stage] for stage in placement.stages_of(node)}
                sums, elements = pieces.contribution(node, mine)
                said[node] = Contribution.from_bytes(Contribution({}, sums, elements).to_bytes())
            assert pieces.norm(said) == wanted
            if len(set(owners)) == 1:
                assert not said[0].elements.numel()


def test_only_chunks_of_several_nodes_travel_whole() -> None:
    some, placement = parts(), placed((0, 1, 2))
    pieces = Pieces(chunk_pieces(0, some[0].elements), some, placement)
    own = {stage: torch.zeros(part.size) for stage, part in enumerate(some)}
    counts = {
        node: [len(one) for one in pieces.contribution(node, {node: own[node]})] for node in range(3)
    }  # square sums, elements
    assert [counts[node][0] for node in range(3)] == [0, 2, 0]  # chunks 2 and 3 are all of d
    assert sum(counts[node][1] for node in range(3)) < 3 * CHUNK


def test_a_gradient_that_is_not_finite_is_none_for_all() -> None:
    some, placement = parts(), placed((0, 1, 2))
    pieces = Pieces(chunk_pieces(0, some[0].elements), some, placement)
    own = {stage: torch.zeros(part.size) for stage, part in enumerate(some)}
    own[1][3] = math.nan
    said = {node: Contribution({}, *pieces.contribution(node, {node: own[node]})) for node in range(3)}
    assert math.isnan(pieces.norm(said))
    own[1][3] = math.inf
    said = {node: Contribution({}, *pieces.contribution(node, {node: own[node]})) for node in range(3)}
    assert pieces.norm(said) == math.inf
    assert not decide(1, 10, math.inf, [StepFacts([1.0])]).is_update
    assert decide(1, 10, 1.0, [StepFacts([1.0])]).is_update


def test_losses_are_summed_exactly_whoever_says_them() -> None:
    facts = [StepFacts([1e16, 1.0], 3, {"x": [4.0]}), StepFacts([-1e16], 4, {"x": [5.0], "y": [9.0]})]
    for order in (facts, facts[::-1]):
        decision = decide(2, 4, 1.0, order)
        assert (decision.loss, decision.source_tokens, decision.target_tokens) == (0.25, 7, 4)
        assert decision.inner == {"x": 3.0, "y": 3.0}
    assert Decision.from_dict(decision.to_dict()) == decision


def test_words_that_cannot_be_are_refused() -> None:
    word = Contribution({"losses": [0.1]}, (1.0, math.pi), torch.tensor([1.5]))
    again = Contribution.from_bytes(word.to_bytes())
    assert (again.facts, again.sums) == (word.facts, word.sums)
    assert torch.equal(again.elements, word.elements)
    for bad in (b"", b"short", word.to_bytes()[:-1], word.to_bytes() + b"x"):
        with pytest.raises(FrameError, match="are no node's word of a step"):
            Contribution.from_bytes(bad)
    pieces = Pieces(chunk_pieces(0, parts()[0].elements), parts(), placed((0, 0, 0)))
    with pytest.raises(FrameError, match="node 0 says other pieces"):
        pieces.norm({0: word})


# --------------------------------------------------------------------------------------------------------- the barrier


class Barriers:
    """The barriers of some nodes, and what is under way between them."""

    def __init__(self, some: Sequence[Part], owners: Sequence[int], rule: OptimizerSpec = RULE):
        self.placement = placed(owners)
        ring = self.placement.ring
        self.under_way: dict[int, list[tuple[int, int, int, bytes]]] = {node: [] for node in ring.order}
        self.sent: list[tuple[int, int]] = []  # who sent, whose word

        def send(node: int) -> object:
            def to_successor(step: int, origin: int, round_: int, word: bytes) -> None:
                self.under_way[ring.successor(node)].append((step, origin, round_, word))
                self.sent.append((node, origin))

            return to_successor

        self.nodes = {
            node: PrepareBarrier(node, some, self.placement, rule, lambda step: [4], send(node))  # type: ignore[arg-type]
            for node in ring.order
        }


def run_barrier(some: Sequence[Part], owners: Sequence[int], whole: torch.Tensor, seed: int) -> Barriers:
    one = Barriers(some, owners)
    pick = random.Random(seed)
    silent = list(one.nodes)
    while silent or any(one.under_way.values()):
        assert not silent or all(node.decision(1) is None for node in one.nodes.values())
        moves = [*silent, *(node for node, queue in one.under_way.items() if queue)]
        node = pick.choice(moves)
        if node in silent and (not one.under_way[node] or pick.random() < 0.5):
            silent.remove(node)
            own = {stage: split(whole, some[stage]) for stage in one.placement.stages_of(node)}
            one.nodes[node].speak(1, own, StepFacts([float(node)]))
        else:
            one.nodes[node].hear(*one.under_way[node].pop(0))
    return one


@pytest.mark.parametrize("owners", [(0, 0, 0), (0, 1, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("make", [parts, cut_parts], ids=["whole", "cut"])
def test_all_words_take_n_minus_one_hops_and_all_nodes_decide_the_same(owners: tuple[int, ...], make: object) -> None:
    some: tuple[Part, ...] = make()  # type: ignore[operator]
    flat = FlatParameters(Model())
    whole = whole_gradient(flat, 5)
    clipped = whole.clone()
    clip_(clipped, norm(square_sums(whole)), RULE.max_norm)
    wanted = parameter_norms(flat, clipped, ["d"])["d"]
    for seed in range(4):
        one = run_barrier(some, owners, whole, seed)
        count = len(one.nodes)
        rounds = 2 if make is cut_parts else 1
        assert len(one.sent) == rounds * count * (count - 1)
        assert {node.decision(1).norm for node in one.nodes.values()} == {norm(square_sums(whole))}  # type: ignore[union-attr]
        decisions = [node.decision(1) for node in one.nodes.values()]
        assert all(decision == decisions[0] for decision in decisions)
        assert decisions[0] is not None
        assert decisions[0].loss == sum(one.nodes) / 4
        assert decisions[0].clips == ({"d": wanted} if make is cut_parts else {})


def test_words_that_are_not_due_are_refused() -> None:
    one = Barriers(parts(), (0, 1, 2))
    word = Contribution({}, (), torch.empty(0)).to_bytes()
    one.nodes[0].hear(1, 2, 0, word)
    with pytest.raises(FrameError, match="node 2 speaks of a step twice"):
        one.nodes[0].hear(1, 2, 0, word)
    with pytest.raises(FrameError, match="node 7 is no member"):
        one.nodes[0].hear(1, 7, 0, word)
    with pytest.raises(FrameError, match="a step has 1 rounds"):
        one.nodes[0].hear(1, 2, 1, word)


# --------------------------------------------------------------------------------------------------------- the state


def first_moments(flat: FlatParameters) -> Mapping[str, Mapping[str, torch.Tensor]]:
    slots = build_optimizer(RULE).slots
    return {slot: flat.views(torch.zeros_like(flat.values)) for slot in slots}


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("make", [parts, cut_parts], ids=["whole", "cut"])
def test_parts_are_stepped_as_the_whole_is(make: object, lag: int) -> None:
    some: tuple[Part, ...] = make()  # type: ignore[operator]
    flat = FlatParameters(Model())
    optimizer = build_optimizer(RULE)
    moments = {slot: torch.zeros_like(flat.values) for slot in optimizer.slots}
    states = [PartState(part, build_optimizer(RULE), RULE, lag) for part in some]
    for part, state in zip(some, states, strict=True):
        state.values.copy_(split(flat.values, part))
    history = [flat.values.clone()]
    for step in range(1, 4):
        gradient = whole_gradient(flat, step)
        own = [split(gradient, part) for part in some]
        whole = norm(square_sums(gradient))
        clip_(gradient, whole, RULE.max_norm)
        clips = parameter_norms(flat, gradient, ["d"]) if make is cut_parts else {}
        clip_parameters_(flat, gradient, RULE.parameter_max_norms)
        if step != 2:
            for values, piece, *rest in chunks(flat.values, gradient, *moments.values()):
                optimizer.apply(values, piece, dict(zip(moments, rest, strict=True)), step - (step > 2), 0.1)
        history.append(flat.values.clone())
        decision = Decision(step, whole, 1.0 if step != 2 else math.nan, 4, 4, clips=clips)
        for part, state, mine in zip(some, states, own, strict=True):
            before = mine.clone()
            state.apply(mine, decision, 0.1)
            assert torch.equal(mine, before)  # it was sent, and may still be read
            assert torch.equal(state.values, split(flat.values, part))
            assert torch.equal(state.of_version(step), state.values)
            assert torch.equal(state.of_version(step - lag), split(history[step - lag], part))
            assert all(torch.equal(state.moments()[slot], split(moments[slot], part)) for slot in moments)
            assert (state.step, state.updates) == (step, step - (step >= 2))


def test_a_probed_step_tells_what_it_took_from_the_parameters() -> None:
    flat = FlatParameters(Model())
    [part] = [one for one in parts() if one.name == "two"]
    state = PartState(part, build_optimizer(RULE), RULE, 0)
    state.load({"step": 0, "updates": 0}, flat.views(flat.values), first_moments(flat))
    before, gradient = state.values.clone(), whole_gradient(flat, 1)
    change = state.apply(split(gradient, part), Decision(1, norm(square_sums(gradient)), 1.0, 4, 4), 0.1, probe=True)
    assert change is not None
    assert torch.equal(change, before - state.values)
    assert bool(change.any())


@pytest.mark.parametrize("cut", [parts, cut_parts])
def test_the_words_of_all_stages_give_the_norm_of_each_parameter(cut: Callable[[], tuple[Part, ...]]) -> None:
    flat = FlatParameters(Model())
    gradient = whole_gradient(flat, 1)
    ranges = {name: (start, start + shape.numel()) for name, (start, shape) in flat.layout.items()}
    pieces = ProbePieces(cut(), ranges)
    words = [pieces.words(stage, split(gradient, part)) for stage, part in enumerate(cut())]
    assert pieces.norms(reversed(words)) == parameter_norms(flat, gradient)
    assert pieces.norms(words[:1]).keys() == {"b", "e"}


def test_a_checkpoint_of_two_versions_fills_both() -> None:
    [part] = parts_of({"x": torch.Size([3])}, [("one", ["x"])])
    state = PartState(part, build_optimizer(RULE), RULE, 1)
    moments = {slot: {"x": torch.full((3,), 7.0)} for slot in build_optimizer(RULE).slots}
    new, old = torch.full((3,), 5.0), torch.full((3,), 4.0)
    state.load({"step": 5, "updates": 4}, {"x": new}, moments, {"x": old})
    assert torch.equal(part.view(state.values, "x"), new)
    assert torch.equal(part.view(state.of_version(4), "x"), old)
    assert state.facts() == {"step": 5, "updates": 4}
    state.load({"step": 5, "updates": 4}, {"x": new}, moments)
    assert torch.equal(part.view(state.of_version(4), "x"), new)
    assert len(state.buffers()) == 4
