"""What a ring of stages needs beside lag 1 to run with two versions of the parameters."""

from __future__ import annotations

import pytest
import torch
from staged_toy import staged_spec

from distributed.optimizers import build_optimizer
from distributed.ring.messages import Ring
from distributed.ring_tmp.cut import cut_model
from distributed.ring_tmp.executor import Executor, Task, Work, version
from distributed.ring_tmp.grants import Grants
from distributed.ring_tmp.mailbox import Key
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.parts import parts_of
from distributed.ring_tmp.passes import Passes
from distributed.ring_tmp.placement import Placement, StageRange
from distributed.ring_tmp.shadow import PartState
from distributed.strategy import BatchPlan, OptimizerSpec

RULE = OptimizerSpec("distributed.optimizers:Adam")
WHOLE = StageRange(index=0, node=0, start=0, stop=3, limit=2, is_last=True)


def test_each_backward_pass_reads_the_version_of_its_forward_pass() -> None:
    """A micro-batch of the next step goes forward before one of this step goes back, as it does on every node but the
    last."""
    workload = staged_spec(stages=3).build()
    passes = Passes(workload)
    states = {
        stage: PartState(part, build_optimizer(RULE), RULE, lag=1, step=3) for stage, part in enumerate(passes.parts)
    }
    random = torch.Generator().manual_seed(5)
    for state in states.values():
        for buffer in state.buffers()[:2]:
            for name in state.part.views:
                state.part.view(buffer, name).normal_(generator=random).div_(6.0)
    steps = (4, 5)
    for step in steps:
        passes.forward(Task(Work.FORWARD, step, WHOLE, 0, version(step, 1)), None, states, probe=False)
    for step in steps:
        buffers = {stage: torch.zeros(part.size) for stage, part in enumerate(passes.parts)}
        passes.backward(Task(Work.BACKWARD, step, WHOLE, 0, version(step, 1)), None, states, buffers, probe=False)
        model = workload.build_model()
        own = dict(model.named_parameters())
        for state in states.values():
            for name in state.part.views:
                own[name].data = state.part.view(state.of_version(step - 2), name)
        carried: dict[str, torch.Tensor] = {}
        for stage in workload.stages(model):
            carried = stage(workload.slot(step, 0), carried)
        (carried["loss"] / sum(workload.slot_tokens(step))).backward()
        for stage, part in enumerate(passes.parts):
            for name in part.views:
                assert torch.equal(part.view(buffers[stage], name), own[name].grad), (step, name)
        assert passes.version_of(step) == step - 2
    assert passes.version_of(4) is None  # it is over


@pytest.mark.parametrize("step", [4, 5])
def test_buffers_of_a_state_are_in_one_order_whatever_the_step(step: int) -> None:
    [part] = parts_of({"x": torch.Size([3])}, [("one", ["x"])])
    state = PartState(part, build_optimizer(RULE), RULE, 1, step)
    moments = {slot: {"x": torch.full((3,), 7.0)} for slot in build_optimizer(RULE).slots}
    state.load(state.facts(), {"x": torch.full((3,), 2.0)}, moments, {"x": torch.full((3,), 1.0)})
    assert [float(buffer[0]) for buffer in state.buffers()] == [2.0, 1.0, 7.0, 7.0]
    assert float(state.of_version(step)[0]) == 2.0


def test_a_step_that_may_have_begun_behind_one_that_was_not_applied_is_done_by_all() -> None:
    early, late = Grants(lag=1), Grants(lag=1)
    word = {"after": 0, "through": 5, "rate_scale": 0.5, "probe": 0}
    assert early.take(word)
    early.refuse(3)
    assert early.through == 4
    assert late.take(word | {"through": 3})
    late.refuse(3)
    assert late.through == 3
    assert late.take(word)  # it was under way
    assert (late.through, late.scale(4)) == (4, 0.5)
    for one in (early, late):
        one.refuse(4)
        assert one.through == 4
        assert not one.take(word | {"after": 2, "through": 9})  # from before anybody knew of step 3
        assert one.through == 4
        assert one.take(word | {"after": 3, "through": 9})  # and of step 4
        assert one.through == 5
        assert one.take(word | {"after": 5, "through": 9})
        assert one.through == 9


def test_a_node_that_holds_comes_to_a_moment_between_two_steps() -> None:
    """Else the next step begins before the last one is applied, for ever."""
    placement = Placement(Ring(1, (0, 1)), (0, 1))
    one = Executor(0, placement, BatchPlan(2), lambda step: [1, 1], 1, 0)
    one.through = 9
    arrived: set[Key] = set()

    def work() -> list[tuple[str, int]]:
        done = []
        while (task := one.next_task(arrived)) is not None:
            one.done(task)
            if task.work is Work.FORWARD:
                arrived.add(Key(task.step, Kind.BACKWARD, 1, task.slot))
            done.append((task.work.value[0], task.step))
        return done

    assert {step for _, step in work()} == {1, 2}
    assert not one.hold()
    one.applied = 1
    assert not one.hold()
    assert work() == []
    one.applied = 2
    assert one.hold()
    one.through = 9
    assert {step for _, step in work()} == {3, 4}


def test_the_cut_counts_with_a_second_version() -> None:
    workload = staged_spec(stages=3, groups=4).build()
    flush, both = (cut_model(workload, shadows=True, lag=lag).memory for lag in (0, 1))
    # Parameters, moments, sums of four groups, one that is being read; and of both versions a complete gradient more.
    assert (flush.own_words, both.own_words) == (1 + 2 + 3 + 1, 2 + 2 + 3 + 1 + 1)
    assert (flush.shadow_words, both.shadow_words) == (1 + 2 + 1, 2 + 2 + 2)
