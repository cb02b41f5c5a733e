"""Translation models trained round a ring of stages: with the ring softmax the bits are those of `single`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from simulated_stage_ring import StageRing
from torch import Tensor

from distributed.ring_tmp.executor import Task, Work
from distributed.ring_tmp.node import RingTmpNode, Setup
from distributed.ring_tmp.parts import parts_of
from distributed.ring_tmp.scalars import StepFacts
from distributed.ring_tmp.stage_call import StageCall, StageCalls
from distributed.single import SingleStrategy
from distributed.strategy import Stage
from nmt.config import compose
from nmt.training.workload import TranslationWorkload

STEPS = 2
SMALL = [
    "data=toy_copy",
    "data.options.train_size=60",
    "data.options.vocabulary=60",
    "batch.size=12",
    "batch.micro_batches=4",
    "batch.groups=2",
    "loss.vocab_chunks=4",
    "loss.label_smoothing=0.1",
    "optimizer.clip_norm=0.05",
    "tracking=none",
]
SIZES = ["model.embedding.units=16", "model.encoder.units=16", "model.decoder.units=16"]
MODELS = {
    "recurrent": ["model=attentional", *SIZES],
    "transformer": ["model=transformer", "model.encoder.layers=2", "model.decoder.layers=2", *SIZES],
}


class FineWorkload(TranslationWorkload):
    """Cut wherever it can be, as a ring of stages asks for it."""

    @property
    def count(self) -> int:
        return len(self.stages(self.build_model()))

    def build_model(self, fine: bool = True) -> Any:
        if not hasattr(self, "_first"):
            self._first = super().build_model(fine)
        return copy.deepcopy(self._first)  # first values are drawn once

    def stages(self, model: torch.nn.Module, fine: bool = True) -> Sequence[Stage]:
        return super().stages(model, fine)

    def setup(self, lag: int, *, shadows: bool = True) -> Setup:
        model = self.build_model()
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        parts = parts_of(shapes, [(stage.name, stage.parameter_names()) for stage in self.stages(model)])
        return Setup(parts, self.plan, self.slot_tokens, self.optimizer, self.learning_rate, lag, shadows)


class TranslationRing(StageRing):
    """Nodes that run a model's own stages."""

    def __init__(self, workload: FineWorkload, owners: Sequence[int], seed: int):
        self._models = {number: workload.build_model() for number in set(owners)}
        self._stages = {number: workload.stages(model) for number, model in self._models.items()}
        self._passes: dict[tuple[int, int, int], StageCall] = {}
        super().__init__(workload, owners, seed, STEPS)  # type: ignore[arg-type]

    def _do(self, node: RingTmpNode, task: Task) -> None:
        if task.work is Work.APPLY:
            self.applied.setdefault(task.step, {})[node.number] = node.apply(task)
            return
        assert task.range is not None
        key = (task.range.index, task.step, task.slot)
        came = node.take(task) or {}
        own, slot = range(task.range.start, task.range.stop), self.workload.slot(task.step, task.slot)
        parameters = dict(self._models[node.number].named_parameters())
        if task.work is Work.FORWARD:
            for stage in own:
                state = node.states[stage]
                for name in state.part.views:
                    parameters[name].data = state.part.view(state.of_version(task.version), name)
            calls = StageCalls(self._models[node.number], self._stages[node.number], own.start, own.stop)
            with self.workload.autocast():
                passed = self._passes[key] = calls.forward(slot, came, sum(self.setup.tokens(task.step)))
            node.forwarded(task, passed.handed_on)
            return
        passed, buffers = self._passes.pop(key), node.gradient_buffers(task)
        for stage in own:
            part = node.states[stage].part
            for name in part.views:
                parameters[name].grad = part.view(buffers[stage], name)
        gradients = passed.backward(came)
        last = task.range.is_last
        facts = StepFacts([passed.handed_on["loss"].item()], slot.source_tokens) if last else None
        node.backwarded(task, gradients, facts)


def joined(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows that are cut as one parameter again."""
    found: dict[str, list[Tensor]] = {}
    for name, values in parameters.items():
        stem, _, number = name.rpartition(".")
        found.setdefault(stem if number.isdigit() else name, []).append(values)
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        pytest.param(name, nodes, marks=[] if nodes == 3 else [pytest.mark.exhaustive])
        for name in MODELS
        for nodes in (1, 2, 3, 4)
    ],
)
def test_a_step_round_a_ring_has_the_bits_of_single(name: str, nodes: int) -> None:
    config = compose([*SMALL, *MODELS[name]])
    workload = FineWorkload(config, "cpu")
    count = workload.count
    layers = [stage * nodes // (count - 4) for stage in range(count - 4)]
    owners = [*layers, *((layers[-1] + chunk) % nodes for chunk in range(4))]  # and once round with the words
    one = SingleStrategy()
    one.start(_Given(TranslationWorkload(config, "cpu", workload.prepared)))  # type: ignore[arg-type]
    stats = [one.step(step) for step in range(1, STEPS + 1)]
    assert any(said.gradient_norm > 0.05 for said in stats)  # clipping takes part
    expected = one.state()
    ring = TranslationRing(workload, owners, seed=nodes)
    ring.run()
    found = ring.state()
    for part, wanted in [
        (found["parameters"], expected["parameters"]),
        *((found["optimizer"][slot], wanted) for slot, wanted in expected["optimizer"].items()),
    ]:
        own = joined(part)
        assert own.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(own[key], wanted[key])] == []
    for said in stats:
        assert {(told.norm, told.loss) for told in ring.applied[said.index].values()} == {
            (said.gradient_norm, said.loss)
        }
    assert ring.sent <= {(node, (node + way) % nodes) for node in range(nodes) for way in (1, -1)}


class _Given:
    """A workload that is built."""

    def __init__(self, workload: TranslationWorkload):
        self.workload = workload

    def build(self) -> TranslationWorkload:
        return self.workload
