"""Cells against TensorFlow's formulas on the joint vector [x; h], against torch's own layers, and by hand."""

from __future__ import annotations

import math
from itertools import product

import models_reference as reference
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from nmt import registry
from nmt.config.schema import CellConfig, InitialisationConfig
from nmt.models.cells import Cell
from nmt.models.initialisation import initialise
from nmt.models.tf_cells import TfGru, TfLstm

KINDS = ["gru", "lstm", "vanilla"]
FAMILIES = ["tf", "torch"]
CELLS = list(product(KINDS, FAMILIES))
TORCH = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "vanilla": torch.nn.RNN}


def make(kind: str, input_units: int = 3, units: int = 4, forget_bias: float = 1.0, family: str = "tf") -> Cell:
    cell = registry.lookup("cell", kind, "cell.kind")(
        input_units, units, CellConfig(kind=kind, family=family, forget_bias=forget_bias)
    )
    return reference.randomised(cell.double())


def every_step(cell: Cell, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The parts of the state after each step over x [time, rows, in], all rows to the end."""
    time, rows, _ = x.shape
    states = cell.sequence(cell.project_inputs(x.flatten(0, 1)), [rows] * time)
    return tuple(part.unflatten(0, (time, rows)) for part in states)


@pytest.mark.parametrize(("kind", "family"), CELLS)
def test_sequence_is_the_formula_step_by_step(kind: str, family: str) -> None:
    cell = make(kind, forget_bias=0.7, family=family)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    states = every_step(cell, x)
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
def test_the_torch_family_computes_what_torch_computes(kind: str) -> None:
    cell, theirs = make(kind, family="torch"), TORCH[kind](3, 4).double()
    names = {"input_weight": "weight_ih_l0", "recurrent_weight": "weight_hh_l0"}
    names |= {"bias": "bias_ih_l0", "recurrent_bias": "bias_hh_l0"}
    theirs.load_state_dict({names[name]: value for name, value in cell.state_dict().items()})
    x = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    outputs, _ = theirs(x)
    states = every_step(cell, x)
    torch.testing.assert_close(states[0], outputs, rtol=0, atol=1e-12)
    weight = torch.randn_like(outputs)
    ours = torch.autograd.grad((states[0] * weight).sum(), [x, *cell.parameters()])
    by_name = dict(theirs.named_parameters())
    others = torch.autograd.grad(
        (outputs * weight).sum(), [x, *(by_name[names[name]] for name, _ in cell.named_parameters())]
    )
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_families_of_gru_differ_in_value_by_where_the_reset_gate_acts() -> None:
    """The same weights, the second bias zero: one step apart only where a state was there to be reset."""
    tf, other = make("gru"), make("gru", family="torch")
    with torch.no_grad():
        for name in ("input_weight", "bias"):
            getattr(other, name).copy_(getattr(tf, name))
        other.recurrent_weight.copy_(torch.cat((tf.gate_weight, tf.candidate_weight)))
        other.recurrent_bias.zero_()
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    (one,), (two,) = (every_step(cell, x) for cell in (tf, other))
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-14)
    assert (one[1] - two[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lstm", "vanilla"])
def test_the_families_of_other_cells_agree_once_their_biases_do(kind: str) -> None:
    tf, other = make(kind, forget_bias=0.0), make(kind, family="torch")
    order = [0, 2, 1, 3] if kind == "lstm" else [0]  # i, j, f, o is i, f, g, o in another order

    def reordered(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value.chunk(len(order))[block] for block in order])

    with torch.no_grad():
        for name in ("input_weight", "recurrent_weight", "bias"):
            getattr(other, name).copy_(reordered(getattr(tf, name)))
        other.recurrent_bias.zero_()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    one, two = (every_step(cell, x)[0] for cell in (tf, other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kind", "family"), CELLS)
def test_inputs_may_be_projected_in_two_parts(kind: str, family: str) -> None:
    cell = make(kind, input_units=5, family=family)
    x = torch.randn(7, 5, dtype=torch.float64)
    parts = torch.addmm(cell.project_inputs(x[:, :2]), x[:, 2:], cell.input_columns(2))
    torch.testing.assert_close(parts, cell.project_inputs(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "family"), CELLS)
def test_gradients(kind: str, family: str) -> None:
    cell = make(kind, 2, 3, family=family)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return every_step(cell, x)

    assert gradcheck(run, (x, *cell.parameters()), fast_mode=True)


@pytest.mark.parametrize(("kind", "gates"), [("gru", 3), ("lstm", 4), ("vanilla", 1)])
def test_parameters_are_one_weight_on_the_joint_vector_and_one_bias_or_two(kind: str, gates: int) -> None:
    for family, biases in (("tf", 1), ("torch", 2)):
        cell = make(kind, 7, 5, family=family)
        assert sum(p.numel() for p in cell.parameters()) == gates * 5 * (7 + 5) + biases * gates * 5


@pytest.mark.parametrize(
    ("kind", "family", "first_bias"),
    [
        ("gru", "tf", [0.7] * 6 + [0.0] * 3),
        ("gru", "torch", [0.7] * 6 + [0.0] * 3),
        ("lstm", "tf", [0.0] * 12),  # added at every step instead
        ("lstm", "torch", [0.0] * 3 + [0.7] * 3 + [0.0] * 6),
        ("vanilla", "tf", [0.0] * 3),
        ("vanilla", "torch", [0.0] * 3),
    ],
)
def test_the_forget_bias_starts_in_the_bias_of_the_gates(kind: str, family: str, first_bias: list[float]) -> None:
    cell = make(kind, 2, 3, forget_bias=0.7, family=family)
    initialise(cell, InitialisationConfig(), 1)
    torch.testing.assert_close(cell.bias, torch.tensor(first_bias, dtype=torch.float64), rtol=0, atol=1e-7)
    if family == "torch":
        assert not cell.recurrent_bias.any()


def test_both_families_start_within_the_limits_of_the_joint_matrices() -> None:
    for family in FAMILIES:
        for kind, limits in (("lstm", [6 / (12 + 20)]), ("vanilla", [6 / (12 + 5)]), ("gru", [6 / 22, 6 / 17])):
            cell = make(kind, 7, 5, family=family)
            initialise(cell, InitialisationConfig(), 1)
            blocks = [cell.input_weight[:10], cell.input_weight[10:]] if kind == "gru" else [cell.input_weight]
            for block, limit in zip(blocks, limits, strict=True):
                assert 0.85 * math.sqrt(limit) < block.abs().max().item() <= math.sqrt(limit)
