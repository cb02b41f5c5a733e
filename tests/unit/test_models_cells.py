"""Cells against TensorFlow's formulas on the joint vector [x; h], and by hand."""

from __future__ import annotations

import math

import models_reference as reference
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from nmt import registry
from nmt.config.schema import CellConfig
from nmt.models.cells import Cell
from nmt.models.tf_cells import TfGru, TfLstm

KINDS = ["gru", "lstm"]


def make(kind: str, input_units: int = 3, units: int = 4, forget_bias: float = 1.0) -> Cell:
    cell = registry.lookup("cell", kind, "cell.kind")(
        input_units, units, CellConfig(kind=kind, forget_bias=forget_bias)
    )
    return reference.randomised(cell.double())


@pytest.mark.parametrize("kind", KINDS)
def test_sequence_is_the_formula_step_by_step(kind: str) -> None:
    cell = make(kind, forget_bias=0.7)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    states = cell.sequence(cell.project_inputs(x))
    for row in range(2):
        state = tuple(np.zeros(4) for _ in range(cell.state_parts))
        for t in range(5):
            state = reference.cell_step(cell, x[t, row].numpy(), state, forget_bias=0.7)
            for part, expected in zip(states, state, strict=True):
                np.testing.assert_allclose(part[t, row].detach().numpy(), expected, rtol=0, atol=1e-13)


def test_gru_by_hand_resets_before_the_product_and_keeps_the_old_state_by_the_update_gate() -> None:
    cell = TfGru(1, 1, CellConfig()).double()
    with torch.no_grad():
        cell.input_weight.copy_(torch.tensor([[0.1], [0.2], [0.3]]))
        cell.bias.copy_(torch.tensor([1.0, 1.0, 0.5]))
        cell.gate_weight.copy_(torch.tensor([[0.4], [0.6]]))
        cell.candidate_weight.copy_(torch.tensor([[2.0]]))
    h = torch.tensor([[0.5]], dtype=torch.float64)
    (new,) = cell.step(cell.project_inputs(torch.tensor([[2.0]], dtype=torch.float64)), (h,))
    r = 1 / (1 + math.exp(-(0.1 * 2 + 0.4 * 0.5 + 1)))
    u = 1 / (1 + math.exp(-(0.2 * 2 + 0.6 * 0.5 + 1)))
    c = math.tanh(0.3 * 2 + 2.0 * (r * 0.5) + 0.5)
    assert new.item() == pytest.approx(u * 0.5 + (1 - u) * c, abs=1e-7)


def test_lstm_by_hand_has_gates_i_j_f_o_and_adds_the_forget_bias_at_run_time() -> None:
    cell = TfLstm(1, 1, CellConfig(kind="lstm", forget_bias=1.0)).double()
    with torch.no_grad():
        cell.input_weight.copy_(torch.tensor([[0.1], [0.2], [0.3], [0.4]]))
        cell.bias.zero_()
        cell.recurrent_weight.copy_(torch.tensor([[0.5], [0.6], [0.7], [0.8]]))
    state = (torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64))
    h, c = cell.step(cell.project_inputs(torch.tensor([[2.0]], dtype=torch.float64)), state)

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected_c = -0.4 * sigma(0.6 + 0.35 + 1) + sigma(0.2 + 0.25) * math.tanh(0.4 + 0.3)
    assert c.item() == pytest.approx(expected_c, abs=1e-7)
    assert h.item() == pytest.approx(math.tanh(expected_c) * sigma(0.8 + 0.4), abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_may_be_projected_in_two_parts(kind: str) -> None:
    cell = make(kind, input_units=5)
    x = torch.randn(7, 5, dtype=torch.float64)
    parts = torch.addmm(cell.project_inputs(x[:, :2]), x[:, 2:], cell.input_columns(2))
    torch.testing.assert_close(parts, cell.project_inputs(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    cell = make(kind, 2, 3)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return cell.sequence(cell.project_inputs(x))

    assert gradcheck(run, (x, *cell.parameters()))


@pytest.mark.parametrize(("kind", "gates"), [("gru", 3), ("lstm", 4)])
def test_parameters_are_one_weight_on_the_joint_vector_and_one_bias(kind: str, gates: int) -> None:
    cell = make(kind, 7, 5)
    assert sum(p.numel() for p in cell.parameters()) == gates * 5 * (7 + 5) + gates * 5
