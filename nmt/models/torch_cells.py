"""Recurrent cells of the `torch` family: the layout and arithmetic of cuDNN and of `torch.nn.GRU`, `LSTM` and `RNN`.

Each gate has two biases, one added to the input's product and one to the state's. The parameters hold the values of a
`torch.nn` layer in its own order: `input_weight` is its `weight_ih`, `recurrent_weight` its `weight_hh`, `bias` its
`bias_ih` and `recurrent_bias` its `bias_hh`. First values are not those of `torch.nn` (which draws everything, biases
too, from U(-1/√h, 1/√h)) but those of the `tf` family, so that the families differ in arithmetic alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.config.schema import CellConfig
from nmt.models.cells import Cell, State
from nmt.models.initialisation import Constant, Draw, Glorot
from nmt.models.layers import empty, sigmoid
from nmt.models.recurrent.kernels import TorchGruKernel, TorchLstmKernel, TorchVanillaKernel


class TorchCell(Cell):
    """What the cells of this family share: one recurrent weight for all gates, and a second bias."""

    def __init__(self, input_units: int, units: int, gates: int):
        super().__init__(input_units, units, gates)
        self.recurrent_weight = empty(gates * units, units)
        self.recurrent_bias = empty(gates * units)

    def first_values(self) -> dict[str, Draw]:
        """Glorot with the fans of the joint matrix on [x; h], all gates together; zero biases."""
        joint = Glorot.of(self.input_units + self.units, self.bias.shape[0])
        zero = Constant(0.0)
        return {"input_weight": joint, "recurrent_weight": joint, "bias": zero, "recurrent_bias": zero}


class TorchGru(TorchCell):
    """Gated recurrent unit as cuDNN computes it.

        r = σ(W_r x + b_r + U_r h + d_r)        z = σ(W_z x + b_z + U_z h + d_z)
        n = tanh(W_n x + b_n + r ∘ (U_n h + d_n))        h' = (1 - z) ∘ n + z ∘ h

    The reset gate acts *after* the recurrent product, so that one product a step serves all three blocks (in order: r,
    z, n). Both gates' biases b start at `forget_bias`.
    """

    state_parts = 1
    kernel = TorchGruKernel

    def __init__(self, input_units: int, units: int, config: CellConfig):
        super().__init__(input_units, units, gates=3)
        self.gate_bias = config.forget_bias

    def step(self, projected: Tensor, state: State) -> State:
        """One step: projected [rows, 3 · units], state (h [rows, units],)."""
        (h,) = state
        recurrent = F.linear(h, self.recurrent_weight, self.recurrent_bias)
        gates_in, new_in = projected.split((2 * self.units, self.units), dim=-1)
        gates, new = recurrent.split((2 * self.units, self.units), dim=-1)
        reset, update = sigmoid(gates_in + gates).chunk(2, dim=-1)
        new = torch.addcmul(new_in, reset, new).tanh()
        # The state keeps its own type, so that under autocast only products are made in low precision.
        return (torch.lerp(new.to(h.dtype), h, update.to(h.dtype)),)

    def first_values(self) -> dict[str, Draw]:
        """Glorot as in the `tf` family: the two gates and the candidate n count as a matrix each."""
        fan_in, units = self.input_units + self.units, self.units
        blocks = Glorot(((2 * units, fan_in, 2 * units), (units, fan_in, units)))
        bias = Constant(0.0, other=self.gate_bias, stop=2 * units)
        return super().first_values() | {"input_weight": blocks, "recurrent_weight": blocks, "bias": bias}


class TorchLstm(TorchCell):
    """Long short-term memory as cuDNN computes it: no peepholes, gate order i, f, g, o.

        [i, f, g, o] = W x + b + U h + d        c' = σ(f) ∘ c + σ(i) ∘ tanh(g)        h' = σ(o) ∘ tanh(c')

    The block f of the bias b starts at `forget_bias`; nothing is added at run time. The state is (h, c).
    """

    state_parts = 2
    kernel = TorchLstmKernel

    def __init__(self, input_units: int, units: int, config: CellConfig):
        super().__init__(input_units, units, gates=4)
        self.forget_bias = config.forget_bias

    def step(self, projected: Tensor, state: State) -> State:
        """One step: projected [rows, 4 · units], state (h, c) of [rows, units] each."""
        h, c = state
        gates = torch.addmm(projected, h, self.recurrent_weight.t()).to(c.dtype)
        i_and_f, g, o = gates.split((2 * self.units, self.units, self.units), dim=-1)
        enter, forget = sigmoid(i_and_f).chunk(2, dim=-1)
        c = torch.addcmul(forget * c, enter, g.tanh())
        return (c.tanh() * sigmoid(o), c)

    def first_values(self) -> dict[str, Draw]:
        """As the family's, with `forget_bias` in the forget gate's block of the first bias."""
        bias = Constant(0.0, other=self.forget_bias, start=self.units, stop=2 * self.units)
        return super().first_values() | {"bias": bias}

    def input_bias(self) -> Tensor:
        """Both biases."""
        return self.bias + self.recurrent_bias


class TorchVanilla(TorchCell):
    """`torch.nn.RNN` with tanh: h' = tanh(W x + b + U h + d). `forget_bias` means nothing to it: there are no gates."""

    state_parts = 1
    kernel = TorchVanillaKernel

    def __init__(self, input_units: int, units: int, config: CellConfig):
        super().__init__(input_units, units, gates=1)

    def step(self, projected: Tensor, state: State) -> State:
        """One step: projected [rows, units], state (h [rows, units],)."""
        (h,) = state
        return (torch.addmm(projected, h, self.recurrent_weight.t()).to(h.dtype).tanh(),)

    def input_bias(self) -> Tensor:
        """Both biases."""
        return self.bias + self.recurrent_bias
