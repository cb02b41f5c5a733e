"""Training a model round a ring from a process that never has it: `distribution.whole_model=false`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distributed.arithmetic import flat_layout
from distributed.errors import DistributedError
from distributed.launchers.choose import prepare
from distributed.optimizers import build_optimizer
from distributed.ring_tmp.cut import Cut
from distributed.ring_tmp.outline_coordinator import OutlineCoordinator
from distributed.ring_tmp.outline_cut import cut_outline
from distributed.ring_tmp.part_files import Source, Whole
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.run_figures import RunFigures
from distributed.state_files import StateFiles, parts_directory
from distributed.strategy import WorkloadSpec


class OutlineRingStrategy(StageRingStrategy):
    """As `StageRingStrategy`, bit for bit; but of the model this process has names and shapes alone.

    - A state that nodes begin with is drawn, or read from a checkpoint, one stage after the other.
    - `state()` has each node write its stages into the run's directory, and returns tensors that are read from there
      when they are asked for. Beside the usual entries it has `files`, the index of what was written.
    - `evaluation_model()` has the nodes compute; see `DistantModel`.
    """

    coordinator = OutlineCoordinator

    def _build(self, spec: WorkloadSpec) -> None:
        prepare(self._options, [spec.module])
        self._workload = spec.build()
        self._figures = RunFigures(self._workload.device)
        self._outline = self._workload.outline(fine=False)
        if not all(parameter.is_meta for parameter in self._outline.parameters()):
            raise DistributedError(
                "the model keeps other tensors beside its parameters, so that it cannot be built without memory",
                where="distribution.whole_model",
                allowed=["true"],
                hint="distribution.whole_model=true",
            )
        shapes = {name: parameter.shape for name, parameter in self._outline.named_parameters()}
        self._whole = Whole(flat_layout(shapes)[0])
        self._shown = False  # whether nodes have a state that was loaded, to be evaluated
        self._slots = list(build_optimizer(self._workload.optimizer).slots)
        self._sources: list[Source] = [
            self._whole.source(self._workload.first_values),
            *(self._whole.source(lambda name, start, stop: torch.zeros(stop - start)) for _ in self._slots),
        ]

    def _cut_model(self, shadows: bool) -> Cut:
        return cut_outline(self._workload, shadows, self._node_bytes)

    def _buffers(self) -> Sequence[Source]:
        return self._sources

    def _places(self) -> dict[str, tuple[int, int]]:
        return {name: (start, start + shape.numel()) for name, (start, shape) in self._whole.layout.items()}

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state, in files of which this process reads what is asked for."""
        checkpoints, name = Path(self._options["run_directory"]) / "checkpoints", parts_directory(self._last)
        self._updates = self._at_work().save(self._last, checkpoints / name, self._slots)
        index = self._whole.index(name, self._cut.parts, self._slots)
        files = StateFiles(checkpoints / name, index)
        return {
            "parameters": files.tensors(),
            "optimizer": {slot: files.tensors(slot) for slot in self._slots},
            "updates": self._updates,
            "files": index.to_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` returned, of any strategy; the nodes get it with the next step."""
        self._updates = int(state["updates"])
        named = [state["parameters"], *(state["optimizer"][slot] for slot in self._slots)]
        self._sources = [self._whole.source_of(tensors) for tensors in named]
        self._begun = self._shown = False

    @contextmanager
    def evaluation_model(self) -> Iterator[torch.nn.Module]:
        """A stand-in for the model, which asks the nodes; it is of use as long as the context lasts."""
        model = DistantModel(self._outline, self._evaluating)
        yield model
        model.end()

    def _evaluating(self) -> tuple[OutlineCoordinator, int]:
        """The coordinator of a ring that has the newest state, and the state's step.

        Where no step was asked for since the state was loaded, a ring begins with it all the same; with the next step
        it will begin again.
        """
        coordinator = self._running()
        assert isinstance(coordinator, OutlineCoordinator)
        if not self._begun and not self._shown:
            coordinator.begin(self._last + 1, self._buffers(), self._updates)
            self._shown = True
        return coordinator, self._last

    def _at_work(self) -> OutlineCoordinator:
        """The coordinator of a ring that has begun."""
        coordinator = self._running()
        assert isinstance(coordinator, OutlineCoordinator)
        if not self._begun:
            raise DistributedError("has no state before the first step", where=self.where)
        return coordinator


class DistantModel(torch.nn.Module):
    """A model whose parameters other processes have: here are their names and shapes.

    asked: who asks them, and of which step.
    """

    def __init__(self, outline: torch.nn.Module, asked: Callable[[], tuple[OutlineCoordinator, int]]):
        super().__init__()
        self._outline, self._asked = outline, asked
        self._searches = False

    @property
    def outline(self) -> torch.nn.Module:
        """The model without values."""
        return self._outline

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Those of the model, under its names, without values."""
        return self._outline.named_parameters(*arguments, **options)

    def scores(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """What the ring makes of each batch (`Workload.scored_slot`), in their order."""
        coordinator, step = self._asked()
        return coordinator.scores(step, batches)

    def begin_search(self) -> None:
        """Calls are of a new search from now on."""
        coordinator, _ = self._asked()
        coordinator.begin_search()
        self._searches = True

    def ask(self, call: str, given: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What the ring makes of a call of a search (`Workload.search_stages`)."""
        coordinator, step = self._asked()
        return coordinator.answer(step, call, given)

    def end(self) -> None:
        """Let nodes give up what they keep of searches."""
        if self._searches:
            self._asked()[0].end_search()
