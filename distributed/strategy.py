"""The one interface between a training task and the backends that run it. Imports nothing of `nmt`, and no torch.

A *workload* (implemented by `nmt.training.workload`) says what a step computes; a *strategy* (implemented in
`distributed`) says where. A workload travels as a `WorkloadSpec`, an importable function plus plain data, so that any
process can build its own share: no tensor ever passes through the trainer.

The canonical step
------------------
A step is `plan.micro_batches` slots. Slots form `plan.groups` equal groups of neighbours. Inside a group gradients are
added in ascending order into one buffer; the groups' buffers are summed by the fixed pairwise tree of
`distributed.arithmetic.PairwiseSum`. A gradient is that of (sum of token losses of the slot) / (target tokens of the
whole step). The gradient's norm is the square root of `math.fsum` over fp64 square sums of fixed chunks; it is clipped
first as a whole, then parameter by parameter where the optimizer's specification says so. Exact
strategies only assign slots to processes and exchange partial nodes of this tree, so their results carry the same bits
as `single`.

What a strategy is made of
--------------------------
A factory takes one mapping of plain data: every key of the configuration's section `distribution`, and beside them

- `batch_per`: `step` or `push`, whether a worker of an asynchronous strategy computes a share of a step or all of it;
- `run`: which run this is, `<train_id>/s<seed>`; processes of another are refused; `train_id` and `seed` alone, too;
- `run_directory`: where the run's files lie, as text;
- `attempt`: the number of the attempt that trains it;
- `threads`: CPU threads of a process that computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from distributed.errors import DistributedError as DistributedError  # part of the interface: what strategies raise
from distributed.errors import LinkError as LinkError
from distributed.state_files import Piece as Piece  # states that several processes have written
from distributed.state_files import StateFiles as StateFiles
from distributed.state_files import StateIndex as StateIndex
from distributed.state_files import TensorsInFiles as TensorsInFiles
from distributed.state_files import write_file as write_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BatchPlan:
    """How a step is cut: `micro_batches` slots in `groups` equal groups of neighbouring slots."""

    micro_batches: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        if self.micro_batches < 1 or self.groups < 1 or self.micro_batches % self.groups:
            raise ValueError(f"{self.micro_batches} slots cannot form {self.groups} equal groups")

    @property
    def slots_per_group(self) -> int:
        """Number of slots whose gradients share one buffer."""
        return self.micro_batches // self.groups


@dataclass(frozen=True)
class OptimizerSpec:
    """Which update rule to apply to parameter chunks, and how.

    rule: where its class stands, `"module:attribute"`; see `distributed.optimizers.Optimizer`.
    options: keyword arguments of the class.
    max_norm: the global gradient norm to clip to; 0 switches clipping off.
    parameter_max_norms: by parameter name, the norm that its own gradient is clipped to after that.
    """

    rule: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_norm: float = 0.0
    parameter_max_norms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkloadSpec:
    """A workload as an importable function (`"module:function"`) and its plain-data arguments."""

    factory: str
    arguments: Mapping[str, Any]

    @property
    def module(self) -> str:
        """Where the factory stands."""
        return self.factory.partition(":")[0]

    def build(self) -> Workload:
        """Import the factory and call it in this process."""
        workload: Workload = load(self.factory)(**self.arguments)
        return workload


class StateLost(Exception):
    """Nobody holds a part of the parameters any more, so that only a checkpoint can go on; the text says which part.

    A strategy raises it from whatever method finds out, and is good for `close()` alone from then on.
    """


def load(target: str) -> Any:
    """Import `"module:attribute"`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Probe:
    """What a probed step looked like from inside. Every value is a 2-norm.

    gradients: of each parameter's gradient, before clipping.
    updates: of the change of each parameter; zero where the update was not applied.
    inner: by a name that the workload gives, of the objective's gradient with respect to a tensor inside the model,
        over all of the step's slots.
    """

    gradients: Mapping[str, float]
    updates: Mapping[str, float]
    inner: Mapping[str, float]


@dataclass(frozen=True)
class StepStats:
    """What one step did. Losses are per target token, in nats.

    loss: the training objective (with label smoothing where configured).
    gradient_norm: before clipping.
    probe: where it was asked for.
    """

    index: int
    loss: float
    target_tokens: int
    source_tokens: int
    gradient_norm: float
    learning_rate: float
    probe: Probe | None = None


class Slot(Protocol):
    """One micro-batch, already on its device, with its dropout masks addressed by (seed, step, slot, layer)."""

    @property
    def target_tokens(self) -> int:
        """Number of target tokens whose losses are summed, the EOS of each sentence included."""

    @property
    def source_tokens(self) -> int:
        """Number of source tokens."""

    def inner_square_sums(self) -> Mapping[str, Sequence[float]]:
        """After the backward pass of a probed slot: fp64 square sums of gradients inside the model, by name.

        Those of several slots are put one after the other; see `Probe.inner`.
        """


