"""One step of each built-in cell, and back through it, in place on the buffers of a loop.

A kernel is stateless but for its weights. Its tensors have the rows and units last: [rows, n] or [directions, rows, n].

gates: the projected inputs at first, the activated gates after `forward`, and after `backward` the gradient with
    respect to the projected inputs.
extra: `extra_blocks` · units of further space that the kernel uses as it likes between the two.
before, after: the state parts before and after the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nmt.models.recurrent.arithmetic import Weight, column_sum, sigmoid_, through_sigmoid_, through_tanh_

State = Sequence[Tensor]


class CellKernel(ABC):
    """The step of a cell and its derivative.

    Parameters
    ----------
    parameters: the cell's recurrent parameters in the order of the class's `parameters`, each with a leading dimension
        of directions where the buffers have one.
    dtype: of matrix products.
    """

    parameters: ClassVar[tuple[str, ...]] = ("recurrent_weight",)
    extra_blocks: ClassVar[int] = 0

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype):
        self.recurrent = Weight(parameters[0], dtype)
        self.units = parameters[0].shape[-1]

    @abstractmethod
    def forward(self, gates: Tensor, extra: Tensor, before: State, after: State) -> None:
        """One step: fills `after`."""

    @abstractmethod
    def backward(self, gates: Tensor, extra: Tensor, before: State, after: State, gradients: State) -> list[Tensor]:
        """Gradients of the state before, from those of the state after, which may be used up."""

    def parameter_gradients(self, gates: Tensor, extra: Tensor, before: Tensor) -> list[Tensor]:
        """Of `parameters`, over all rows at once; `gates` and `extra` as `backward` left them, `before` is h before."""
        return [self.recurrent.gradient(gates, before)]


class TfGruKernel(CellKernel):
    """See `nmt.models.tf_cells.TfGru`. Between the passes `extra` holds r ∘ h."""

    parameters = ("gate_weight", "candidate_weight")
    extra_blocks = 1

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype):
        super().__init__(parameters, dtype)
        self.gate, self.candidate = (Weight(parameter, dtype) for parameter in parameters)

    def forward(self, gates: Tensor, extra: Tensor, before: State, after: State) -> None:
        """One step: fills `after`."""
        (h,) = before
        both, candidate = gates.split((2 * self.units, self.units), dim=-1)
        self.gate.add_product(both, h)
        sigmoid_(both)
        reset, update = both.chunk(2, dim=-1)
        torch.mul(reset, h, out=extra)
        self.candidate.add_product(candidate, extra)
        torch.lerp(candidate.tanh_(), h, update, out=after[0])

    def backward(self, gates: Tensor, extra: Tensor, before: State, after: State, gradients: State) -> list[Tensor]:
        """Back through one step."""
        (h,), (g,) = before, gradients
        both, candidate = gates.split((2 * self.units, self.units), dim=-1)
        reset, update = both.chunk(2, dim=-1)
        to_update = torch.sub(h, candidate).mul_(g)
        carried = g * update
        through_tanh_(g.sub_(carried), candidate)
        through_sigmoid_(to_update, update)
        to_product = self.candidate.back_product(candidate)
        carried.addcmul_(to_product, reset)
        through_sigmoid_(to_product.mul_(h), reset)
        self.gate.add_back_product(carried, both)
        return [carried]

    def parameter_gradients(self, gates: Tensor, extra: Tensor, before: Tensor) -> list[Tensor]:
        """Of the gates' weight and the candidate's."""
        both, candidate = gates.split((2 * self.units, self.units), dim=-1)
        return [self.gate.gradient(both, before), self.candidate.gradient(candidate, extra)]


class TfLstmKernel(CellKernel):
    """See `nmt.models.tf_cells.TfLstm`; the forget bias is in the projected inputs. `extra` holds tanh(c')."""

    extra_blocks = 1

    def forward(self, gates: Tensor, extra: Tensor, before: State, after: State) -> None:
        """One step: fills `after`."""
        self.recurrent.add_product(gates, before[0])
        i, j, f_and_o = gates.split((self.units, self.units, 2 * self.units), dim=-1)
        sigmoid_(i)
        j.tanh_()
        forget, output = sigmoid_(f_and_o).chunk(2, dim=-1)
        _lstm_state(i, j, forget, output, extra, before, after)

    def backward(self, gates: Tensor, extra: Tensor, before: State, after: State, gradients: State) -> list[Tensor]:
        """Back through one step."""
        i, j, f, o = gates.chunk(4, dim=-1)
        to_c = _through_lstm_state(i, j, f, o, extra, before, gradients)
        return [self.recurrent.back_product(gates), to_c]


class TfVanillaKernel(CellKernel):
    """See `nmt.models.tf_cells.TfVanilla`. The activated gate is the new state itself."""

    def forward(self, gates: Tensor, extra: Tensor, before: State, after: State) -> None:
        """One step: fills `after`."""
        self.recurrent.add_product(gates, before[0])
        after[0].copy_(gates.tanh_())

    def backward(self, gates: Tensor, extra: Tensor, before: State, after: State, gradients: State) -> list[Tensor]:
        """Back through one step."""
        through_tanh_(gradients[0], gates)
        return [self.recurrent.back_product(gates)]


class TorchGruKernel(CellKernel):
    """See `nmt.models.torch_cells.TorchGru`. `extra` holds U_n h + d_n, then the gradient with respect to it."""

    parameters = ("recurrent_weight", "recurrent_bias")
    extra_blocks = 1

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype):
        super().__init__(parameters, dtype)
        weight, bias = parameters
        self.gate = Weight(weight[..., : 2 * self.units, :], dtype)
        self.new = Weight(weight[..., 2 * self.units :, :], dtype)
        self.gate_bias, self.new_bias = bias.detach().unsqueeze(-2).split((2 * self.units, self.units), dim=-1)

    def forward(self, gates: Tensor, extra: Tensor, before: State, after: State) -> None:
        """One step: fills `after`."""
        (h,) = before
        both, new = gates.split((2 * self.units, self.units), dim=-1)
        both.add_(self.gate_bias)
        self.gate.add_product(both, h)
        reset, update = sigmoid_(both).chunk(2, dim=-1)
        extra.copy_(self.new_bias.expand_as(extra))
        self.new.add_product(extra, h)
        new.addcmul_(reset, extra).tanh_()
        torch.lerp(new, h, update, out=after[0])

    def backward(self, gates: Tensor, extra: Tensor, before: State, after: State, gradients: State) -> list[Tensor]:
        """Back through one step."""
        (h,), (g,) = before, gradients
        both, new = gates.split((2 * self.units, self.units), dim=-1)
        reset, update = both.chunk(2, dim=-1)
        to_update = torch.sub(h, new).mul_(g)
        carried = g * update
        through_tanh_(g.sub_(carried), new)
        through_sigmoid_(to_update, update)
        to_reset = new * extra
        torch.mul(new, reset, out=extra)
        through_sigmoid_(to_reset, reset)
        self.gate.add_back_product(carried, both)
        self.new.add_back_product(carried, extra)
        return [carried]

    def parameter_gradients(self, gates: Tensor, extra: Tensor, before: Tensor) -> list[Tensor]:
        """Of the recurrent weight and bias."""
        both = gates[..., : 2 * self.units]
        weight = torch.cat((self.gate.gradient(both, before), self.new.gradient(extra, before)), dim=-2)
        return [weight, torch.cat((column_sum(both), column_sum(extra)), dim=-1)]


