"""One upper layer of a recurrent decoder over a whole target, by itself.

Where no context is fed to the lowest layer, layers are coupled by their outputs alone and need not take their steps
together. What this computes of a layer is what `nmt.models.recurrent.decoder_loop` computes of it, bit for bit: so the
input is multiplied step by step here, too.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from nmt.models.recurrent.arithmetic import Program, compute_type, run
from nmt.models.recurrent.decoder_loop import Layer, Tape, masked, multiplied
from nmt.models.residual import Residual
from nmt.models.watch import GradientWatch


def layer_sequence(
    x: Tensor, first: Tensor, residual: Residual, number: int, layer: Layer, watch: GradientWatch | None
) -> Tensor:
    """What layer `number` of the stack, not the lowest, passes on [time, batch, …].

    Parameters
    ----------
    x: [time, batch, in], what the layer below passed on.
    first: [batch, state units] of this layer.
    residual: the stack's connections, none of them dense.
    """
    program = _LayerProgram(x, first, residual, number, layer, watch)
    (passed_on,) = run(program, *program.inputs)
    return passed_on


class _LayerProgram(Program):
    def __init__(
        self, x: Tensor, first: Tensor, residual: Residual, number: int, layer: Layer, watch: GradientWatch | None
    ):
        self.x, self.first, self.residual, self.number, self.layer = x.detach(), first.detach(), residual, number, layer
        self.watch, self.dtype = watch, compute_type(x)
        self.inputs = [x, first, layer.input_weight, layer.bias, *layer.parameters]

    def forward(self) -> tuple[Tensor, ...]:
        layer, x = self.layer, self.x
        inputs = None if layer.input_mask is None else torch.empty_like(x)
        plain = not self.residual.active and layer.output_mask is None
        tops = None if plain else x.new_empty(*x.shape[:2], self.residual.widths[self.number + 1])
        self.tape = tape = Tape(layer, inputs, len(x), self.first.split(layer.units, dim=-1), self.dtype)
        for t, below in enumerate(x):
            read = below if inputs is None else multiplied(below, layer.input_mask, t, out=inputs[t])
            tape.weight.affine(read, tape.bias, out=tape.gates[t])
            y = tape.step(t)
            if tops is not None:
                tops[t].copy_(self.residual.combine(y, [below]))
        return (tape.outputs() if tops is None else tops,)

    def backward(self, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tape, layer = self.tape, self.layer
        to_x = torch.empty_like(self.x)
        carried = [torch.zeros_like(part[0]) for part in tape.states]
        seen = None if self.watch is None else partial(self.watch.record, f"decoder.{self.number}")
        for t in reversed(range(len(self.x))):
            to_output, past = self.residual.combine_back(gradients[0][t], layer.units, self.number)
            carried = tape.step_back(t, to_output, carried, seen)
            to_input = masked(tape.weight.back_product(tape.gates[t]), layer.input_mask, t)
            to_x[t].copy_(past[self.number] + to_input if past else to_input)
        inputs = self.x if tape.inputs is None else tape.inputs
        return to_x, torch.cat(carried, dim=-1), *tape.parameter_gradients(inputs)
