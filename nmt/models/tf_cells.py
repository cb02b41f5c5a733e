"""Recurrent cells of the `tf` family: the arithmetic of TensorFlow 1, which the published system used.

One conceptual weight on [x; h] per gate block and one bias. First values count the fans of these joint matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmt.config.schema import CellConfig
from nmt.models.cells import Cell, State
from nmt.models.initialisation import Constant, Draw, Glorot
from nmt.models.layers import empty, sigmoid
from nmt.models.recurrent.kernels import TfGruKernel, TfLstmKernel, TfVanillaKernel


class TfGru(Cell):
    """Gated recurrent unit as TensorFlow 1 computes it.

        [r, u] = σ(W [x; h] + b)        c = tanh(W_c [x; r ∘ h] + b_c)        h' = u ∘ h + (1 - u) ∘ c

    The reset gate acts *before* the matrix product (cuDNN and `torch.nn.GRU` apply it after, with a second bias). Both
    gates' biases start at `forget_bias`. Blocks of the input weight, in order: r, u, c.
    """

    state_parts = 1
    kernel = TfGruKernel

    def __init__(self, input_units: int, units: int, config: CellConfig):
        super().__init__(input_units, units, gates=3)
        self.gate_weight = empty(2 * units, units)
        self.candidate_weight = empty(units, units)
        self.gate_bias = config.forget_bias

    def step(self, projected: Tensor, state: State) -> State:
        """One step: projected [rows, 3 · units], state (h [rows, units],)."""
        (h,) = state
        gates_in, candidate_in = projected.split((2 * self.units, self.units), dim=-1)
        reset, update = sigmoid(torch.addmm(gates_in, h, self.gate_weight.t())).chunk(2, dim=-1)
        candidate = torch.addmm(candidate_in, reset * h, self.candidate_weight.t()).tanh()
        # The state keeps its own type, so that under autocast only products are made in low precision.
        return (torch.lerp(candidate.to(h.dtype), h, update.to(h.dtype)),)

    def first_values(self) -> dict[str, Draw]:
        """Glorot with the fans of TensorFlow's joint matrices on [x; h]; gate biases at `forget_bias`."""
        fan_in, units = self.input_units + self.units, self.units
        gates, candidate = (2 * units, fan_in, 2 * units), (units, fan_in, units)
        return {
            "input_weight": Glorot((gates, candidate)),
            "gate_weight": Glorot((gates,)),
            "candidate_weight": Glorot((candidate,)),
            "bias": Constant(0.0, other=self.gate_bias, stop=2 * units),
        }


class TfLstm(Cell):
    """TensorFlow 1's BasicLSTMCell: no peepholes, gate order i, j, f, o.

        [i, j, f, o] = W [x; h] + b        c' = c ∘ σ(f + forget_bias) + σ(i) ∘ tanh(j)        h' = tanh(c') ∘ σ(o)

    The forget bias is added at run time; the bias itself starts at zero. The state is (h, c).
    """

    state_parts = 2
    kernel = TfLstmKernel

    def __init__(self, input_units: int, units: int, config: CellConfig):
        super().__init__(input_units, units, gates=4)
        self.recurrent_weight = empty(4 * units, units)
        self.forget_bias = config.forget_bias

    def step(self, projected: Tensor, state: State) -> State:
        """One step: projected [rows, 4 · units], state (h, c) of [rows, units] each."""
        h, c = state
        gates = torch.addmm(projected, h, self.recurrent_weight.t()).to(c.dtype)
        i, j, f_and_o = gates.split((self.units, self.units, 2 * self.units), dim=-1)
        forget, output = sigmoid(f_and_o).chunk(2, dim=-1)
        c = torch.addcmul(forget * c, sigmoid(i), j.tanh())
        return (c.tanh() * output, c)

    def first_values(self) -> dict[str, Draw]:
        """Glorot with the fans of TensorFlow's joint matrix on [x; h]; a zero bias."""
        joint = Glorot.of(self.input_units + self.units, 4 * self.units)
        return {"input_weight": joint, "recurrent_weight": joint, "bias": Constant(0.0)}

    def input_bias(self) -> Tensor:
        """The bias with the forget bias added."""
        i_j, f, o = self.bias.split((2 * self.units, self.units, self.units))
        return torch.cat((i_j, f + self.forget_bias, o))


class TfVanilla(Cell):
    """TensorFlow 1's BasicRNNCell: h' = tanh(W [x; h] + b). Without gates, `forget_bias` means nothing to it."""

    state_parts = 1
    kernel = TfVanillaKernel

    def __init__(self, input_units: int, units: int, config: CellConfig):
        super().__init__(input_units, units, gates=1)
        self.recurrent_weight = empty(units, units)

    def step(self, projected: Tensor, state: State) -> State:
        """One step: projected [rows, units], state (h [rows, units],)."""
        (h,) = state
        return (torch.addmm(projected, h, self.recurrent_weight.t()).to(h.dtype).tanh(),)

    def first_values(self) -> dict[str, Draw]:
        """Glorot with the fans of TensorFlow's joint matrix on [x; h]; a zero bias."""
        joint = Glorot.of(self.input_units + self.units, self.units)
        return {"input_weight": joint, "recurrent_weight": joint, "bias": Constant(0.0)}