class TorchLstmKernel(CellKernel):
    """See `nmt.models.torch_cells.TorchLstm`; both biases are in the projected inputs. `extra` holds tanh(c')."""

    extra_blocks = 1

    def forward(self, gates: Tensor, extra: Tensor, before: State, after: State) -> None:
        """One step: fills `after`."""
        self.recurrent.add_product(gates, before[0])
        i_and_f, g, o = gates.split((2 * self.units, self.units, self.units), dim=-1)
        enter, forget = sigmoid_(i_and_f).chunk(2, dim=-1)
        _lstm_state(enter, g.tanh_(), forget, sigmoid_(o), extra, before, after)

    def backward(self, gates: Tensor, extra: Tensor, before: State, after: State, gradients: State) -> list[Tensor]:
        """Back through one step."""
        i, f, g, o = gates.chunk(4, dim=-1)
        to_c = _through_lstm_state(i, g, f, o, extra, before, gradients)
        return [self.recurrent.back_product(gates), to_c]


class TorchVanillaKernel(TfVanillaKernel):
    """See `nmt.models.torch_cells.TorchVanilla`; both biases are in the projected inputs."""


def _lstm_state(
    enter: Tensor, new: Tensor, forget: Tensor, output: Tensor, extra: Tensor, before: State, after: State
) -> None:
    """c' = forget ∘ c + enter ∘ new and h' = tanh(c') ∘ output, with tanh(c') left in `extra`."""
    torch.mul(forget, before[1], out=after[1])
    after[1].addcmul_(enter, new)
    torch.tanh(after[1], out=extra)
    torch.mul(extra, output, out=after[0])


def _through_lstm_state(
    enter: Tensor, new: Tensor, forget: Tensor, output: Tensor, extra: Tensor, before: State, gradients: State
) -> Tensor:
    """Overwrite the four gates with their gradients before activation; returns the gradient of c."""
    to_h, to_c = gradients
    to_output = to_h * extra
    through_tanh_(torch.mul(to_h, output), extra)
    to_c = to_c + extra
    through_sigmoid_(to_output, output)
    to_enter = to_c * new
    through_tanh_(to_c * enter, new)
    through_sigmoid_(to_enter, enter)
    to_forget = to_c * before[1]
    to_c.mul_(forget)
    through_sigmoid_(to_forget, forget)
    return to_c
