"""What a recurrent cell is, and stacks of them; the cells themselves are in `tf_cells` and `torch_cells`.

A cell's weights on the input x and on the state h are stored apart, so that the input products of all time steps are
one matrix product (`project_inputs`) and only the recurrent product stays inside the loop (`step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt import registry
from nmt.config.schema import CellConfig
from nmt.models.initialisation import RecurrentKernels
from nmt.models.layers import empty
from nmt.models.recurrent.kernels import CellKernel

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
    kernel: ClassVar[type[CellKernel] | None] = None  # `step` and its gradient by hand; without one autograd derives it

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
        return F.linear(x, self.input_weight[:, : x.shape[-1]], self.input_bias())

    def input_columns(self, start: int) -> Tensor:
        """The input weight's columns from `start` on, transposed for `addmm`: [in - start, gates · units]."""
        return self.input_weight[:, start:].t()

    def first_state(self, rows: int, like: Tensor) -> State:
        """The all-zero state of `rows` rows."""
        return tuple(like.new_zeros(rows, self.units) for _ in range(self.state_parts))

    @abstractmethod
    def step(self, projected: Tensor, state: State) -> State:
        """The next state from one time step's projected input [rows, gates · units] and the state before."""

    def sequence(self, projected: Tensor, sizes: Sequence[int]) -> State:
        """States after each step from the zero state, by autograd's own gradients.

        `projected` [total, gates · units] holds `sizes[t]` rows for each step t, the first of those of the step before;
        the parts of the state are [total, units] in the same order.
        """
        state = self.first_state(sizes[0], self.bias)
        states = []
        for inputs in projected.split(list(sizes)):
            state = self.step(inputs, tuple(part[: len(inputs)] for part in state))
            states.append(state)
        return tuple(torch.cat(part) for part in zip(*states, strict=True))

    def usable_kernel(self) -> type[CellKernel] | None:
        """The kernel of this very cell: a subclass with a `step` of its own does not inherit one."""
        defining = next(base for base in type(self).__mro__ if "step" in vars(base))
        found: type[CellKernel] | None = vars(defining).get("kernel")
        return found

    def kernel_parameters(self) -> list[Tensor]:
        """The parameters that the kernel asks for."""
        assert self.kernel is not None
        return [getattr(self, name) for name in self.kernel.parameters]

    def input_bias(self) -> Tensor:
        """The bias of the projected inputs, all that is constant in it: [gates · units]."""
        return self.bias


class CellStack(nn.ModuleList):
    """The cells of a stack, lowest first.

    Parameters
    ----------
    config: kind and family of every cell. where: the config section that holds it, for errors.
    input_units: width of each cell's input. units: width of each cell.
    """

    def __init__(self, config: CellConfig, where: str, input_units: Sequence[int], units: int):
        make = registry.lookup("cell", config.kind, f"{where}.kind")
        super().__init__(make(width, units, config) for width in input_units)
        self.state_units = sum(cell.state_parts * cell.units for cell in self)

    def __iter__(self) -> Iterator[Cell]:
        return cast(Iterator[Cell], super().__iter__())

    @property
    def first(self) -> Cell:
        """The cell that reads the input."""
        return next(iter(self))
