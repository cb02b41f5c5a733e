"""A recurrent cell over whole packed sentences, in one direction or both at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nmt.models.recurrent.arithmetic import Program, Weight, compute_type, run
from nmt.models.recurrent.kernels import CellKernel
from nmt.models.recurrent.packing import SentencePacking


def read_sequence(
    kernel: type[CellKernel],
    state_parts: int,
    x: Tensor,
    packing: SentencePacking,
    input_weight: Tensor,
    bias: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs [..., total, units] and final state parts [..., batch, units] of a cell that reads x [..., total, in].

    Where `x` has a leading dimension of directions, so have the parameters: each direction has its own.
    """
    program = _SequenceProgram(kernel, state_parts, x, packing, input_weight, bias, parameters)
    outputs, *final = run(program, x, input_weight, bias, *parameters)
    return outputs, final


class _SequenceProgram(Program):
    def __init__(
        self,
        kernel: type[CellKernel],
        state_parts: int,
        x: Tensor,
        packing: SentencePacking,
        input_weight: Tensor,
        bias: Tensor,
        parameters: Sequence[Tensor],
    ):
        dtype = compute_type(input_weight)
        self.x, self.bias, self.packing, self.state_parts = x.detach(), bias.detach(), packing, state_parts
        self.weight = Weight(input_weight, dtype)
        self.kernel = kernel(parameters, dtype)

    def forward(self) -> tuple[Tensor, ...]:
        packing, kernel = self.packing, self.kernel
        lead, like = self.x.shape[:-1], self.bias
        self.gates = like.new_empty(*lead, like.shape[-1])
        bias = self.bias if self.bias.dim() == 1 else self.bias.unsqueeze(1)
        self.weight.affine(self.x, bias, out=self.gates)
        self.extra = like.new_empty(*lead, kernel.extra_blocks * kernel.units)
        self.states = [like.new_empty(*lead, kernel.units) for _ in range(self.state_parts)]
        self.first = [state.new_zeros(*lead[:-1], packing.sizes[0], kernel.units) for state in self.states]
        for gates, extra, before, after in self._steps():
            kernel.forward(gates, extra, before, after)
        final = [state.index_select(-2, packing.last) for state in self.states]
        return self.states[0], *final

    def backward(self, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packing, kernel = self.packing, self.kernel
        outputs, *final = gradients
        arriving = [outputs.clone(), *(torch.zeros_like(state) for state in self.states[1:])]
        for part, gradient in zip(arriving, final, strict=True):
            part.index_add_(-2, packing.last, gradient)
        cut = [part.split(packing.sizes, dim=-2) for part in arriving]
        carried: list[Tensor] = []
        for t, (gates, extra, before, after) in reversed(list(enumerate(self._steps()))):
            here = [part[t] for part in cut]
            for gradient, later in zip(here, carried, strict=bool(carried)):
                gradient.narrow(-2, 0, later.shape[-2]).add_(later)
            carried = kernel.backward(gates, extra, before, after, here)
        previous = self.states[0].index_select(-2, packing.before)
        parameters = kernel.parameter_gradients(self.gates, self.extra, torch.cat((self.first[0], previous), dim=-2))
        to_x = self.weight.back_product(self.gates)
        return to_x, self.weight.gradient(self.gates, self.x), self.gates.sum(dim=-2), *parameters

    def _steps(self) -> list[tuple[Tensor, Tensor, list[Tensor], list[Tensor]]]:
        """Gates, extra, states before and states after of every step, as views."""
        sizes = self.packing.sizes
        gates, extra = (buffer.split(sizes, dim=-2) for buffer in (self.gates, self.extra))
        states = [state.split(sizes, dim=-2) for state in self.states]
        steps = []
        for t, size in enumerate(sizes):
            before = self.first if t == 0 else [part[t - 1].narrow(-2, 0, size) for part in states]
            steps.append((gates[t], extra[t], before, [part[t] for part in states]))
        return steps
