"""Recurrent cells of the `tf` family: the arithmetic of TensorFlow 1, which the published system used.

A cell has one conceptual weight on [x; h] per gate block and one bias. Its input part and its recurrent part are stored
apart, so that the input products of all time steps are one matrix product (`project_inputs`) and only the recurrent
product stays inside the loop (`step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt import registry
from nmt.config.schema import CellConfig
from nmt.models.initialisation import Constant, Draw, Glorot, RecurrentKernels
from nmt.models.layers import empty, sigmoid

State = tuple[Tensor, ...]


class Cell(RecurrentKernels, nn.Module, ABC):
    """A recurrent cell.

    The state is a tuple of `state_parts` tensors [rows, units]; its first element is the cell's output.

    Parameters
    ----------
    input_units: width of the input x.
    units: width of the output and of each part of the state.
    gates: number of blocks of `units` rows in the input projection.
    """

    state_parts: ClassVar[int]

    def __init__(self, input_units: int, units: int, gates: int):
        super().__init__()
        self.input_units = input_units
        self.units = units
        self.input_weight = empty(gates * units, input_units)
        self.bias = empty(gates * units)

    def project_inputs(self, x: Tensor) -> Tensor:
        """The input's part of all gates, biases included: [..., in] -> [..., gates · units].

        An `x` narrower than the cell's input stands for its first columns; the caller adds what the others contribute
        through `input_columns`.
        """
        return F.linear(x, self.input_weight[:, : x.shape[-1]], self._input_bias())

    def input_columns(self, start: int) -> Tensor:
        """The input weight's columns from `start` on, transposed for `addmm`: [in - start, gates · units]."""
        return self.input_weight[:, start:].t()

    def first_state(self, rows: int, like: Tensor) -> State:
        """The all-zero state of `rows` rows."""
        return tuple(like.new_zeros(rows, self.units) for _ in range(self.state_parts))

    @abstractmethod
    def step(self, projected: Tensor, state: State) -> State:
        """The next state from one time step's projected input [rows, gates · units] and the state before."""

    def sequence(self, projected: Tensor) -> State:
        """States after each step from the zero state: [time, rows, gates · units] -> parts of [time, rows, units]."""
        state = self.first_state(projected.shape[1], self.bias)
        states = []
        for inputs in projected.unbind(0):
            state = self.step(inputs, state)
            states.append(state)
        return tuple(torch.stack(part) for part in zip(*states, strict=True))

    def _input_bias(self) -> Tensor:
        return self.bias


class TfGru(Cell):
    """Gated recurrent unit as TensorFlow 1 computes it.

        [r, u] = σ(W [x; h] + b)        c = tanh(W_c [x; r ∘ h] + b_c)        h' = u ∘ h + (1 - u) ∘ c

    The reset gate acts *before* the matrix product (cuDNN and `torch.nn.GRU` apply it after, with a second bias). Both
    gates' biases start at `forget_bias`. Blocks of the input weight, in order: r, u, c.
    """

    state_parts = 1

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
            "bias": Constant(0.0, head=self.gate_bias, head_rows=2 * units),
        }


class TfLstm(Cell):
    """TensorFlow 1's BasicLSTMCell: no peepholes, gate order i, j, f, o.

        [i, j, f, o] = W [x; h] + b        c' = c ∘ σ(f + forget_bias) + σ(i) ∘ tanh(j)        h' = tanh(c') ∘ σ(o)

    The forget bias is added at run time; the bias itself starts at zero. The state is (h, c).
    """

    state_parts = 2

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

    def _input_bias(self) -> Tensor:
        i_j, f, o = self.bias.split((2 * self.units, self.units, self.units))
        return torch.cat((i_j, f + self.forget_bias, o))


class CellStack(nn.ModuleList):
    """Cells on top of each other: the first reads `input_units`, each other one the output of the cell below.

    Parameters
    ----------
    config: kind of every cell. where: the config section that holds it, for errors.
    layers: number of cells. units: width of each.
    """

    def __init__(self, config: CellConfig, where: str, layers: int, input_units: int, units: int):
        make = registry.lookup("cell", config.kind, f"{where}.kind")
        super().__init__(make(width, units, config) for width in [input_units] + [units] * (layers - 1))
        self.state_units = sum(cell.state_parts * cell.units for cell in self)

    def __iter__(self) -> Iterator[Cell]:
        return cast(Iterator[Cell], super().__iter__())

    @property
    def first(self) -> Cell:
        """The cell that reads the input."""
        return next(iter(self))
