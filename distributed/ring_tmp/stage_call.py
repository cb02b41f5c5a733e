"""Some of a model's stages on a micro-batch, forward and later backward, as if the other stages lived elsewhere.

The gradients are those of one graph through all stages, bit for bit. In one graph autograd goes through the operations
from the last to the first, and adds to the gradient of a tensor what each of its readers gives when it comes to it. So
the gradient of a tensor that crosses a cut begins with what later stages have given, and its readers before the cut
follow, the last first. That is what a backward pass does whose roots are the tensors that were handed on, those among
them that had arrived included: roots come first.

Two things would change bits, and are seen to here:

- What arrives must not be a leaf of the graph. Autocast keeps the rounded copy of a leaf and adds up the gradients of
  all its readers in low precision, and a leaf's gradient is turned into the leaf's own order in memory.
- A parameter that several stages read (a tied table) collects the gradients of a micro-batch from the last reader to
  the first before they are added to those of other micro-batches. Where its readers are in several ranges of stages,
  what has been collected goes back with the gradients, under the name `shared(parameter)`, also through ranges between
  that do not read it; the first range that does adds it to `.grad`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distributed.strategy import Stage

Tensors = Mapping[str, torch.Tensor]


class StageCalls:
    """Stages `start` to `stop` of a model, in one process.

    model: holds the parameters that these stages name; backward passes add to their `.grad`.
    stages: all of the model's.
    """

    def __init__(self, model: torch.nn.Module, stages: Sequence[Stage], start: int, stop: int):
        if not 0 <= start < stop <= len(stages):
            raise ValueError(f"stages {start} to {stop} of {len(stages)}")
        self.stages = stages[start:stop]
        earlier, own, later = (_names(some) for some in (stages[:start], self.stages, stages[stop:]))
        parameters = dict(model.named_parameters())
        self._earlier = {name: parameters[name] for name in own & earlier}
        self._later = {name: parameters[name] for name in own & later}

    def forward(self, slot: Any, arrived: Tensors, target_tokens: int) -> StageCall:
        """Run the stages on `slot`; the caller enters the workload's autocast.

        arrived: what `StageCall.handed_on` was of the range before; empty for the first.
        target_tokens: of the whole step, by which the loss is divided before its gradient is taken.
        """
        gradients: dict[str, torch.Tensor] = {}
        origin = torch.empty(0, requires_grad=True)
        carried: Tensors = {
            name: _Arrived.apply(tensor, origin, name, gradients) if tensor.is_floating_point() else tensor
            for name, tensor in arrived.items()
        }
        for stage in self.stages:
            carried = stage(slot, carried)
        return StageCall(carried, gradients, target_tokens, self._earlier, self._later)


@dataclass(frozen=True)
class StageCall:
    """A forward pass that waits for its backward pass; made by `StageCalls.forward`."""

    made: Tensors
    to_arrived: dict[str, torch.Tensor]
    target_tokens: int
    earlier: Mapping[str, torch.nn.Parameter]
    later: Mapping[str, torch.nn.Parameter]

    @property
    def handed_on(self) -> dict[str, torch.Tensor]:
        """What later stages read, contiguous and without graph; of the last range the slot's `loss`, a scalar."""
        return {name: tensor.detach().contiguous() for name, tensor in self.made.items()}

    def backward(self, gradients: Tensors) -> dict[str, torch.Tensor]:
        """Add to the parameters' gradients; returns those of what had arrived, contiguous. To be called once.

        gradients: what `backward` returned of the range behind, which may have come in any order of names; empty for
            the last range. A name is missing, here as there, where no gradient has come.
        """
        roots: list[torch.Tensor] = []
        given: list[torch.Tensor] = []
        for name, tensor in self.made.items():
            if name == "loss":
                roots.append(tensor / self.target_tokens)
                given.append(torch.ones_like(roots[-1]))
            elif name in gradients and tensor.requires_grad:
                roots.append(tensor)
                given.append(gradients[name])
        for name, parameter in self.later.items():
            if shared(name) in gradients:
                roots.append(parameter)
                given.append(gradients[shared(name)])
        own = {*self.made, *map(shared, self.later)}
        back = {name: gradient for name, gradient in gradients.items() if name not in own}
        sums = {name: parameter.grad for name, parameter in self.earlier.items()}
        for parameter in self.earlier.values():
            parameter.grad = None
        if roots:
            end: torch.Tensor = _Given.apply(given, *roots)
            end.backward()
        for name, parameter in self.earlier.items():
            if parameter.grad is not None:
                back[shared(name)] = parameter.grad
            parameter.grad = sums[name]
        return back | {name: gradient.contiguous() for name, gradient in self.to_arrived.items()}


class _Arrived(torch.autograd.Function):
    """A tensor of another process: its gradient goes into `gradients`. `origin` is why autograd comes here at all."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, origin: torch.Tensor, name: str, gradients: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        ctx.name, ctx.gradients = name, gradients
        ctx.set_materialize_grads(False)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[None, None, None, None]:
        if gradients[0] is not None:
            ctx.gradients[ctx.name] = gradients[0]
        return None, None, None, None


class _Given(torch.autograd.Function):
    """The end of a graph, from which each of some tensors gets the gradient that is given for it.

    As `torch.autograd.backward` does it with gradients; that one loads a library for symbolic shapes before it compares
    sizes, half a second and 50 MB of each process.
    """

    @staticmethod
    def forward(ctx: Any, given: Sequence[torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.given = given
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.given


def shared(parameter: str) -> str:
    """The name under which the gradient of a parameter that earlier stages read too goes back to them."""
    return f"parameter:{parameter}"


def _names(stages: Sequence[Stage]) -> set[str]:
    return {name for stage in stages for name in stage.parameter_names()}
