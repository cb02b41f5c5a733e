"""The cells that a configuration names: a kind (`model.*.cell.kind`) in one of two families (`model.*.cell.family`).

Each function is what the registry holds for a kind: it takes (input_units, units, config) and returns the cell. A cell
of another package may be its class itself.
"""

from __future__ import annotations

from nmt.config.schema import CellConfig
from nmt.models.cells import Cell
from nmt.models.tf_cells import TfGru, TfLstm, TfVanilla
from nmt.models.torch_cells import TorchGru, TorchLstm, TorchVanilla


def gru(input_units: int, units: int, config: CellConfig) -> Cell:
    """A gated recurrent unit (Cho et al. 2014)."""
    return {"tf": TfGru, "torch": TorchGru}[config.family](input_units, units, config)


def lstm(input_units: int, units: int, config: CellConfig) -> Cell:
    """Long short-term memory without peepholes (Hochreiter and Schmidhuber 1997, with the forget gate of Gers 2000)."""
    return {"tf": TfLstm, "torch": TorchLstm}[config.family](input_units, units, config)


def vanilla(input_units: int, units: int, config: CellConfig) -> Cell:
    """One tanh layer without gates (Elman 1990)."""
    return {"tf": TfVanilla, "torch": TorchVanilla}[config.family](input_units, units, config)