class Stage(Protocol):
    """A part of the model that may live in another process than its neighbours.

    Stages run in order; what one returns, the next receives. So a stage hands on what later ones read, the tensors that
    it was given among them as they are. The last returns `{"loss": ...}`, the slot's sum of token losses as a scalar
    tensor.
    """

    @property
    def name(self) -> str:
        """A stable name, used in maps and reports."""

    @property
    def couples(self) -> str:
        """Why it is not cut further, as a clause, for whoever is told what limits a pipeline; may be empty."""

    def parameter_names(self) -> Sequence[str]:
        """The parameters that a call may read, as the model's `named_parameters` name them, in that order.

        A shared parameter stands at every stage that reads it. A call needs these and no others to be up to date, and
        its backward pass adds to the gradients of no others.
        """

    def __call__(self, slot: Any, carried: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute this stage's share for `slot`; `carried` is empty for the first stage."""


class StageSearch(Protocol):
    """A stage's share of a search, with what it keeps from call to call."""

    def __call__(
        self, call: str, given: Mapping[str, torch.Tensor], carried: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Take a call through the stage: from what the stage before handed on to what this one does.

        call, given: of the search, the same for all stages. A call `encode` begins anew. The last returns the answer.
        """


class Workload(Protocol):
    """A training task, as a strategy sees it. Everything is a function of its arguments: nothing is consumed."""

    plan: BatchPlan
    optimizer: OptimizerSpec
    device: str

    def build_model(self, fine: bool = False) -> torch.nn.Module:
        """The model on its device with its first parameters: the same bits in every process.

        With `fine` neighbouring rows of a matrix may be parameters of their own, so that `stages` finds more places to
        cut. In a flat buffer (`distributed.arithmetic.FlatParameters`) all elements lie where they do otherwise.
        """

    def outline(self, fine: bool = True) -> torch.nn.Module:
        """The model of `build_model` whose parameters have shapes and no values, on torch's meta device.

        It is for a process that holds some of the parameters, and gives them to the model itself. Where the model
        cannot be built in this way, it is the whole one.
        """

    def first_values(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements of a parameter of `build_model()`, flat and on the CPU, without the others."""

    def scored_slot(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """A slot of sentences that whoever evaluates gives; of it, the last stage makes scores instead of a loss.

        What they are is the matter of those who evaluate the model, as what a batch is.
        """

    def stages(self, model: torch.nn.Module, fine: bool = False) -> Sequence[Stage]:
        """The model's stages in order: a few, or with `fine` all into which it can be cut without changing a bit."""

    def slot_tokens(self, index: int) -> Sequence[int]:
        """Target tokens of each slot of step `index`, known without building the batch (0 for an empty slot)."""

    def slot(self, index: int, slot: int, probe: bool = False) -> Any:
        """Slot `slot` of step `index` (steps count from 1); see `Slot`.

        With `probe` it records gradients inside the model as they pass, which changes no bit of anything else.
        """

    def search_stages(self, model: torch.nn.Module) -> Sequence[StageSearch]:
        """What each fine stage does while whoever evaluates searches for the best outputs of a text.

        Parameters do not change meanwhile. Made anew for each text; what a call is, is the matter of who searches.
        """

    def learning_rate(self, index: int) -> float:
        """Scheduled rate of step `index`."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which stages run (mixed precision or nothing)."""


class Strategy(Protocol):
    """Runs steps of a workload, in one process or many.

    Built by a factory from options (see the module's docstring). Steps are asked for in order, each once. Any method
    may raise StateLost, and DistributedError for what a person can mend.
    """

    def start(self, spec: WorkloadSpec) -> None:
        """Build the model and bring every process up."""

    def step(self, index: int, rate_scale: float = 1.0, probe: bool = False, horizon: int | None = None) -> StepStats:
        """Run step `index` (counted from 1) and apply its update.

        `rate_scale` multiplies the scheduled learning rate: what a plateau schedule learned from validation. An update
        whose loss or gradient norm is not finite is not applied; the returned stats show it. With `probe` they carry a
        `Probe`; the step's bits are the same.

        The steps from `index` + 1 to `horizon` will be asked for with the same `rate_scale` and without `probe`, and
        nothing but steps and `halt` will be asked for before: a strategy may begin them early, and none beyond. None
        is `index` itself. Behind a step whose update was not applied none is begun, unless the strategy had to begin it
        before that could be known; `halt` tells.
        """

    def halt(self) -> int:
        """Begin no further step; returns the last one begun, which is at most the newest horizon.

        The steps up to it have to be asked for before anything else is; then all is at rest, as it is at a horizon.
        """

    def synchronize(self) -> None:
        """Wait until every step that was asked for is applied everywhere."""

    def state(self) -> dict[str, Any]:
        """Parameters and optimizer state by parameter name, on the CPU: the same form whatever the strategy.

        Called at rest, as `load_state` and `evaluation_model` are. A strategy may add entries of its own. With an entry
        `files` the tensors are in files already, beside the checkpoint of the step: they are read from there as they
        are looked at, and the entry, a `StateIndex` as plain data, is what a checkpoint has to hold in their place.
        """

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state()` returned, bit for bit; that of another strategy too."""

    def evaluation_model(self) -> AbstractContextManager[torch.nn.Module]:
        """The current model for decoding, in evaluation mode, complete in this process.

        Or, where no process has all of it, one whose parameters have no values, with a method `scores`: it takes
        batches (see `Workload.scored_slot`), and yields for each what the last stage makes of it. For a
        search it has `begin_search()`, and `ask(call, given)`: what the last of `Workload.search_stages` answers.
        """

    def journals(self) -> Mapping[str, bytes]:
        """What is to be appended to journals of the run since the last call, by file name; asked for at rest.

        They tell of steps as they happened (an order of updates, times). Each belongs to the state that `state()`
        returns at that moment: a resumed run cuts them back to the length that they had.
        """

    def report(self) -> Mapping[str, Any]:
        """What happened so far beside the steps themselves, as plain data: bytes sent, shares of idle time, recoveries.

        Numbers, and those in mappings one level below, go into the records of evaluations and are drawn as curves (so
        let them be few); all of it goes into the run's result. Two entries have a meaning to the trainer:

        energy: `joules` that all hosts have used since the start, None where not measurable; `reasons`, texts.
        memory: `total_bytes` and, with GPUs, `device_bytes` of all processes together at their peak.
        """

    def close(self) -> None:
        """Stop every process. Safe to call twice."""
